"""Which adapter a name means now, and which engine may answer with it.

A request resolves its adapter once, when it comes in, and keeps it to its end. An engine that does not hold an adapter
(loaded, verified, probed: see hotswap.py) gets no request for it; requests wait a bounded time instead.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b

from feedback.adapters import base_name
from feedback.canary import Canary
from serve.errors import model_not_found, unavailable
from serve.replicas import Replica


@dataclass(frozen=True)
class Target:
    served_model: str
    adapter: str


class Routing:
    def __init__(
        self,
        models: Sequence[str],
        replicas: Sequence[Replica],
        slack: int = 4,
        queue_limit: int = 1000,
        limit: int = 2000,
    ) -> None:
        """`slack`: see _able; `queue_limit`: requests that may wait; `limit`: answers given at once."""
        self.models = tuple(models)
        self.replicas = list(replicas)
        self._slack = slack
        self._queue_limit = queue_limit
        self._limit = limit
        self.live: dict[str, str] = {}
        self.previous: dict[str, str | None] = {}
        self.canaries: dict[str, Canary] = {}
        self.digests: dict[str, str] = {}
        self.waiting: Counter[str] = Counter()
        self.refused: dict[str, str] = {}
        self.nudged = asyncio.Event()
        self._changed = asyncio.Event()
        self._versioned = {model: re.compile(rf"{re.escape(model)}-v\d{{1,6}}-[0-9a-f]{{8}}") for model in models}

    def resolve(self, name: str) -> Target:
        """What `name` means at this moment. Raises Refused: 404 for a name that cannot exist, 503 before the first look
        into the ledger, when nobody can know what is live."""
        for model in self.models:
            if name == model:
                if model not in self.live:
                    raise unavailable("not_ready", f"what is live as {model!r} is not known yet; try again shortly")
                return Target(model, self.live[model])
            if name == base_name(model) or self._versioned[model].fullmatch(name):
                return Target(model, name)
        raise model_not_found(name)

    def model_of(self, adapter: str) -> str | None:
        """The served model an adapter's name belongs to; None for names that are not adapters of ours."""
        return next((model for model, pattern in self._versioned.items() if pattern.fullmatch(adapter)), None)

    def slot(self, target: Target) -> str:
        """A label of bounded number, for metrics."""
        if target.adapter == self.live.get(target.served_model):
            return "live"
        if target.adapter == base_name(target.served_model):
            return "base"
        if (tried := self.canaries.get(target.served_model)) and target.adapter == tried.adapter:
            return "canary"
        return "previous" if target.adapter == self.previous.get(target.served_model) else "other"

    def up(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.is_up]

    def is_held(self, adapter: str) -> bool:
        return any(replica.is_up and adapter in replica.holds for replica in self.replicas)

    def held(self) -> set[str]:
        return {name for replica in self.replicas if replica.is_up for name in replica.holds}

    def used(self) -> set[str]:
        """Adapters that requests are at engines with."""
        return {name for replica in self.replicas for name in replica.in_flight}

    def in_flight(self, adapter: str) -> int:
        return sum(replica.in_flight[adapter] for replica in self.replicas)

    @asynccontextmanager
    async def borrow(self, adapter: str, deadline: float, conversation: bytes = b"") -> AsyncIterator[Replica]:
        """An engine that holds `adapter`, counted as busy with it from the moment it is picked.

        Picking and counting are one step without an await, so the hot swap never unloads what was just picked.
        `deadline` is in the event loop's time. Raises Refused (503).
        """
        if sum(replica.busy for replica in self.replicas) >= self._limit:
            words = f"{self._limit} answers are being given already (HEED_IN_FLIGHT_LIMIT); try again later"
            raise unavailable("too_busy", words, 10)
        replica = self._able(adapter, conversation) or await self._wait_for(adapter, deadline, conversation)
        replica.in_flight[adapter] += 1
        replica.busy += 1
        try:
            yield replica
        finally:
            replica.busy -= 1
            replica.in_flight[adapter] -= 1
            if not replica.in_flight[adapter]:
                del replica.in_flight[adapter]

    def move(self, replica: Replica) -> None:
        """What an engine that is not up has not begun to answer is asked of another that holds the adapter.

        One that hangs would else keep those requests until HEED_ENGINE_SILENCE_S. Where no other holds it they stay,
        for it may come round.
        """
        for asking, adapter in list(replica.unbegun.items()):
            if self.is_held(adapter):
                asking.give_up(replica.why_down)

    def _able(self, adapter: str, conversation: bytes) -> Replica | None:
        """The least busy engine, or the conversation's own, which has its beginning in the cache, if that has not more
        than `slack` requests above it.

        Which one is a conversation's own follows from the two names alone (rendezvous hashing, Thaler and Ravishankar
        1998), so every gateway finds the same without asking, and one engine more or less moves only its share.
        """
        able = [replica for replica in self.replicas if replica.is_up and adapter in replica.holds]
        if len(able) < 2:
            return able[0] if able else None
        least = min(able, key=lambda replica: replica.busy)
        if not conversation:
            return least
        own = max(able, key=lambda replica: blake2b(replica.engine.url.encode() + conversation, digest_size=8).digest())
        return own if own.busy - least.busy <= self._slack else least

    async def _wait_for(self, adapter: str, deadline: float, conversation: bytes) -> Replica:
        """Waiting is asking: the hot swap loads what somebody waits for, if there is room."""
        if self.waiting.total() >= self._queue_limit:
            words = f"{self._queue_limit} requests wait for an engine already (HEED_QUEUE_LIMIT); try again later"
            raise unavailable("queue_full", words, 10)
        self.waiting[adapter] += 1
        self.nudge()
        try:
            async with asyncio.timeout_at(deadline):
                while (replica := self._able(adapter, conversation)) is None:
                    if reason := self.refused.get(adapter):
                        raise unavailable("adapter_not_loaded", f"{adapter} cannot be loaded: {reason}", 30)
                    await self._changed.wait()
                return replica
        except TimeoutError:
            if any(replica.is_up for replica in self.replicas):
                raise unavailable("adapter_not_loaded", f"no engine holds {adapter} yet; try again shortly") from None
            raise unavailable("engine_unavailable", "every engine is down or starting; try again shortly", 10) from None
        finally:
            self.waiting[adapter] -= 1
            if not self.waiting[adapter]:
                del self.waiting[adapter]

    def notify(self) -> None:
        """Something that requests may wait for has changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    def nudge(self) -> None:
        """Let the hot swap look now instead of at its next turn."""
        self.nudged.set()
