"""Clients that stream one answer after the other, and what each answer came to."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx

PROMPTS = ("How do I build a kite?", "How do I bake bread?", "How do I mend a bicycle?", "How do I plant a tree?")


@dataclass(eq=False)
class Stream:
    prompt: str
    began: float
    user: str = "alone"
    """By whom a canary is shared out."""
    first: float | None = None
    heard: float = 0.0
    ended: float | None = None
    models: set[str] = field(default_factory=set)
    text: str = ""
    failure: str = ""
    """In the words of the error event, or of the status before the first byte."""


def unlike(streams: Sequence[Stream], own: Mapping[tuple[str, str], str]) -> list[Stream]:
    """Answers that are not their adapter's own, or its beginning where they failed."""

    def is_own(stream: Stream) -> bool:
        text = own[min(stream.models), stream.prompt]
        return text.startswith(stream.text) if stream.failure else text == stream.text

    return [stream for stream in streams if stream.models and not is_own(stream)]


class Crowd:
    def __init__(self, http: httpx.AsyncClient, clients: int, tokens: int, model: str = "heed") -> None:
        self.streams: list[Stream] = []
        self._http = http
        self._model = model
        self._tokens = tokens
        self._is_over = False
        self._clients = [asyncio.create_task(self._go_on(n)) for n in range(clients)]

    async def end(self) -> None:
        self._is_over = True
        await asyncio.gather(*self._clients)

    async def some(self, count: int) -> None:
        """Wait for so many more answers."""
        wanted = self.ended + count
        await until(lambda: self.ended >= wanted, f"{count} more answers")

    @property
    def ended(self) -> int:
        return sum(stream.ended is not None for stream in self.streams)

    @property
    def under_way(self) -> list[Stream]:
        return [stream for stream in self.streams if stream.first is not None and stream.ended is None]

    async def _go_on(self, number: int) -> None:
        while not self._is_over:
            stream = Stream(PROMPTS[number % len(PROMPTS)], time.perf_counter(), f"client-{number}")
            self.streams.append(stream)
            await answer(self._http, self._model, stream, self._tokens)


async def answer(http: httpx.AsyncClient, model: str, stream: Stream, tokens: int) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": stream.prompt}],
        "user": stream.user,
        "stream": True,
        "temperature": 0,
        "max_tokens": tokens,
    }
    async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            stream.failure = (await reply.aread()).decode()
        is_done = False
        async for line in reply.aiter_lines():
            if not line.startswith("data: "):
                continue
            stream.heard = time.perf_counter()
            stream.first = stream.first or stream.heard
            if is_done := line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                stream.failure = event["error"]["message"]
                continue
            stream.models.add(event["model"])
            for choice in event["choices"]:
                stream.text += choice["delta"].get("content") or ""
    if not is_done and not stream.failure:
        stream.failure = "the stream ended without [DONE]"
    stream.ended = time.perf_counter()


async def references(http: httpx.AsyncClient, adapters: Sequence[str], tokens: int) -> dict[tuple[str, str], str]:
    """What each adapter answers to each prompt, asked alone by its own name."""
    found = {}
    for adapter in adapters:
        for prompt in PROMPTS:
            stream = Stream(prompt, time.perf_counter())
            await answer(http, adapter, stream, tokens)
            assert not stream.failure, stream.failure
            found[adapter, prompt] = stream.text
    return found


async def until(is_so: Callable[[], object], what: str, deadline_s: float = 120) -> None:
    end = time.monotonic() + deadline_s
    while not is_so():
        assert time.monotonic() < end, f"{what}: not within {deadline_s:g} s"
        await asyncio.sleep(0.01)
