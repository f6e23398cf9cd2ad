"""A stand-in for the Hugging Face Hub, as far as pushing files to one repository goes, by what its own client sends.

The Hub keeps Parquet in Xet storage, whose client cuts a file into chunks, packs them into xorbs and describes the file
by a shard (huggingface.co/docs/xet). Of these the xorbs hold the bytes; each chunk has a header of eight: version,
three for its packed size, how it is packed (0 not at all, 1 LZ4, 2 LZ4 over four planes of bytes), three for its size.
"""

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow
from aiohttp import web

from tests.processes import free_port

Json = dict[str, Any]
Answerer = Callable[[web.Request], Awaitable[web.StreamResponse]]

XET_TOKEN = "of-xet"
EXPIRES = 4_000_000_000


@dataclass
class Hub:
    """Knows one repository; tells everybody who asks the same."""

    name: str
    kind: Literal["datasets", "models"] = "datasets"
    port: int = field(default_factory=free_port)
    token: str = "hf_of_tests"
    exists: bool = False
    refuses: str = ""
    """A part of a path that is answered with 403."""
    created: Json = field(default_factory=dict)
    commit: list[Json] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded, by the SHA-256 of its bytes."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def files(self) -> dict[str, bytes]:
        """What the last commit put there, by path."""
        said = [line["value"] for line in self.commit if line["key"] in ("file", "lfsFile")]
        return {
            one["path"]: self.stored[one["oid"]] if "oid" in one else base64.b64decode(one["content"]) for one in said
        }

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**27, middlewares=[self._admit])
        app.router.add_post("/api/repos/create", self._create)
        app.router.add_post("/api/validate-yaml", self._validate)
        app.router.add_post(f"/api/{self.kind}/{self.name}/preupload/main", self._mode)
        app.router.add_get(f"/api/{self.kind}/{self.name}/xet-write-token/main", self._grant)
        app.router.add_post(f"/api/{self.kind}/{self.name}/commit/main", self._commit)
        app.router.add_get("/{version:(v1/)?}chunks/{_:.*}", self._unknown_chunk)
        app.router.add_post("/{version:(v1/)?}xorbs/{_:.*}", self._xorb)
        app.router.add_post("/{version:(v1/)?}shards", self._shard)
        return app

    @web.middleware
    async def _admit(self, request: web.Request, handler: Answerer) -> web.StreamResponse:
        await request.read()
        if request.headers.get("authorization") not in (f"Bearer {self.token}", f"Bearer {XET_TOKEN}"):
            return web.json_response({"error": "Invalid username or password."}, status=401)
        if self.refuses and self.refuses in request.path:
            return web.json_response({"error": "You are not allowed to."}, status=403)
        return await handler(request)

    async def _create(self, request: web.Request) -> web.Response:
        self.created = await request.json()
        return web.json_response({"url": f"{self.url}/{self.kind}/{self.name}"}, status=409 if self.exists else 200)

    async def _validate(self, request: web.Request) -> web.Response:
        """Of a card's metadata."""
        is_card = str((await request.json())["content"]).startswith("---\n")
        return web.json_response({"errors": [] if is_card else [{"message": "no metadata"}], "warnings": []})

    async def _mode(self, request: web.Request) -> web.Response:
        """By .gitattributes as the Hub makes it."""
        files = (await request.json())["files"]
        told = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".parquet", ".safetensors")) else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        return web.json_response({"files": told})

    async def _grant(self, _: web.Request) -> web.Response:
        headers = {
            "X-Xet-Cas-Url": self.url,
            "X-Xet-Access-Token": XET_TOKEN,
            "X-Xet-Token-Expiration": str(EXPIRES),
        }
        told = {"casUrl": self.url, "accessToken": XET_TOKEN, "exp": EXPIRES}
        return web.json_response(told, headers=headers)

    async def _unknown_chunk(self, _: web.Request) -> web.Response:
        return web.Response(status=404)

    async def _xorb(self, request: web.Request) -> web.Response:
        content = unpacked(await request.read())
        self.stored[hashlib.sha256(content).hexdigest()] = content
        return web.json_response({"was_inserted": True})

    async def _shard(self, _: web.Request) -> web.Response:
        return web.json_response({"result": 1})

    async def _commit(self, request: web.Request) -> web.Response:
        self.commit = [json.loads(line) for line in (await request.text()).splitlines()]
        where = f"{self.url}/{self.kind}/{self.name}/commit/1"
        return web.json_response({"commitUrl": where, "commitOid": "1", "pullRequestUrl": ""})


def unpacked(xorb: bytes) -> bytes:
    """The chunks in their order; of a file that came alone, its bytes."""
    found, place = b"", 0
    while place < len(xorb) and xorb[place] == 0:
        packed, kind, size = (
            int.from_bytes(xorb[place + 1 : place + 4], "little"),
            xorb[place + 4],
            int.from_bytes(xorb[place + 5 : place + 8], "little"),
        )
        chunk = xorb[place + 8 : place + 8 + packed]
        if kind:
            chunk = pyarrow.Codec("lz4").decompress(chunk, size).to_pybytes()
        if kind == 2:
            chunk = _ungrouped(chunk)
        found += chunk
        place += 8 + packed
    return found


def _ungrouped(planes: bytes) -> bytes:
    """Every fourth byte stands together with its like; longer planes first."""
    found, place = bytearray(len(planes)), 0
    for nth in range(4):
        length = (len(planes) - nth + 3) // 4
        found[nth::4] = planes[place : place + length]
        place += length
    return bytes(found)


@asynccontextmanager
async def hub(name: str, **given: Any) -> AsyncIterator[Hub]:
    made = Hub(name, **given)
    runner = web.AppRunner(made.app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", made.port).start()
    try:
        yield made
    finally:
        await runner.cleanup()
