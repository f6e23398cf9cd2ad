"""An answer on its way, told in the Responses API's words: one object, or typed events.

Inside is an ordinary Answer, with its retries, its record and its limits; what it sends is translated here. The event
that ends a stream takes the place of `[DONE]`, and so comes when the answer is in the ledger.
"""

import time
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serve.answer import Answer
from serve.gateway import Gateway
from serve.recorder import Asked
from serve.response_items import call_item, message_item, reasoning_item, text_logprobs, text_part
from serve.responses import response_of
from serve.sse import DONE

Json = dict[str, Any]

PARTS = {"reasoning": "reasoning_text", "content": "output_text"}
"""Fields of a chat's delta that are text, and what such a part is called here."""


class ResponseAnswer(Response):
    """ASGI, as Answer is."""

    def __init__(self, gateway: Gateway, asked: Asked) -> None:
        self.background = None
        self._gateway, self._asked = gateway, asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        translate = self._streamed(send) if self._asked.is_stream else self._whole(send)
        await Answer(self._gateway, self._asked)(scope, receive, translate)

    def _whole(self, send: Send) -> Send:
        start: Message = {}

        async def translated(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            completion = self._asked.completion(orjson.loads(message["body"]), self._gateway)
            body = orjson.dumps(response_of(completion, self._asked.is_recorded))
            headers = [header for header in start["headers"] if header[0] != b"content-length"]
            await send({**start, "headers": [*headers, (b"content-length", b"%d" % len(body))]})
            await send({**message, "body": body})

        return translated

    def _streamed(self, send: Send) -> Send:
        events = ResponseEvents(self._asked, self._gateway)

        async def translated(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": events.feed(message["body"])}
            await send(message)

        return translated


class ResponseEvents:
    """Feed it a chat stream's bytes; it gives back what a client of the Responses API may have of them now."""

    def __init__(self, asked: Asked, gateway: Gateway) -> None:
        self._asked, self._gateway = asked, gateway
        self._rest = b""
        self._sequence = 0
        self._created = int(time.time())
        self._texts = dict.fromkeys(PARTS, "")
        self._logprobs: list[Json] = []
        self._calls: list[Json] = []
        self._items: list[str] = []
        """What has begun, in order: names of PARTS, and of calls their number."""
        self._open: str | None = None
        self._finish: str | None = None
        self._usage: Json | None = None

    def feed(self, received: bytes) -> bytes:
        *events, self._rest = (self._rest + received).split(b"\n\n")
        return b"".join(self._translate(event) for event in events)

    def _translate(self, event: bytes) -> bytes:
        if not event.startswith(b"data: "):
            return event + b"\n\n"
        if event == DONE.strip():
            return self._end()
        data = orjson.loads(event[6:])
        if error := data.get("error"):
            # With the envelope as everywhere here, and with its fields where OpenAI's event has them.
            return self._event("error", **{n: error[n] for n in ("message", "code", "param")}, error=error)
        begun = b"" if self._sequence else self._begin(data)
        self._usage = data.get("usage") or self._usage
        return begun + b"".join(self._add(delta) for delta in data["choices"])

    def _begin(self, data: Json) -> bytes:
        self._created = data["created"]
        response = self._response(is_begun=False)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def _add(self, delta: Json) -> bytes:
        self._finish = delta.get("finish_reason") or self._finish
        told = text_logprobs(delta.get("logprobs"))
        self._logprobs += told
        made = []
        for name, kind in PARTS.items():
            if text := delta["delta"].get(name):
                made.append(self._enter(name))
                self._texts[name] += text
                extra = {"logprobs": told} if name == "content" else {}
                made.append(self._event(f"response.{kind}.delta", **self._place(name), delta=text, **extra))
        made += [self._add_call(call) for call in delta["delta"].get("tool_calls") or ()]
        return b"".join(made)

    def _add_call(self, delta: Json) -> bytes:
        index, function = delta.get("index", 0), delta.get("function") or {}
        while len(self._calls) <= index:
            self._calls.append({"id": "", "function": {"name": "", "arguments": ""}})
        call = self._calls[index]
        call["id"] = delta.get("id") or call["id"]
        call["function"]["name"] += function.get("name") or ""
        made = self._enter(str(index))
        if arguments := function.get("arguments"):
            call["function"]["arguments"] += arguments
            kind = "response.function_call_arguments.delta"
            made += self._event(kind, item_id=self._item(str(index))["id"], **self._at(str(index)), delta=arguments)
        return made

    def _enter(self, name: str) -> bytes:
        """Begin an item, if it has not begun, and end the one before."""
        if name in self._items:
            return b""
        made = self._leave()
        self._items.append(name)
        self._open = name
        item = self._item(name, "in_progress")
        if name not in PARTS:
            item["arguments"] = ""
            return made + self._event("response.output_item.added", **self._at(name), item=item)
        item["content"] = []
        made += self._event("response.output_item.added", **self._at(name), item=item)
        return made + self._event("response.content_part.added", **self._place(name), part=self._part(name, ""))

    def _leave(self) -> bytes:
        if (name := self._open) is None:
            return b""
        self._open = None
        item, at = self._item(name), self._at(name)
        if name in PARTS:
            extra = {"logprobs": self._told} if name == "content" else {}
            text = self._texts[name]
            made = self._event(f"response.{PARTS[name]}.done", **self._place(name), text=text, **extra)
            made += self._event("response.content_part.done", **self._place(name), part=self._part(name, text))
        else:
            kind, whole = "response.function_call_arguments.done", item["arguments"]
            made = self._event(kind, item_id=item["id"], **at, name=item["name"], arguments=whole)
        return made + self._event("response.output_item.done", **at, item=item)

    def _end(self) -> bytes:
        made = b"" if self._items else self._enter("content")
        made += self._leave()
        response = self._response(is_begun=True)
        return made + self._event(f"response.{response['status']}", response=response)

    def _response(self, is_begun: bool) -> Json:
        message = {name: text for name, text in self._texts.items() if text} | {"tool_calls": self._calls}
        choice = {"index": 0, "message": message, "finish_reason": self._finish}
        choice["logprobs"] = {"content": self._logprobs}
        answer = {"created": self._created, "choices": [choice] if is_begun else [], "usage": self._usage}
        return response_of(self._asked.completion(answer, self._gateway), self._asked.is_recorded)

    @property
    def _told(self) -> list[Json]:
        return self._logprobs if self._asked.sent.get("logprobs") else []

    def _item(self, name: str, status: str | None = None) -> Json:
        number = self._asked.number
        status = status or ("incomplete" if self._finish in ("length", "content_filter") else "completed")
        if name == "reasoning":
            return reasoning_item(number, status, self._texts[name])
        if name == "content":
            return message_item(number, status, self._texts[name], self._told)
        return call_item(number, int(name), status, self._calls[int(name)])

    def _part(self, name: str, text: str) -> Json:
        if name == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return text_part(text, self._told if text else [])

    def _place(self, name: str) -> Json:
        return {"item_id": self._item(name)["id"], "content_index": 0, **self._at(name)}

    def _at(self, name: str) -> Json:
        return {"output_index": self._items.index(name)}

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps(data))
