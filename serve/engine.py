"""One vLLM, seen from the gateway: ask it, and tell it which adapters to hold.

aiohttp and not httpx: per request httpx costs six times as much, and closing an unread aiohttp
response closes the connection, on which vLLM aborts the request.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson

CONTROL_TIMEOUT_S = 60
"""Loading an adapter waits for the engine's loop; on a busy CPU that was seconds."""

CONNECT_TIMEOUT_S = 5

NO_TRACE: Mapping[str, str] = {}


class EngineUnreachable(Exception):
    """Nobody answers, or the connection broke within an answer."""


class EngineRefused(Exception):
    """It answered, and said no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Engine:
    def __init__(self, url: str, key: str = "", silence_s: float = 600) -> None:
        self.url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._silence_s = silence_s
        self._opened: aiohttp.ClientSession | None = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # the engine's own queue is the limit
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=self._silence_s),
                headers=self._headers,
                auto_decompress=False,
            )
        return self._opened

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()

    @asynccontextmanager
    async def ask(
        self, path: str, body: bytes, request_id: str = "", trace: Mapping[str, str] = NO_TRACE
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The engine's answer as it comes. Leaving the block early aborts the request there.

        `request_id` becomes the end of the completion's id: vLLM answers `chatcmpl-` plus X-Request-Id.
        """
        headers = {"content-type": "application/json", "x-request-id": request_id, **trace}
        with _unreachable():
            response = await self._session.post(self.url + path, data=body, headers=headers)
        try:
            yield response
        finally:
            response.close() if not response.content.at_eof() else response.release()

    async def models(self) -> dict[str, str | None]:
        """Every name it answers to, and the folder of those that are adapters."""
        listed = orjson.loads(await self._call("GET", "/v1/models"))["data"]
        return {model["id"]: model["root"] if model.get("parent") else None for model in listed}

    async def load(self, name: str, path: str) -> None:
        """Never in place: vLLM would read the files again at every step (vllm-project/vllm#33791).

        A repeated load is refused with 400 "already been loaded"; whether it is the same one, `models` tells.
        """
        try:
            await self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        except EngineRefused as refused:
            if refused.status != 400 or "already been loaded" not in str(refused):
                raise

    async def unload(self, name: str) -> None:
        """Only forgets the name: what is being answered with it ends undisturbed."""
        try:
            await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except EngineRefused as refused:
            if refused.status != 404:
                raise

    async def is_healthy(self) -> bool:
        try:
            await self._call("GET", "/health")
        except (EngineUnreachable, EngineRefused):
            return False
        return True

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """One whole chat answer, for probes."""
        answer: dict[str, Any] = orjson.loads(await self._call("POST", "/v1/chat/completions", body))
        return answer

    async def classify(self, body: dict[str, Any]) -> bytes:
        """What a pooling engine makes of a conversation (serve/scorer.py)."""
        return await self._call("POST", "/classify", body)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        timeout = aiohttp.ClientTimeout(total=CONTROL_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        data = orjson.dumps(body) if body is not None else None
        headers = {"content-type": "application/json"} if body is not None else {}
        with _unreachable():
            async with self._session.request(
                method, self.url + path, data=data, headers=headers, timeout=timeout
            ) as response:
                text = await response.read()
        if response.status != 200:
            raise EngineRefused(response.status, failure_of(text)[0])
        return text


class _unreachable:  # noqa: N801 - reads as the statement it is
    """Turns every way a connection can fail into EngineUnreachable."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, aiohttp.ClientError | OSError | TimeoutError):
            raise EngineUnreachable(type(error).__name__) from error


async def read(response: aiohttp.ClientResponse) -> bytes:
    with _unreachable():
        return await response.read()


async def next_bytes(response: aiohttp.ClientResponse) -> bytes:
    """Whatever has come since the last call; b"" at the end."""
    with _unreachable():
        return await response.content.readany()


def failure_of(body: bytes) -> tuple[str, str | None]:
    """vLLM's words for a failure and the parameter it is about: JSON in its envelope, or plain text.

    Without the "(parameter=…, value=…)" at their end, for the value may be somebody's text.
    """
    try:
        error = orjson.loads(body)["error"]
        return str(error["message"]).split(" (parameter=")[0], error.get("param")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return body[:200].decode(errors="replace"), None
