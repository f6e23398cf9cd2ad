"""A vLLM without a model, for `bench_hop`: `python -m tests.load.hop_upstream PORT`, in a process of its own.

Answers of 1.5 KB at once; streams of 128 events of 230 bytes, one for every stream in each step, as an engine that
batches gives them. HTTP by hand, so that waiting for it costs nobody much.
"""

import asyncio
import sys
from typing import Any

import httptools
import orjson
import uvloop

MODEL = "heed-base"
STEP_S = 0.04
"""Of a model that gives each stream 25 tokens a second."""

EVENTS = 128
EVENT_BYTES = 230
ANSWER_BYTES = 1500

LISTED = orjson.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "root": MODEL, "parent": None}]})
PROBED: dict[str, Any] = {
    "content": [{"token": f"token_id:{i}", "logprob": -0.5, "bytes": None, "top_logprobs": []} for i in range(4)]
}
USAGE = {"prompt_tokens": 120, "total_tokens": 248, "completion_tokens": 128}


def whole(number: bytes, is_probe: bool) -> bytes:
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}
    choice["logprobs"] = PROBED if is_probe else None
    answer = {"id": "", "object": "chat.completion", "created": 1_700_000_000, "model": MODEL, "choices": [choice]}
    answer["usage"] = USAGE
    missing = ANSWER_BYTES - len(orjson.dumps(answer)) - len(number)
    choice["message"]["content"] = ("Tie two light sticks into a cross. " * 50)[: max(0, missing)]
    return orjson.dumps(answer | {"id": number.decode()})


def event(number: bytes, choices: list[dict[str, Any]], **more: Any) -> bytes:
    chunk = {"id": number.decode(), "object": "chat.completion.chunk", "created": 1_700_000_000, "model": MODEL}
    return b"data: " + orjson.dumps(chunk | {"choices": choices} | more) + b"\n\n"


def token(number: bytes, letter: str) -> bytes:
    choice = {"index": 0, "delta": {"content": ""}, "logprobs": None, "finish_reason": None, "token_ids": None}
    choice["delta"] = {"content": " ".ljust(EVENT_BYTES - len(event(number, [choice])), letter)}
    return event(number, [choice])


def framed(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def reply(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class Engine:
    """The streams that are being given, a token for each in every step."""

    def __init__(self) -> None:
        self._left: dict[Connection, int] = {}
        asyncio.get_running_loop().call_later(STEP_S, self._step)

    def begin(self, connection: "Connection") -> None:
        self._left[connection] = EVENTS

    def end(self, connection: "Connection") -> None:
        self._left.pop(connection, None)

    def _step(self) -> None:
        asyncio.get_running_loop().call_later(STEP_S, self._step)
        for connection in list(self._left):
            self._left[connection] -= 1
            if self._left[connection]:
                connection.transport.write(connection.tokens[self._left[connection] % 2])
            else:
                self.end(connection)
                connection.finish()


class Connection(asyncio.Protocol):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._number = b"none"
        self._path = b""
        self.tokens: tuple[bytes, ...] = ()
        """Two in turn: LiteLLM gives up an answer that says one thing a hundred times."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._engine.end(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body, self._number, self._path = b"", b"none", b""

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id":
            self._number = value

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        number = b"chatcmpl-" + self._number
        if self._path.startswith(b"/v1/models"):
            self.transport.write(reply(LISTED))
        elif not self._path.startswith(b"/v1/chat/completions"):
            self.transport.write(reply(b"{}"))
        elif b'"stream":true' in self._body or b'"stream": true' in self._body:
            self.tokens = tuple(framed(token(number, letter)) for letter in "ab")
            first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            self.transport.write(head + b"transfer-encoding: chunked\r\n\r\n" + framed(event(number, [first])))
            self._engine.begin(self)
        else:
            self.transport.write(reply(whole(number, b'"return_tokens_as_token_ids"' in self._body)))

    def finish(self) -> None:
        number = b"chatcmpl-" + self._number
        last = {"index": 0, "delta": {"content": ""}, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
        usage = framed(event(number, [], usage=USAGE)) if b'"include_usage"' in self._body else b""
        self.transport.write(framed(event(number, [last])) + usage + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def main() -> None:
    loop = asyncio.get_running_loop()
    engine = Engine()
    server = await loop.create_server(lambda: Connection(engine), "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
