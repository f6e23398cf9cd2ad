"""One vLLM, seen from the gateway: ask it, and tell it which adapters to hold."""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson

from serve.upstream import Asking, EngineUnreachable, Upstream

CONTROL_TIMEOUT_S = 60
"""Loading an adapter waits for the engine's loop; on a busy CPU that was seconds."""

CONNECT_TIMEOUT_S = 5

JSON = "content-type: application/json\r\n"

NO_TRACE: Mapping[str, str] = {}


class EngineLate(EngineUnreachable):
    """It did not answer in time, and whether it is well is not known: vLLM lets requests wait for a LoRA slot."""


class EngineRefused(Exception):
    """It answered, and said no."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Engine:
    def __init__(self, url: str, key: str = "", silence_s: float = 600) -> None:
        self.url = url.rstrip("/")
        self._upstream = Upstream(self.url, key, CONNECT_TIMEOUT_S, silence_s)

    async def close(self) -> None:
        self._upstream.close()

    def ask(self, path: str, body: bytes, request_id: str = "", trace: Mapping[str, str] = NO_TRACE) -> Asking:
        """The engine's answer as it comes. Leaving the block early aborts the request there.

        `request_id` becomes the end of the completion's id: vLLM answers `chatcmpl-` plus X-Request-Id.
        """
        lines = f"{JSON}x-request-id: {request_id}\r\n"
        for name, value in trace.items():
            lines += f"{name}: {value}\r\n"
        return self._upstream.ask("POST", path, body, lines)

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

    async def sleep(self) -> None:
        """Weights go to the host's memory and the KV cache is dropped; answers under way stand still (`mode=keep`; by
        default vLLM would cut them off as if they had ended)."""
        await self._call("POST", "/sleep?level=1&mode=keep")

    async def wake(self) -> None:
        await self._call("POST", "/wake_up")

    async def is_sleeping(self) -> bool:
        return bool(orjson.loads(await self._call("GET", "/is_sleeping"))["is_sleeping"])

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """One whole chat answer, for probes."""
        answer: dict[str, Any] = orjson.loads(await self._call("POST", "/v1/chat/completions", body))
        return answer

    async def classify(self, body: dict[str, Any]) -> bytes:
        """What a pooling engine makes of a conversation (serve/scorer.py)."""
        return await self._call("POST", "/classify", body)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        data = orjson.dumps(body) if body is not None else b""
        try:
            async with (
                asyncio.timeout(CONTROL_TIMEOUT_S),
                self._upstream.ask(method, path, data, JSON if data else "") as answer,
            ):
                text = await answer.read()
        except TimeoutError:
            raise EngineLate(f"no answer to {path} within {CONTROL_TIMEOUT_S} s") from None
        if answer.status != 200:
            raise EngineRefused(answer.status, failure_of(text)[0])
        return text


def failure_of(body: bytes) -> tuple[str, str | None]:
    """vLLM's words for a failure and the parameter it is about: JSON in its envelope, or plain text.

    Without the "(parameter=…, value=…)" at their end, for the value may be somebody's text.
    """
    try:
        error = orjson.loads(body)["error"]
        return str(error["message"]).split(" (parameter=")[0], error.get("param")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return body[:200].decode(errors="replace"), None
