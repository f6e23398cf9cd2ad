"""The sleeper: engines give their memory to the workshop for a while, and are looked at when they wake.

A worker wishes, in the ledger, that the engines sleep; the process that leads the swaps of the first served model lets
them, as long as the wish lasts and never longer than HEED_GPU_STALL_S. vLLM's level 1 with `mode=keep` moves the
weights to the host's memory and drops the KV cache; answers under way stand still and go on afterwards. Before that
every adapter is taken off the board, so new requests wait in the gateways' queues, and none reaches an engine that is
awake again before it was probed: vLLM has woken with spoiled adapters (#53888).
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Literal

from feedback import gpu
from feedback.errors import LedgerUnavailable
from feedback.gpu import Grant
from serve import probe
from serve.council import Council
from serve.engine import EngineRefused
from serve.probe import DRIFT, AdapterUnfit, Reading
from serve.replicas import Replica
from serve.routing import Routing
from serve.settings import GatewaySettings
from serve.trouble import Trouble
from serve.upstream import EngineUnreachable

REFUSAL_S = 10
"""How long a refusal can be read; whoever wished looks every second."""

NOT_STARTED_FOR_IT = (
    "an engine cannot sleep ({}); vLLM has to be started with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1 for "
    "HEED_GPU_POLICY=sleep"
)


class Sleeper:
    def __init__(self, routing: Routing, council: Council, settings: GatewaySettings, trouble: Trouble) -> None:
        """`council` is the first served model's, in whose part of the ledger wishes are."""
        self._routing = routing
        self._council = council
        self._settings = settings
        self._trouble = trouble
        self._asleep: Grant | None = None
        self._done: str | None = None
        """A wish that was granted for as long as may be, or refused."""
        self._before: dict[tuple[Replica, str], Reading] = {}

    async def attend(self, councils: Sequence[Council]) -> bool:
        """Whether engines sleep, or shall, so that nothing is to be done at them. `councils` are those that this
        process leads. Raises NotLeading, LedgerUnavailable."""
        wish = await self._wish()
        if not self._council.may_load:
            self._asleep = None  # whoever leads now goes by the grant
            return wish is not None
        if wish is None or wish == self._done:
            return not await self._wake_all()
        if self._asleep is None:
            self._asleep = await self._granted(wish)
        if self._asleep is None:
            return await self._fall_asleep(wish, councils)
        if time.time() < self._asleep.until and wish == self._asleep.token:
            return True
        self._done = self._asleep.token
        return not await self._wake_all()

    async def _wish(self) -> str | None:
        try:
            return await gpu.wished(self._council.ledger)
        except LedgerUnavailable:
            # What nobody can take back must end here: by the deadline that is known.
            return self._asleep.token if self._asleep and time.time() < self._asleep.until else None

    async def _granted(self, wish: str) -> Grant | None:
        """What an earlier leader granted: its deadline holds."""
        found = await gpu.granted(self._council.ledger)
        return found if found is not None and found.token == wish and found.refusal is None else None

    async def _fall_asleep(self, wish: str, councils: Sequence[Council]) -> bool:
        replicas = self._routing.up()
        try:
            for council in councils:
                for replica in replicas:
                    await replica.engine.is_sleeping()
                    if council.base in replica.holds:
                        self._before[replica, council.base] = await probe.read(replica.engine, council.base)
        except EngineRefused as error:
            await self._refuse(wish, NOT_STARTED_FOR_IT.format(error))
            return False
        except (AdapterUnfit, EngineUnreachable) as error:
            await self._refuse(wish, f"an engine is not well ({error})")
            return False
        for council in councils:
            for replica in replicas:
                for name in filter(council.owns, list(replica.holds)):
                    council.hide(replica, name)
            await council.settle()
        until = time.time() + self._settings.gpu_stall_s
        for answer in await asyncio.gather(*(each.engine.sleep() for each in replicas), return_exceptions=True):
            if isinstance(answer, (EngineRefused, EngineUnreachable)):
                is_awake = await self._wake_all()
                await self._refuse(wish, NOT_STARTED_FOR_IT.format(answer))
                return not is_awake
            if answer is not None:
                raise answer
        self._asleep = Grant(token=wish, until=until)
        await gpu.grant(self._council.ledger, self._asleep, 2 * self._settings.gpu_stall_s)
        self._trouble.ill(
            "gpu", f"the engines sleep while the workshop trains, {self._settings.gpu_stall_s:g} s at most"
        )
        return True

    async def _refuse(self, wish: str, why: str) -> None:
        self._done = wish
        self._trouble.ill("gpu", why)
        await gpu.grant(self._council.ledger, Grant(token=wish, refusal=why), REFUSAL_S)

    async def _wake_all(self) -> bool:
        """Whether all are awake; if not, the next round tries again."""
        woken = await asyncio.gather(*(self._wake(replica) for replica in self._routing.up()))
        if "not" in woken:
            return False
        if self._before:
            for (replica, base), before in list(self._before.items()):
                await self._look_at(replica, base, before)
            if not self._before:
                self._trouble.well("gpu")
        if self._asleep is not None or "now" in woken:
            self._asleep = None
            await gpu.take_back(self._council.ledger)
        return True

    async def _wake(self, replica: Replica) -> Literal["was", "now", "not"]:
        """Whether it is awake. One that knows no sleep is, and one that does not answer is found down."""
        try:
            if not await replica.engine.is_sleeping():
                return "was"
            await replica.engine.wake()
            if not await replica.engine.is_sleeping():
                return "now"
            self._trouble.ill("gpu", f"{replica.name} sleeps on although it was woken")
        except EngineUnreachable:
            return "was"
        except EngineRefused as refused:
            if refused.status == 404:
                return "was"
            self._trouble.ill("gpu", f"{replica.name} cannot be woken: {refused}")
        return "not"

    async def _look_at(self, replica: Replica, base: str, before: Reading) -> None:
        """The base answers as it did, or the engine takes no traffic until it does, as after a restart. Adapters are
        probed before they are shown again, as those of an engine that has just begun."""
        try:
            if base not in await replica.engine.models():  # a restart forgets the zero adapter
                moved = 0.0
            else:
                moved = (await probe.read(replica.engine, base)).distance(before)
            why = f"{base} answers differently (by {moved:.3g} in log-probability)" if moved > DRIFT else ""
        except (AdapterUnfit, EngineUnreachable, EngineRefused) as error:
            why = str(error)
        if why:
            replica.bar(f"is not what it was before it slept: {why}; restart it")
            self._trouble.ill("gpu", f"{replica.name} {replica.barred}")
            return
        replica.barred = ""
        del self._before[replica, base]
