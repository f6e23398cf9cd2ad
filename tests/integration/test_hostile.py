"""What clients may send instead of requests: bounded memory, and an error that says what was wrong."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from feedback.connection import Ledger
from tests.gateways import RunningGateway, running_gateway, until
from tests.scripted_engine import Script, ScriptedEngine
from tests.wire import JSON, chat_body, head, line

SOON: Any = {"head_timeout_s": 0.3, "body_silence_s": 0.3}
MB = 2**20


@pytest.fixture
async def impatient(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(ledger, tmp_path, engine, **SOON) as gateway:
        yield gateway


async def test_a_head_that_does_not_end_is_refused_after_its_time(impatient: RunningGateway) -> None:
    async with line(impatient.url) as slow:
        await slow.write(head(impatient.url)[:-2])

        status, headers, body = await slow.read()
        left = await slow.rest()

    assert (status, body["error"]["code"], headers["connection"]) == (408, "head_timeout", "close")
    assert headers["x-request-id"].startswith("req-")
    assert left == b""


async def test_a_drop_now_and_then_does_not_prolong_a_heads_time(impatient: RunningGateway) -> None:
    began = asyncio.get_running_loop().time()
    async with line(impatient.url) as slow:
        await slow.write(head(impatient.url)[:-2])
        answer = asyncio.create_task(slow.read())

        def is_answered_after_a_drop_more() -> bool:
            slow.writer.write(b"a: b\r\n")
            return answer.done()

        await until(is_answered_after_a_drop_more, "the gateway has had enough")
        status, _, body = await answer

    assert (status, body["error"]["code"]) == (408, "head_timeout")
    assert asyncio.get_running_loop().time() - began < 10 * SOON["head_timeout_s"]


async def test_who_says_nothing_is_left_without_a_word(impatient: RunningGateway) -> None:
    async with line(impatient.url) as silent, line(impatient.url) as blank:
        await blank.write(b"\r\n")

        assert await silent.rest() == b""
        assert await blank.rest() == b""


async def test_a_body_that_stands_still_is_refused_and_its_request_not_recorded(impatient: RunningGateway) -> None:
    async with line(impatient.url) as slow:
        await slow.write(head(impatient.url, JSON, "content-length: 100") + b'{"model"')

        status, _, body = await slow.read()

    assert (status, body["error"]["code"]) == (408, "body_timeout")
    assert (await impatient.chat()).status_code == 200
    assert await impatient.count('heed_requests_total{method="POST",status="500"}') == 0
    await until(lambda: given_up(impatient), "the request is counted as given up")


async def given_up(gateway: RunningGateway) -> bool:
    return await gateway.count('heed_requests_total{method="POST",status="499"}') == 1


async def test_an_answer_may_take_longer_than_a_head(impatient: RunningGateway) -> None:
    impatient.engine.pace_s = SOON["head_timeout_s"] / 4
    impatient.engine.scripts.append(Script(tokens=["word "] * 8))

    async with line(impatient.url) as asking:
        body = chat_body()
        await asking.write(head(impatient.url, JSON, f"content-length: {len(body)}") + body + b"POST /v1/vo")

        status, _, answer = await asking.read()
        second, _, refusal = await asking.read()

    assert (status, answer["object"]) == (200, "chat.completion")
    assert (second, refusal["error"]["code"]) == (408, "head_timeout")


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param([f"a{n}: {'x' * 100}" for n in range(1000)], id="many headers"),
        pytest.param([f"a: {'x' * 100_000}"], id="a long header"),
        pytest.param([f"{'x' * 100_000}: a"], id="a long name"),
    ],
)
@pytest.mark.parametrize("pieces", [1, 50])
async def test_a_head_too_large_is_refused(gateway: RunningGateway, bomb: list[str], pieces: int) -> None:
    bytes_ = head(gateway.url, *bomb, method="GET", path="/healthz")
    size = -(-len(bytes_) // pieces)
    async with line(gateway.url) as rude:
        await rude.write(*(bytes_[at : at + size] for at in range(0, len(bytes_), size)))

        status, headers, body = await rude.read()

    assert (status, body["error"]["code"], headers["connection"]) == (431, "head_too_large", "close")


async def test_an_address_too_long_is_refused(gateway: RunningGateway) -> None:
    async with line(gateway.url) as rude:
        await rude.write(head(gateway.url, method="GET", path="/v1/votes?after=" + "x" * 100_000))

        status, _, body = await rude.read()

    assert (status, body["error"]["code"]) == (431, "head_too_large")


async def test_a_head_that_never_ends_is_not_kept(gateway: RunningGateway) -> None:
    async with line(gateway.url) as rude:
        with pytest.raises(ConnectionError):
            await rude.write(head(gateway.url)[:-2], *([b"x" * MB] * 50))


async def test_trailers_count_as_a_head_does(gateway: RunningGateway) -> None:
    async with line(gateway.url) as rude:
        await rude.write(head(gateway.url, JSON, "transfer-encoding: chunked"), b"1\r\n{\r\n0\r\n")
        await rude.write(*[b"a: " + b"x" * 10_000 + b"\r\n"] * 100)

        status, _, body = await rude.read()

    assert (status, body["error"]["code"]) == (431, "head_too_large")


@pytest.mark.parametrize("said", ["with its length", "in chunks"])
async def test_a_body_of_50_mb_is_refused_before_it_has_come(gateway: RunningGateway, said: str) -> None:
    chunk = b"x" * MB
    async with line(gateway.url) as rude:
        if said == "with its length":
            await rude.write(head(gateway.url, JSON, f"content-length: {50 * MB}"))
        else:
            await rude.write(head(gateway.url, JSON, "transfer-encoding: chunked"))
            await rude.write(*[b"%x\r\n" % MB + chunk + b"\r\n"] * 11)

        status, _, body = await rude.read()

        assert (status, body["error"]["code"]) == (413, "body_too_large")
        if said == "with its length":
            await rude.write(*[chunk] * 50)
        else:
            await rude.write(*[b"%x\r\n" % MB + chunk + b"\r\n"] * 39, b"0\r\n\r\n")
        await rude.write(head(gateway.url, method="GET", path="/healthz"))
        assert (await rude.read())[0] == 200  # what was still on its way was taken, and the connection lives


NOT_HTTP = {
    "tls": bytes.fromhex("16030100a5010000a10303") + bytes(range(100)),
    "noise": bytes(range(128, 256)) * 4 + b"\r\n\r\n",
    "another protocol": b"EHLO example.org\r\n",
    "a length that is none": b"POST /v1/votes HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: many\r\n\r\n",
    "two lengths": b"POST /v1/votes HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    "length and chunks": b"POST /v1/votes HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 1\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a line end in a name": b"GET /healthz HTTP/1.1\r\nho\nst: 127.0.0.1\r\n\r\n",
    "bytes in the address": b"GET /v1/models/\xff\xfe HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
}


@pytest.mark.parametrize("sent", NOT_HTTP.values(), ids=NOT_HTTP.keys())
async def test_what_is_not_http_is_told_so(gateway: RunningGateway, sent: bytes) -> None:
    async with line(gateway.url) as rude:
        await rude.write(sent)

        status, headers, body = await rude.read()

    assert (status, body["error"]["code"], headers["connection"]) == (400, "invalid_http", "close")


NOT_TEXT = {
    "invalid utf-8": b'{"model": "heed\xff\xfe", "messages": []}',
    "half a character": b'{"model": "heed", "input": "\\ud800"}',
    "utf-16": '{"model": "heed"}'.encode("utf-16"),
    "not a number": b'{"model": NaN, "rating": Infinity}',
    "a number too large": b'{"model": 1' + b"0" * 5000 + b"}",
    "depth": b'{"model":' * 50_000,
    "depth that ends": b'{"metadata":' * 2000 + b"1" + b"}" * 2000,
    "a bare string": b'"heed"',
    "null": b"null",
    "nothing": b"",
    "nul": b'{"model": "\\u0000"}',
}
POSTS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/votes",
    "/v1/preferences",
    "/v1/comparisons",
    "/v1/comparisons/cmp-0/vote",
    "/v1/comparisons/next",
    "/v1/chat/completions/chatcmpl-0",
    "/v1/fine_tuning/jobs",
    "/v1/adapters/rollback",
    "/v1/prompts",
    "/v1/keys",
]


@pytest.mark.parametrize("sent", NOT_TEXT.values(), ids=NOT_TEXT.keys())
async def test_what_is_no_text_is_refused_wherever_json_is_taken(gateway: RunningGateway, sent: bytes) -> None:
    for path in POSTS:
        reply = await gateway.operator.post(path, content=sent, headers={"content-type": "application/json"})

        assert 400 <= reply.status_code < 500, (path, reply.text)
        assert reply.json()["error"]["code"], path
        assert "\ufffd" not in reply.text


@pytest.mark.parametrize("bytes_", ["%ff", "%00", "%ed%a0%80", "%2e%2e%2f"])
async def test_no_bytes_in_an_address_break_anything(gateway: RunningGateway, bytes_: str) -> None:
    for path in ("/v1/votes/{}", "/v1/models/{}", "/v1/responses/{}", "/v1/adapters/{}", "/{}", "/v1/votes?after={}"):
        reply = await gateway.operator.get(path.format(bytes_))

        assert reply.status_code < 500, (path, reply.text)
        assert reply.status_code == 200 or reply.json()["error"]["code"], path


async def test_bytes_in_a_header_break_nothing(gateway: RunningGateway) -> None:
    named = ("authorization: Bearer \xff", "x-heed-vote-token: \xff", "idempotency-key: \xff", "x-heed-best-of: \xff")
    for odd in (*named, "host: \xff", "content-type: application/json; charset=\xff", "traceparent: \xff"):
        async with line(gateway.url) as rude:
            body = b'{"completion_id": "chatcmpl-0", "rating": "up"}'
            await rude.write(head(gateway.url, JSON, odd, f"content-length: {len(body)}", path="/v1/votes") + body)

            status, _, told = await rude.read()

        assert 400 <= status < 500, (odd, told)
        assert told["error"]["code"]


async def test_other_protocols_are_answered_in_this_one(gateway: RunningGateway) -> None:
    body = chat_body()
    for asked in ("websocket", "h2c"):
        async with line(gateway.url) as asking:
            more = ("connection: upgrade", f"upgrade: {asked}", f"content-length: {len(body)}")
            await asking.write(head(gateway.url, JSON, *more) + body)

            assert (await asking.read())[0] == 200


async def test_requests_sent_at_once_are_answered_in_order(gateway: RunningGateway) -> None:
    async with line(gateway.url) as asking:
        await asking.write(
            b"".join(head(gateway.url, method="GET", path=path) for path in ("/healthz", "/v1/models", "/no"))
        )

        assert [(await asking.read())[0] for _ in range(3)] == [200, 200, 404]


async def test_connections_beyond_the_limit_are_told_so(ledger: Ledger, tmp_path: Path, engine: ScriptedEngine) -> None:
    async with running_gateway(ledger, tmp_path, engine, connection_limit=20) as gateway:
        async with AsyncExitStack() as opened:
            lines = [await opened.enter_async_context(line(gateway.url)) for _ in range(40)]
            for each in lines:
                await each.write(head(gateway.url, method="GET", path="/healthz"))
            told = [await each.read() for each in lines]

        refused = [(code, body["error"]["code"], headers["retry-after"]) for code, headers, body in told if code != 200]
        assert refused == [(503, "too_many_connections", "5")] * len(refused)
        assert 20 <= len(refused) <= 25  # the tests' own clients hold some
        await until(lambda: answers(gateway), "there is room again")


async def answers(gateway: RunningGateway) -> bool:
    async with line(gateway.url) as asking:
        await asking.write(head(gateway.url, method="GET", path="/healthz"))
        return (await asking.read())[0] == 200
