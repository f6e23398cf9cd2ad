"""Whoever asks a real stack for streamed answers, and how long each of them waited."""

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import httptools
import orjson

TOKENS = (16, 96)
"""Of an answer, from the least to the most."""

PROMPTS = ("How do I build a kite?", "How do I bake bread?", "How do I mend a bicycle?", "How do I plant a tree?")


class Waits(NamedTuple):
    """Of one answer: from the request's last byte to each token, in seconds."""

    at_s: list[float]

    @property
    def first_s(self) -> float:
        return self.at_s[0]

    @property
    def whole_s(self) -> float:
        return self.at_s[-1]

    @property
    def step_s(self) -> float:
        return (self.at_s[-1] - self.at_s[0]) / (len(self.at_s) - 1)


class Asker(asyncio.Protocol):
    """One streamed answer. By hand, for on two cores the client shares them with what it measures."""

    def __init__(self, request: bytes, tokens: int) -> None:
        self._request = request
        self._tokens = tokens
        self._parser = httptools.HttpResponseParser(self)
        self._at_s: list[float] = []
        self.ended: asyncio.Future[Waits] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)
        self._began = time.perf_counter()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        # Each token is an event with a logprob; the events of role, end and usage have none.
        self._at_s += [time.perf_counter() - self._began] * data.count(b'"bytes":')

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self._transport.close()
        if status == 200 and len(self._at_s) == self._tokens:
            self.ended.set_result(Waits(self._at_s))
        else:
            self.ended.set_exception(AssertionError(f"{status}, {len(self._at_s)} of {self._tokens} tokens"))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(ConnectionError(f"the connection broke: {error}"))


@dataclass(frozen=True)
class Real:
    """A stack that answers, and the process of its gateway where that is on this machine."""

    host: str
    port: int
    key: str
    pid: int | None

    async def answer(self, tokens: int, prompt: str) -> Waits:
        asked = {
            "model": "heed",
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "logprobs": True,
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        body = orjson.dumps(asked)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self.host}\r\ncontent-type: application/json\r\n"
        if self.key:
            head += f"authorization: Bearer {self.key}\r\n"
        request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        _, asker = await asyncio.get_running_loop().create_connection(
            lambda: Asker(request, tokens), self.host, self.port
        )
        return await asker.ended

    async def closed(self, clients: int, answers: int, tokens: tuple[int, int], dice: random.Random) -> list[Waits]:
        """Each client asks again when it has its answer."""
        left = iter(range(answers))

        async def client() -> list[Waits]:
            return [await self.answer(dice.randint(*tokens), dice.choice(PROMPTS)) for _ in left]

        found = await asyncio.gather(*(client() for _ in range(clients)))
        return [waits for each in found for waits in each]

    async def open(self, per_s: float, seconds: float, dice: random.Random) -> list[Waits]:
        """Requests that come by chance, whoever still waits."""
        clock, end = time.perf_counter, time.perf_counter() + seconds
        asked = []
        at = clock()
        while (at := at + dice.expovariate(per_s)) < end:
            await asyncio.sleep(max(0.0, at - clock()))
            asked.append(asyncio.create_task(self.answer(dice.randint(*TOKENS), dice.choice(PROMPTS))))
        return (await asyncio.gather(*asked))[len(asked) // 10 :]
