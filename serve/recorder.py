"""From what was asked and what was answered to the ledger's record of it."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from feedback import completions
from feedback.canary import Mark
from feedback.connection import Ledger
from feedback.errors import LedgerUnavailable, TextTooLong
from feedback.records import BestOf, Choice, Completion, Message, ResponseOf, prompt_digest
from serve.gateway import Gateway
from serve.limits import UNLIMITED, Allowance
from serve.routing import Target

log = logging.getLogger("heed.gateway")

Kind = Literal["chat.completion", "text_completion"]
PREFIXES: dict[Kind, str] = {"chat.completion": "chatcmpl-", "text_completion": "cmpl-"}
NOT_PARAMETERS = {
    "messages",
    "prompt",
    "model",
    "tools",
    "metadata",
    "user",
    "store",
    "stream",
    "stream_options",
    "models",
}


@dataclass(frozen=True)
class Asked:
    """One request for an answer, as it will be recorded and as it goes to the engine."""

    kind: Kind
    path: str
    target: Target
    ledger: Ledger
    number: str
    client: str
    sent: dict[str, Any]
    forwarded: dict[str, Any]
    comparison: str | None = None
    records_tokens: bool = False
    samples: int | None = None
    mark: Mark | None = None
    """Where a canary runs."""
    allowance: Allowance = UNLIMITED
    headers: Sequence[tuple[bytes, bytes]] = ()
    """Of its answer: what is left of the key's limits, and the vote token."""
    patience_s: float = math.inf
    """How long the client waits, where it says so."""
    response: ResponseOf | None = None
    arrived: float = field(default_factory=time.perf_counter)
    arrived_at: float = field(default_factory=time.time)

    @property
    def waited_s(self) -> float:
        return time.perf_counter() - self.arrived

    @property
    def is_stream(self) -> bool:
        return bool(self.sent.get("stream"))

    @property
    def wants_usage(self) -> bool:
        return bool((self.sent.get("stream_options") or {}).get("include_usage"))

    @property
    def is_recorded(self) -> bool:
        return self.sent.get("store") is not False

    @property
    def messages(self) -> list[Message]:
        if self.kind == "chat.completion":
            return list(self.sent["messages"])
        return [{"role": "user", "content": self.sent["prompt"]}]

    @property
    def conversation(self) -> bytes:
        """The same for each turn of a conversation: OpenAI's `prompt_cache_key`, or its beginning, to the first word of
        its user."""
        if key := self.sent.get("prompt_cache_key"):
            return str(key).encode()
        beginning: list[object] = []
        for message in self.messages:
            beginning.append(message.get("content"))
            if message.get("role") == "user":
                break
        return orjson.dumps(beginning)

    @property
    def completion_id(self) -> str:
        return PREFIXES[self.kind] + self.number

    def completion(self, answer: dict[str, Any], gateway: Gateway, best_of: BestOf | None = None) -> Completion:
        messages, tools = self.messages, self.sent.get("tools") or None
        return Completion(
            id=self.completion_id,
            object=self.kind,
            served_model=self.target.served_model,
            adapter=self.target.adapter,
            # The engine's time has whole seconds; ours puts answers of one second in order.
            created=max(self.arrived_at, answer["created"]),
            messages=messages,
            tools=tools,
            prompt_hash=prompt_digest(messages, tools),
            choices=[_choice(choice, self.records_tokens) for choice in answer["choices"]],
            usage=answer.get("usage"),
            params={name: value for name, value in self.sent.items() if name not in NOT_PARAMETERS},
            user=self.sent.get("user"),
            client=self.client,
            metadata=self.sent.get("metadata"),
            request_id="req-" + self.number,
            comparison=self.comparison,
            adapter_digest=gateway.routing.digests.get(self.target.adapter),
            template=gateway.template,
            prompt_token_ids=answer.get("prompt_token_ids") if self.records_tokens else None,
            trial=str(self.mark) if self.mark else None,
            best_of=best_of,
            response=self.response,
        )


def _choice(choice: dict[str, Any], has_tokens: bool) -> Choice:
    message = choice.get("message") or {"role": "assistant", "content": choice.get("text", "")}
    return Choice(
        index=choice["index"],
        message={name: value for name, value in message.items() if value is not None and value != []},
        finish_reason=choice.get("finish_reason"),
        logprobs=choice.get("logprobs"),
        token_ids=choice.get("token_ids") if has_tokens else None,
    )


async def record(asked: Asked, completion: Completion, gateway: Gateway) -> bool:
    """Whether the ledger has what it should have; a ledger that is down does not take the answer from the client."""
    if not asked.is_recorded:
        return True
    began = time.perf_counter()
    try:
        with gateway.tracing.recording():
            await completions.record(asked.ledger, completion)
    except (LedgerUnavailable, TextTooLong) as error:
        gateway.metrics.unrecorded.inc()
        log.warning("req-%s was answered and not recorded: %s", asked.number, error)
        return False
    gateway.metrics.ledger.observe(time.perf_counter() - began)
    return True
