"""A stand-in for the Hugging Face Hub, which no test can reach: it says what the Hub's API says and keeps what it is
told."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from tests.processes import free_port


@dataclass
class Told:
    repository: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


@asynccontextmanager
async def standing_in(path: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Told]:
    """`path` as in the Hub's API: models/ann/lora or datasets/ann/votes."""
    told = Told()

    async def create(request: web.Request) -> web.Response:
        told.repository = await request.json()
        return web.json_response({"url": f"{request.url.origin()}/{path}"})

    async def ask(request: web.Request) -> web.Response:
        files = (await request.json())["files"]
        return web.json_response(
            {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        )

    async def commit(request: web.Request) -> web.Response:
        said = [json.loads(line) for line in (await request.text()).splitlines()]
        for file in [line["value"] for line in said if line["key"] == "file"]:
            told.files[file["path"]] = base64.b64decode(file["content"])
        where = f"{request.url.origin()}/{path}/commit/1"
        return web.json_response({"commitUrl": where, "commitOid": "1", "pullRequestUrl": ""})

    async def validate(request: web.Request) -> web.Response:
        assert (await request.json())["content"].startswith("---\n")
        return web.json_response({"errors": [], "warnings": []})

    hub, port = web.Application(client_max_size=2**26), free_port()
    hub.router.add_post("/api/repos/create", create)
    hub.router.add_post("/api/validate-yaml", validate)  # of a card's metadata
    hub.router.add_post(f"/api/{path}/preupload/main", ask)
    hub.router.add_post(f"/api/{path}/commit/main", commit)
    runner = web.AppRunner(hub)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("HF_TOKEN", "hf_of_tests")
    try:
        yield told
    finally:
        await runner.cleanup()
