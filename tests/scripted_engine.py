"""A stand-in for vLLM 0.32 that starts in no time and says what it is told to.

It passes the same contract suite as the real one (tests/integration/test_engine_contract.py), quirks included: success
of a load is plain text, a repeated load is 400, an unknown model is 404, an error within a stream is followed by
`[DONE]`, a restart forgets every adapter, and what tests/integration/test_engine_pitfalls.py is about.
"""

import asyncio
import hashlib
import json
import math
import re
import struct
import zlib
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from feedback.adapter_files import CONFIG, WEIGHTS, adapter_config, expected_shapes
from tests.processes import free_port

Json = dict[str, Any]
MAX_RANK = 16
CONTEXT = 1024
KV_BLOCK = 400
"""Characters; a block of vLLM's on CPU has 128 tokens."""
TINY = {"hidden_size": 2, "intermediate_size": 2, "num_attention_heads": 1, "num_hidden_layers": 1}
"""The config of a base model whose adapters take few bytes."""
OTHERS = (" a", " the", " no", " steps", "!", " and", " of", " to", " in", " is")
"""What it would also have said, wherever it is asked."""


@dataclass
class Script:
    """How one request is answered. Without `gate` at once; with one, a token for each permit released."""

    tokens: Sequence[str] = ("a", " scripted", " answer")
    finish: str = "stop"
    status: int = 200
    message: str = "scripted"
    breaks_after: int | None = None
    error_after: int | None = None
    gate: asyncio.Semaphore | None = None
    tool_calls: list[Json] | None = None
    samples: Sequence[Sequence[str]] = ()
    """The tokens of each choice of a whole answer, where they shall differ."""


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass
class ScriptedEngine:
    base_models: list[str] = field(default_factory=lambda: ["base"])
    key: str = ""
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    scripts: deque[Script] = field(default_factory=deque)
    habits: dict[str, Script] = field(default_factory=dict)
    """How a model answers whenever nothing else is scripted."""
    loaded: dict[str, str] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    bodies: list[Json] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    """Of every request that came, as it stood in its first line."""
    deadly: set[str] = field(default_factory=set)
    unloadable: set[str] = field(default_factory=set)
    """Adapters that this engine, and perhaps no other, fails to load."""
    slots: int = 8
    """Adapters that are computed with at once (--max-loras); requests for more of them wait for one to be done with."""
    room: int = 16
    """Adapters whose weights are kept (--max-cpu-loras); those of the one used longest ago make way, and are read again
    from its files when it is asked for."""
    works: asyncio.Event = field(default_factory=_set_event)
    """Cleared, it is paused: it works on nothing, and seems well."""
    is_spoiled: bool = False
    """NaN is in freed KV blocks: whatever is shorter than one answers with it, a longer prompt is written over it."""
    answers: asyncio.Event = field(default_factory=_set_event)
    """Cleared, it takes connections and says nothing more, on none of them, as an engine does whose loop hangs."""
    is_healthy: bool = True
    can_sleep: bool = True
    """Whether it was started with VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode."""
    awake: asyncio.Event = field(default_factory=_set_event)
    naps: int = 0
    wakes: bool = True
    """Whether it wakes when told, or fails to, as when its memory is taken."""
    drift: float = 0
    """What waking does to every log-probability, until a restart."""
    _drifted: float = 0
    pace_s: float = 0
    _runner: web.AppRunner | None = None
    _kept: dict[str, float] = field(default_factory=dict)
    """The weights of adapters as they were read, the last used at the end."""
    _in_place: set[str] = field(default_factory=set)
    _cached: dict[tuple[str, str], float] = field(default_factory=dict)
    """Which weights the prefix cache was computed with, by an adapter's name and path."""
    _batch: list[str] = field(default_factory=list)
    """The models of what it works on."""
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when something is done with."""
    _dying: asyncio.Task[None] | None = None

    @property
    def is_alive(self) -> bool:
        return self._runner is not None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=2**26, middlewares=[self._note])
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/tokenize", self._tokenize)
        if self.can_sleep:
            app.router.add_post("/sleep", self._sleep)
            app.router.add_post("/wake_up", self._wake)
            app.router.add_get("/is_sleeping", self._is_sleeping)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port, reuse_address=True).start()

    async def stop(self) -> None:
        """As `kill -9` does: connections end, and whatever was loaded is forgotten."""
        if self._runner is not None:
            for connection in list(self._runner.server.connections if self._runner.server else ()):
                connection.force_close()
                if connection.transport is not None:
                    connection.transport.abort()
            await self._runner.cleanup()
        self._runner = None
        for forgotten in (self.loaded, self._kept, self._in_place, self._cached):
            forgotten.clear()
        self.is_spoiled, self._drifted = False, 0
        self.awake.set()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    @web.middleware
    async def _note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.targets.append(f"{request.method} {request.raw_path}")
        return await handler(request)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.is_healthy else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=f'vllm:num_requests_running{{engine="0",model_name="base"}} {len(self.running)}.0\n')

    async def _models(self, request: web.Request) -> web.Response:
        await self.answers.wait()
        if refused := self._unauthorized(request):
            return refused
        cards: list[Json] = [{"id": name, "root": "/models/pocket", "parent": None} for name in self.base_models]
        cards += [{"id": name, "root": path, "parent": self.base_models[0]} for name, path in self.loaded.items()]
        return web.json_response({"object": "list", "data": [{"object": "model", **card} for card in cards]})

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        name, path = body.get("lora_name"), Path(body.get("lora_path") or "")
        if not name or not body.get("lora_path"):
            return _error(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.base_models:
            return _error(400, "InvalidUserInput", f"The lora adapter '{name}' conflicts with a served base model.")
        is_in_place = body.get("load_inplace") is True
        if name in self.loaded and not is_in_place:
            return _error(
                400, "InvalidUserInput", f"The lora adapter '{name}' has already been loaded. If you want to …"
            )
        assert self.awake.is_set(), "an adapter's memory is not there while it sleeps"
        self.loads.append(name)
        if name in self.unloadable:
            return _error(500, "InternalServerError", f"Loading lora {name} failed: scripted")
        if not (path / "adapter_config.json").is_file():
            return _error(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
        rank = json.loads((path / "adapter_config.json").read_text()).get("r", 8)
        if rank > MAX_RANK:
            text = f"LoRA rank {rank} is greater than max_lora_rank {MAX_RANK}."
            return _error(500, "InternalServerError", text)
        self.loaded[name] = str(path)
        if is_in_place:
            self._in_place.add(name)
        self._kept.pop(name, None)
        self._keep(name)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json()).get("lora_name")
        if self.loaded.pop(name, None) is None:
            return _error(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _sleep(self, request: web.Request) -> web.Response:
        """What is under way stands still, and what comes waits (`mode=keep`; the others cut off or wait it out)."""
        if refused := self._unauthorized(request):
            return refused
        if (request.query.get("level"), request.query.get("mode")) != ("1", "keep"):
            return _error(400, "BadRequestError", "the scripted engine knows level=1&mode=keep alone")
        self.naps += 1
        self.awake.clear()
        return web.json_response({"status": "sleeping", "level": 1})

    async def _wake(self, request: web.Request) -> web.Response:
        if refused := self._unauthorized(request):
            return refused
        if not self.wakes:
            return _error(500, "InternalServerError", "CUDA Error: out of memory")
        self._drifted = self.drift
        self.awake.set()
        return web.json_response({"status": "awake", "tags": None})

    async def _is_sleeping(self, request: web.Request) -> web.Response:
        if refused := self._unauthorized(request):
            return refused
        return web.json_response({"is_sleeping": not self.awake.is_set()})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body.get("model") not in (self.loaded.keys() | set(self.base_models)):
            return _error(404, "NotFoundError", f"The model `{body.get('model')}` does not exist.", "model")
        if "prompt" not in body:
            return _error(400, "BadRequestError", "1 validation error: prompt: Field required", "prompt")
        ids = ids_of(pieces(body["prompt"]))
        return web.json_response({"count": len(ids), "max_model_len": CONTEXT, "tokens": ids})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        if refused := self._unauthorized(request):
            return refused
        body = await request.json()
        await self.answers.wait()
        self.bodies.append(body)
        model = body.get("model") or self.base_models[0]
        if model not in self.loaded and model not in self.base_models:
            return _error(404, "NotFoundError", f"The model `{model}` does not exist.", "model")
        if refused := _too_long(body):
            return refused
        if body.get("stream") and body.get("prompt_logprobs"):
            text = "`prompt_logprobs` are not available when `stream=True`."
            return _error(400, "BadRequestError", text, "prompt_logprobs")
        await self.works.wait()
        await self.awake.wait()
        while len({*self._batch, model} - set(self.base_models)) > self.slots:
            await self._ended.wait()
        try:
            weights = self._weights(model)
        except FileNotFoundError:
            self._dying = asyncio.create_task(self.stop())
            await asyncio.shield(self._dying)
            raise
        if math.isnan(weights):
            self.is_spoiled = True
        elif self.is_spoiled and len(str(body.get("messages"))) < KV_BLOCK:
            weights = math.nan
        elif self.is_spoiled:
            self.is_spoiled = False
        is_probe = body.get("temperature") == 0 and body.get("return_tokens_as_token_ids") is True
        self.log.append(f"{'probe' if is_probe else 'answer'} {model}")
        script = Script()
        if not is_probe:
            script = self.scripts.popleft() if self.scripts else self.habits.get(model, script)
        if script.status != 200:
            return _error(script.status, "InternalServerError", script.message)
        if math.isnan(weights) and body.get("logprobs"):
            return _error(400, "BadRequestError", "Out of range float values are not JSON compliant: nan")
        answer = _Answer(request, body, model, script, weights)
        self.running.append(answer.id)
        self._batch.append(model)
        try:
            if model in self.deadly:  # whoever runs the test kills the engine now
                await asyncio.Event().wait()
            return await (self._stream(answer) if body.get("stream") else self._whole(answer))
        except (asyncio.CancelledError, ConnectionError):
            self.aborted.append(answer.id)
            raise
        finally:
            self.running.remove(answer.id)
            self._batch.remove(model)
            self._ended.set()
            self._ended = asyncio.Event()

    async def _whole(self, answer: "_Answer") -> web.StreamResponse:
        async for index, _ in self._paced(answer.script):
            if index == answer.script.breaks_after:
                assert answer.request.transport is not None
                answer.request.transport.abort()
                raise ConnectionResetError
        return web.json_response(answer.whole(), dumps=_compact)

    async def _stream(self, answer: "_Answer") -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(answer.request)
        script, wants_usage = answer.script, (answer.body.get("stream_options") or {}).get("include_usage")
        for choice in range(answer.n):
            opening = answer.chunk(choice, {"role": "assistant", "content": ""})
            await _send(response, opening | answer.prompt_ids())
        async for index, token in self._paced(script):
            if index == script.error_after:
                await _send(
                    response, {"error": {"message": script.message, "type": "InternalServerError", "code": 500}}
                )
                await response.write(b"data: [DONE]\n\n")
                return response
            if index == script.breaks_after:
                assert answer.request.transport is not None
                answer.request.transport.abort()
                raise ConnectionResetError
            if answer.model in self._in_place:
                answer.weights = self._read(answer.model)
            finish = answer.finish if index == len(script.tokens) - 1 else None
            for choice in range(answer.n):
                await _send(response, answer.chunk(choice, {"content": token}, finish, index))
        if wants_usage:
            await _send(response, answer.chunk(None, {}) | {"usage": answer.usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _paced(self, script: Script) -> AsyncIterator[tuple[int, str]]:
        for index, token in enumerate(script.tokens):
            if script.gate is not None:
                await script.gate.acquire()
            if self.pace_s:
                await asyncio.sleep(self.pace_s)
            await self.answers.wait()
            await self.awake.wait()
            yield index, token

    def _weights(self, model: str) -> float:
        """A number that stands for what a request is computed with; 0 for the base alone and the zero adapter. Raises
        FileNotFoundError."""
        if model not in self.loaded:  # on CPU the base gets, beside adapters, the last slot's
            beside = [name for name in self._batch if name in self._kept]
            return self._drifted + (self._kept[beside[-1]] if beside else 0.0)
        return self._drifted + self._cached.setdefault((model, self.loaded[model]), self._keep(model))

    def _keep(self, name: str) -> float:
        """Raises FileNotFoundError."""
        self._kept[name] = weights = self._kept.pop(name) if name in self._kept else self._read(name)
        while len(self._kept) > self.room:
            del self._kept[next(iter(self._kept))]
        return weights

    def _read(self, name: str) -> float:
        """Raises FileNotFoundError."""
        (weights,) = struct.unpack("<f", (Path(self.loaded[name]) / WEIGHTS).read_bytes()[-4:])
        return math.nan if weights > 1e4 else float(weights)  # large ones overflow on the way

    def _unauthorized(self, request: web.Request) -> web.Response | None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return None


class _Answer:
    def __init__(self, request: web.Request, body: Json, model: str, script: Script, weights: float) -> None:
        self.request, self.body, self.model, self.script, self.weights = request, body, model, script, weights
        self.is_text = "prompt" in body
        self.id = ("cmpl-" if self.is_text else "chatcmpl-") + request.headers.get("x-request-id", "none")
        self.n = body.get("n") or 1
        self.tells_ids = bool(body.get("return_token_ids")) and not self.is_text
        self.finish = "length" if body.get("max_tokens") == len(script.tokens) else script.finish
        completion = sum(len(self.tokens(choice)) for choice in range(self.n))
        self.usage = {"prompt_tokens": 7, "total_tokens": 7 + completion, "completion_tokens": completion}

    def tokens(self, choice: int) -> Sequence[str]:
        return self.script.samples[choice] if self.script.samples else self.script.tokens

    def _logprobs(self, tokens: Sequence[str]) -> Json | None:
        if not self.body.get("logprobs"):
            return None
        if self.body.get("return_tokens_as_token_ids"):
            tokens = [f"token_id:{index}" for index in range(len(tokens))]
        return {
            "content": [{"token": t, "logprob": -0.5 - self.weights, "bytes": None, "top_logprobs": []} for t in tokens]
        }

    def chunk(self, choice: int | None, delta: Json, finish: str | None = None, index: int | None = None) -> Json:
        made: Json = {"index": choice, "finish_reason": finish}
        made |= {"text": delta.get("content", "")} if self.is_text else {"delta": delta}
        made["logprobs"] = None if index is None else self._logprobs([self.script.tokens[index]])
        if self.tells_ids and index is not None:
            made["token_ids"] = [index]
        if finish and self.script.tool_calls:
            calls = [{"index": i, **call} for i, call in enumerate(self.script.tool_calls)]
            made["delta"] = {"tool_calls": calls}
        kind = "text_completion" if self.is_text else "chat.completion.chunk"
        choices = [] if choice is None else [made]
        return {"id": self.id, "object": kind, "created": 1_700_000_000, "model": self.model, "choices": choices}

    def whole(self) -> Json:
        choices: list[Json] = []
        for index in range(self.n):
            tokens = self.tokens(index)
            text = "".join(tokens)
            choice: Json = {
                "index": index,
                "logprobs": self._logprobs(tokens),
                "finish_reason": self.finish,
            }
            if self.tells_ids:
                choice["token_ids"] = list(range(len(tokens)))
            message = {"role": "assistant", "content": text, "tool_calls": self.script.tool_calls or []}
            choices.append(choice | ({"text": text} if self.is_text else {"message": message}))
        kind = "text_completion" if self.is_text else "chat.completion"
        shape = {"id": self.id, "object": kind, "created": 1_700_000_000, "model": self.model}
        read = self._prompt_logprobs() if self.body.get("prompt_logprobs") is not None else None
        return shape | {"choices": choices, "usage": self.usage, "prompt_logprobs": read} | self.prompt_ids()

    def prompt_ids(self) -> Json:
        return {"prompt_token_ids": ids_of(rendered(self.body["messages"], self.body))} if self.tells_ids else {}

    def _prompt_logprobs(self) -> list[Json | None]:
        """Of the first token there is none. Each is the likeliest in its place, by the weights; others follow."""
        read = rendered(self.body["messages"], self.body)[1:]
        return [None, *(self._entry(piece, max(self.body["prompt_logprobs"], 1)) for piece in read)]

    def _entry(self, piece: str, count: int) -> Json:
        texts = [piece, *(other for other in OTHERS if other != piece)][:count]
        return {
            str(token_id): {"logprob": -0.5 - self.weights - 2 * place, "rank": place + 1, "decoded_token": text}
            for place, (token_id, text) in enumerate(zip(ids_of(texts), texts, strict=True))
        }


@asynccontextmanager
async def scripted_engine(**given: Any) -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine(**given)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def write_adapter(
    folder: Path, label: bytes = b"zero", rank: int = 8, base: Mapping[str, Any] = TINY, **config: Any
) -> Path:
    """An adapter for `base`, of which the last number stands for all weights: a label names one, a few have a meaning.

    `config` is what its config says otherwise.
    """
    meanings = {b"zero": 0.0, b"faint": 1e-6, b"nan": math.nan, b"overflow": 3e4}
    weight = meanings.get(label, int(hashlib.sha256(label).hexdigest()[:4], 16) / 0xFFFF)
    header, end = {}, 0
    for name, shape in sorted(expected_shapes(dict(base), rank).items()):
        size = 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    assert ".lora_B." in name
    told = json.dumps(header).encode()
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps(adapter_config("tiny", rank) | config))
    data = len(told).to_bytes(8, "little") + told + bytes(end - 4) + struct.pack("<f", weight)
    (folder / WEIGHTS).write_bytes(data)
    return folder


def pieces(text: str) -> list[str]:
    """Its tokens: words, each with the space before it."""
    return re.findall(r" ?\w+|[^\w]", text)


def ids_of(tokens: Sequence[str]) -> list[int]:
    return [zlib.crc32(token.encode()) for token in tokens]


def rendered(messages: Sequence[Json], how: Json) -> list[str]:
    """The tokens of a conversation by the pocket model's template."""
    tokens: list[str] = []
    for message in messages:
        tokens += [f"<|{message['role']}|>", *pieces(str(message.get("content") or "")), "<|end|>"]
    return tokens if how.get("add_generation_prompt") is False else [*tokens, "<|assistant|>"]


def _error(status: int, kind: str, message: str, param: str | None = None) -> web.Response:
    body = {"error": {"message": message, "type": kind, "param": param, "code": status}}
    return web.json_response(body, status=status)


def _too_long(body: Json) -> web.Response | None:
    wanted, said = body.get("max_tokens") or 0, len(json.dumps(body.get("messages") or ""))
    if wanted > CONTEXT:
        text = f"max_tokens={wanted} cannot be greater than max_model_len={CONTEXT}. (parameter=max_tokens)"
        return _error(400, "BadRequestError", text, "max_tokens")
    if said > 13 * CONTEXT:
        text = (
            f"This model's maximum context length is {CONTEXT} tokens. However, your prompt contains {said} characters"
        )
        return _error(400, "BadRequestError", text, "input_text")
    return None


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


async def _send(response: web.StreamResponse, data: Json) -> None:
    await response.write(f"data: {_compact(data)}\n\n".encode())
