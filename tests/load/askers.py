"""Clients that each ask for one answer after the other; a process of its own, so that its work counts for nobody else.

`python -m tests.load.askers PORT CLIENTS COUNT KEY [stream] [unrecorded]`; prints one line of JSON when all are
answered. HTTP by hand: the load must cost less than what it measures.
"""

import asyncio
import json
import sys
import time
from typing import Any

import httptools
import orjson
import uvloop

from tests.load.hop_upstream import EVENTS, MODEL

BODY_BYTES = 752
DONE = b"data: [DONE]\n\n"


def body(is_stream: bool, is_recorded: bool) -> bytes:
    """A short chat; the model's name is one that every contestant knows."""
    asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": ""}], "temperature": 0.7}
    if is_stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    if not is_recorded:
        asked["store"] = False
    missing = BODY_BYTES - len(orjson.dumps(asked))
    asked["messages"][0]["content"] = ("How do I build a kite that flies in little wind? " * 20)[:missing]
    return orjson.dumps(asked)


class Asker(asyncio.Protocol):
    def __init__(self, request: bytes, count: int, waits_s: list[float]) -> None:
        self._request = request
        self._left = count
        self._waits_s = waits_s
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._left -= 1
        self._events = 0
        self._tail = b""
        self._began = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._events += data.count(b"data: ")
        self._tail = (self._tail + data)[-len(DONE) :]

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        is_whole = self._tail == DONE and self._events > EVENTS if self._events else self._tail.endswith(b"}")
        if status != 200 or not is_whole:
            self.ended.set_exception(AssertionError(f"{status}, {self._events} events, {self._tail!r} at the end"))
            return
        self._waits_s.append(time.perf_counter() - self._began)
        if self._left:
            self._ask()
        else:
            self._transport.close()
            self.ended.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(ConnectionError(f"the connection broke with {self._left} left: {error}"))


async def main() -> None:
    port, clients, count, key = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    sent = body("stream" in sys.argv[5:], "unrecorded" not in sys.argv[5:])
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(sent)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    waits_s: list[float] = []
    began = time.perf_counter()
    opened = await asyncio.gather(
        *(
            loop.create_connection(lambda: Asker(head.encode() + sent, count // clients, waits_s), "127.0.0.1", port)
            for _ in range(clients)
        )
    )
    await asyncio.gather(*(asker.ended for _, asker in opened))
    wall_s = time.perf_counter() - began
    waits_s.sort()
    p50_us, p99_us = (1e6 * waits_s[int(len(waits_s) * share)] for share in (0.5, 0.99))
    print(json.dumps({"wall_s": wall_s, "answers": len(waits_s), "p50_us": p50_us, "p99_us": p99_us}))


if __name__ == "__main__":
    uvloop.run(main())
