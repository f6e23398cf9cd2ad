"""How much a key may ask for in a minute: requests, and tokens of prompts and answers.

Each limit is a leaky bucket that holds a minute's worth and runs empty in a minute (the generic cell rate algorithm,
ITU-T I.371). A request is admitted by this process's own view of the buckets, without a trip to the ledger; what was
taken goes there a few times a second, and comes back with what all gateways took (serve/accord.py). So a key that is
used through several gateways at once may take, within one such interval, what each of them still saw as free; it is
counted all the same, and the key waits for it afterwards: over minutes the limit holds.

Tokens are estimated from the prompt when a request comes, and counted from the answer's usage when it ends.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from serve.errors import Refused
from serve.keyring import Caller
from serve.metrics import Metrics
from serve.settings import GatewaySettings

MINUTE_MS = 60_000.0

CHARACTERS_A_TOKEN = 4
"""Of English text, by OpenAI's rule of thumb. An estimate is corrected as soon as the answer has ended."""

Kind = Literal["requests", "tokens"]
Header = tuple[bytes, bytes]


@dataclass
class Bucket:
    """Times in milliseconds of this process's clock; an amount is the share of a minute it stands for."""

    empty_at: float = 0.0
    untold: float = 0.0
    """Taken since the ledger was last told."""

    def take(self, amount: float, now: float) -> None:
        self.empty_at = max(self.empty_at, now) + amount
        self.untold += amount

    def filled(self, now: float) -> float:
        return max(self.empty_at - now, 0.0)


@dataclass(frozen=True)
class Limit:
    kind: Kind
    per_minute: int
    bucket: Bucket

    def amount(self, units: float) -> float:
        return units * MINUTE_MS / self.per_minute

    def wait_ms(self, units: float, now: float) -> float:
        """0 where so many are free now; half a unit is left to rounding."""
        over = self.bucket.filled(now) + self.amount(units) - MINUTE_MS
        return over if over > self.amount(0.5) else 0.0

    def headers(self, now: float) -> list[Header]:
        """OpenAI's."""
        filled = self.bucket.filled(now)
        left = max(math.floor((MINUTE_MS - filled) / self.amount(1) + 1e-6), 0)
        kind = self.kind.encode()
        return [
            (b"x-ratelimit-limit-" + kind, b"%d" % self.per_minute),
            (b"x-ratelimit-remaining-" + kind, b"%d" % left),
            (b"x-ratelimit-reset-" + kind, duration(filled / 1000).encode()),
        ]


@dataclass(eq=False)
class Allowance:
    """One request's part of its key's limits."""

    headers: list[Header] = field(default_factory=list)
    reserved: int = 0
    _tokens: Limit | None = None
    _clock: Callable[[], float] = time.monotonic

    def settle(self, tokens: int) -> None:
        """Count an answer's tokens in place of their estimate; a request with two answers is settled twice."""
        if self._tokens is not None:
            self._tokens.bucket.take(self._tokens.amount(tokens - self.reserved), self._clock() * 1000)
            self.reserved = 0


UNLIMITED = Allowance()


class Limits:
    def __init__(
        self, settings: GatewaySettings, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._defaults: dict[Kind, int] = {
            "requests": settings.key_requests_per_minute,
            "tokens": settings.key_tokens_per_minute,
        }
        self._limited = metrics.limited
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}

    def admit(self, caller: Caller, tokens: int, requests: int = 1) -> Allowance:
        """Take a request's part, with so many tokens for its prompt. Raises Refused (429), having taken nothing."""
        asked: dict[Kind, int] = {"requests": requests, "tokens": tokens}
        limits = [limit for kind in asked if (limit := self._limit(caller, kind))]
        if not limits:
            return UNLIMITED
        now = self._clock() * 1000
        for limit in limits:
            if wait_ms := limit.wait_ms(asked[limit.kind], now):
                self._limited.labels(limit.kind).inc()
                headers = [header for each in limits for header in each.headers(now)]
                raise _refusal(limit, asked[limit.kind], wait_ms, headers)
        for limit in limits:
            limit.bucket.take(limit.amount(asked[limit.kind]), now)
        return Allowance(
            [header for limit in limits for header in limit.headers(now)],
            tokens,
            next((limit for limit in limits if limit.kind == "tokens"), None),
            self._clock,
        )

    def _limit(self, caller: Caller, kind: Kind) -> Limit | None:
        own = caller.requests_per_minute if kind == "requests" else caller.tokens_per_minute
        if own is None:
            own = 0 if caller.is_operator else self._defaults[kind]
        return Limit(kind, own, self._buckets.setdefault(f"{caller.name}:{kind}", Bucket())) if own else None

    def untold(self) -> dict[str, float]:
        """What was taken since the last call, in milliseconds of a minute, of each bucket that is not empty.

        It is not told again if the ledger did not get it: it may have, and the reply got lost. Then this process goes
        on counting by itself.
        """
        now = self._clock() * 1000
        told = {}
        for name, bucket in list(self._buckets.items()):
            if bucket.untold or bucket.filled(now):
                told[name] = bucket.untold
                bucket.untold = 0.0
            else:
                del self._buckets[name]
        return told

    def learn(self, filled_ms: Mapping[str, float]) -> None:
        """How full the buckets are with what all gateways took, but for what was taken here in the meantime."""
        now = self._clock() * 1000
        for name, filled in filled_ms.items():
            bucket = self._buckets.setdefault(name, Bucket())
            bucket.empty_at = max(bucket.empty_at, now + filled + bucket.untold)


def estimated(sent: Mapping[str, Any]) -> int:
    """Tokens of a prompt, roughly; images and the like count when the engine has counted them."""
    prompt = sent.get("prompt")
    parts = prompt if isinstance(prompt, list) else [] if prompt is None else [prompt]
    texts = [part for part in parts if isinstance(part, str)]
    ids = sum(len(part) if isinstance(part, list) else isinstance(part, int) for part in parts)
    for message in sent.get("messages") or ():
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            texts += [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return ids + math.ceil(sum(map(len, texts)) / CHARACTERS_A_TOKEN)


def duration(seconds: float) -> str:
    """As OpenAI's headers have it: 120ms, 1.5s, 6m0s."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"


def _refusal(limit: Limit, asked: int, wait_ms: float, headers: list[Header]) -> Refused:
    told = {name.decode(): value.decode() for name, value in headers}
    may = f"this key may take {limit.per_minute} {limit.kind} a minute"
    if asked > limit.per_minute:
        return Refused(
            429, "rate_limit_exceeded", f"{may}, and this asks for about {asked} at once; send less", None, told
        )
    told |= {"retry-after": str(math.ceil(wait_ms / 1000)), "retry-after-ms": str(math.ceil(wait_ms))}
    return Refused(
        429, "rate_limit_exceeded", f"{may}, and too few are left; try again in {wait_ms / 1000:.1f} s", None, told
    )
