"""The console's calls of the gateway: what any client can ask, with failures in the gateway's own words."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from serve.client import TIMEOUT_S, CallFailed, failure_of
from serve.console.settings import ConsoleSettings

Json = dict[str, Any]


class Calls:
    """Each call takes the visitor's key; where there is none, the console's own goes."""

    def __init__(self, settings: ConsoleSettings) -> None:
        self._settings = settings
        # No proxies from the environment: the gateway is on this machine or named by its address.
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False)

    @property
    def url(self) -> str:
        """Looked up at every call: a stack that was started again may be at another port."""
        return self._settings.gateway_url.rstrip("/")

    @property
    def needs_key(self) -> bool:
        return not self._settings.own_key

    async def get(self, key: str, path: str, **query: Any) -> Json:
        return await self._call("GET", key, path, params=query)

    async def readiness(self) -> Json:
        """What /readyz says; it says it too when the gateway is not ready."""
        with self._reached():
            reply = await self._http.get(f"{self.url}/readyz")
        if reply.status_code not in (200, 503):
            raise failure_of(reply)
        answer: Json = reply.json()
        return answer

    async def content(self, key: str, path: str, **query: Any) -> AsyncIterator[bytes]:
        """A long answer as it comes. Raises CallFailed."""
        with self._reached():
            async with self._http.stream("GET", self._at(path), params=query, headers=self._headers(key)) as reply:
                if reply.status_code != 200:
                    await reply.aread()
                    raise failure_of(reply)
                async for part in reply.aiter_bytes():
                    yield part

    async def post(self, key: str, path: str, body: Json) -> Json:
        return await self._call("POST", key, path, json=body)

    async def delete(self, key: str, path: str) -> Json:
        return await self._call("DELETE", key, path)

    async def stream(self, key: str, path: str, body: Json) -> AsyncIterator[Json]:
        """The events of a streamed answer. Raises CallFailed, also within the stream and when it ends too early."""
        with self._reached():
            async with self._http.stream("POST", self._at(path), json=body, headers=self._headers(key)) as reply:
                if reply.status_code != 200:
                    await reply.aread()
                    raise failure_of(reply)
                async for line in reply.aiter_lines():
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data: "):
                        event: Json = json.loads(line[6:])
                        if "error" in event:
                            raise CallFailed(event["error"]["message"])
                        yield event
        raise CallFailed("the answer ended too early; ask again")

    async def _call(self, method: str, key: str, path: str, **sent: Any) -> Json:
        with self._reached():
            reply = await self._http.request(method, self._at(path), headers=self._headers(key), **sent)
        if reply.status_code != 200:
            raise failure_of(reply)
        answer: Json = reply.json()
        return answer

    def _at(self, path: str) -> str:
        return f"{self.url}/v1{path}"

    def _headers(self, key: str) -> dict[str, str]:
        key = key.strip() or self._settings.own_key
        return {"authorization": f"Bearer {key}"} if key else {}

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise CallFailed(
                f"The gateway at {self.url} does not answer ({type(error).__name__}). Is `make run` running? "
                "This page goes on by itself when it is back."
            ) from error
