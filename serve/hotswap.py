"""The hot swap: what should answer is compared with what the engines hold, again and again, and made so.

`wanted` in the ledger is intent; what an engine really holds is fact. Load, verify, probe, flip, keep the previous one
loaded, unload the rest when nobody is being answered by it. The same loop gives a restarted vLLM its adapters back
before it gets traffic, and finds everything in place after a restart of the gateway. Every process looks at every
engine; of several one at a time works on them (serve/council.py).
"""

import asyncio
import logging
import time
from collections.abc import Mapping

from feedback import canary
from feedback.connection import Ledger
from feedback.errors import LeadLost, LedgerUnavailable
from serve.council import Council, NotLeading
from serve.engine import EngineRefused
from serve.intake import Intake
from serve.metrics import Metrics
from serve.probe import AdapterUnfit
from serve.replicas import Replica
from serve.routing import Routing
from serve.settings import GatewaySettings
from serve.sleeper import Sleeper
from serve.trouble import Trouble
from serve.upstream import EngineUnreachable

log = logging.getLogger("heed.hotswap")

VISIT_S = 1
"""How long a round waits for engines to say what they list; a loaded one takes some hundredths."""

RETRY_S = 5
"""Between two attempts with what was found unfit and is needed all the same; it reads the adapter's files."""


class HotSwap:
    def __init__(
        self, name: str, routing: Routing, ledgers: Mapping[str, Ledger], settings: GatewaySettings, metrics: Metrics
    ) -> None:
        """`name` tells this process from all others."""
        self.trouble = Trouble()
        self.is_going = False
        self._routing = routing
        self._settings = settings
        self._metrics = metrics
        self._councils = {
            model: Council(name, routing, ledger, settings, metrics, self.trouble) for model, ledger in ledgers.items()
        }
        self._intake = Intake(routing, settings, self.trouble)
        self._sleeper: Sleeper | None = None
        if settings.gpu_policy == "sleep":
            self._sleeper = Sleeper(routing, self._councils[settings.models[0]], settings, self.trouble)
        self._visits: dict[Replica, asyncio.Task[None]] = {}
        self._work: asyncio.Task[None] | None = None
        self._not_before: dict[str, float] = {}
        self._surplus_since: dict[str, float] = {}

    async def run(self) -> None:
        try:
            while True:
                self._routing.nudged.clear()
                if await self.meet():
                    continue
                try:
                    async with asyncio.timeout(self._settings.reconcile_every_s):
                        await self._routing.nudged.wait()
                except TimeoutError:
                    pass
        finally:
            for task in (self._work, *self._visits.values()):
                if task is not None:
                    task.cancel()

    async def meet(self) -> bool:
        """Look into the ledger and at the engines, and see that what is to be done there is being done."""
        councils = self._councils.values()
        try:
            met = await asyncio.gather(*(council.meet(would_lead=not self.is_going) for council in councils))
            self._visit_all()
            if any(council.may_load for council in councils) and (self._work is None or self._work.done()):
                self._work = asyncio.create_task(self._work_once())
        except Exception:  # the loop must outlive whatever one round meets
            log.exception("a round of the hot swap failed; the next one follows")
            return False
        return any(met)

    def go(self) -> None:
        """This process is about to end: let another lead, and say so at /readyz."""
        self.is_going = True
        self._routing.nudge()

    async def leave(self) -> None:
        for council in self._councils.values():
            await council.leave()

    def is_seen_everywhere(self, model: str, generation: int) -> bool:
        """Whether every gateway process answers by this flip of the served model or a later one."""
        return self._councils[model].is_seen_everywhere(generation)

    def _visit_all(self) -> None:
        """At once, and those that are slow are not waited for: until they answer or are late they stay as they were."""
        self._visits = {replica: visit for replica, visit in self._visits.items() if not visit.done()}
        for replica in self._routing.replicas:
            if replica not in self._visits:
                self._visits[replica] = asyncio.create_task(self._visit(replica))

    async def _visit(self, replica: Replica) -> None:
        was_up = replica.is_up
        await self._look_at(replica)
        for council in self._councils.values():
            council.observe(replica)
        down = [f"{one.name} {one.why_down}" for one in self._routing.replicas if not one.is_up]
        self.trouble.ill("engine", "; ".join(down)) if down else self.trouble.well("engine")
        self._metrics.engine_up.set(len(self._routing.replicas) - len(down))
        if not replica.is_up:
            self._routing.move(replica)
        if replica.is_up != was_up:
            self._routing.nudge()

    async def _look_at(self, replica: Replica) -> None:
        """See what the engine lists. One that lost a name it held was restarted, and shows everything again."""
        others = (other for other in self._routing.replicas if other is not replica)
        if replica.barred:
            return  # the sleeper looks at it
        if not replica.is_up and replica.is_resting and any(other.is_up for other in others):
            return  # the only one is asked at any time
        try:
            async with asyncio.timeout(self._settings.engine_check_s):
                lists = await replica.engine.models()
        except TimeoutError:
            replica.forget(f"did not say within {self._settings.engine_check_s:g} s what it lists")
            return
        except (EngineUnreachable, EngineRefused) as error:
            replica.forget(f"does not answer ({error})")
            return
        if not replica.is_up or not replica.holds <= lists.keys():
            replica.forget("has just begun")
            replica.is_up = True
        replica.lists = lists

    async def _work_once(self) -> None:
        """One round at the engines. Nothing is remembered that the next round does not check again."""
        try:
            if self._visits:
                await asyncio.wait(self._visits.values(), timeout=VISIT_S)
            leading = [council for council in self._councils.values() if council.may_load]
            if self._sleeper is not None and await self._sleeper.attend(leading):
                return
            for council in self._councils.values():
                if council.may_load and council.serving is not None:
                    await self._serve(council)
            await self._unload_surplus()
            await self._load_waited_for()
        except NotLeading:
            pass  # whoever leads now goes on
        except Exception:  # the loop must outlive whatever one round meets
            log.exception("a round at the engines failed; the next one follows")

    async def _serve(self, council: Council) -> None:
        """The base first, for the others are compared with it; then what answers, what is to answer, what did."""
        serving = council.serving
        assert serving is not None
        await self._keep(council, council.base)
        await self._keep(council, serving.live)
        if serving.wanted != serving.live:
            await self._prepare(council, serving.wanted)
        elif serving.previous:
            await self._keep(council, serving.previous)
        await self._try(council)

    async def _keep(self, council: Council, name: str) -> None:
        """Held everywhere, or noted why not and tried again later."""
        if time.monotonic() < self._not_before.get(name, 0):
            return
        try:
            if await self._intake.hold_everywhere(council, name):
                self.trouble.well(name)
        except AdapterUnfit as unfit:
            self.trouble.ill(name, str(unfit))
            self._not_before[name] = time.monotonic() + RETRY_S

    async def _prepare(self, council: Council, wanted: str) -> None:
        """What is to answer is held everywhere, which the council sees and flips; or it is rejected."""
        try:
            await self._intake.hold_everywhere(council, wanted)
        except AdapterUnfit as unfit:
            self.trouble.ill(wanted, str(unfit))
            if wanted == council.base or council.token is None:
                return
            await self._intake.withdraw(council, wanted)
            try:
                await council.reject(wanted, str(unfit))
            except (LeadLost, LedgerUnavailable):
                return  # the next round, or whoever leads now, finds the same
            self._metrics.swaps.labels("rejected").inc()
            self.trouble.well(wanted)

    async def _try(self, council: Council) -> None:
        """The canary, which takes traffic once it is held, and is rejected where it cannot be."""
        if (tried := self._routing.canaries.get(council.model)) is None:
            return
        try:
            if await self._intake.hold_everywhere(council, tried.adapter):
                self.trouble.well(tried.adapter)
        except AdapterUnfit as unfit:
            self.trouble.ill(tried.adapter, str(unfit))
            await self._intake.withdraw(council, tried.adapter)
            try:
                await canary.end(council.ledger, tried, "rejected", str(unfit))
            except LedgerUnavailable:
                return  # the next round finds the same
            self._routing.canaries.pop(council.model, None)
            self._metrics.swaps.labels("rejected").inc()
            self.trouble.well(tried.adapter)

    async def _load_waited_for(self) -> None:
        """Adapters that clients named and wait for, as many as there are spare places."""
        for name in sorted(self._waited_for()):
            council, spare = self._council_of(name), self._spare()
            if council is None or (name not in spare and len(spare) >= self._settings.spare_adapters):
                continue
            if name in self._routing.refused:
                continue  # until its time is up: processes that have not heard of it yet shall
            await self._keep(council, name)
            if reason := self.trouble.pop(name, None):
                self._routing.refused[name] = reason
                self._routing.nudge()
        for name in [n for n in self._routing.refused if time.monotonic() >= self._not_before.get(n, 0)]:
            if self._council_of(name) is not None:
                del self._routing.refused[name]
        self._routing.notify()

    def _council_of(self, name: str) -> Council | None:
        """Of an adapter whose engines this process may work on."""
        council = self._councils.get(self._routing.model_of(name) or "")
        return council if council is not None and council.may_load else None

    def _waited_for(self) -> set[str]:
        """Adapters that requests wait for and no pointer names."""
        names = {name for council in self._councils.values() for name in council.waited_for()}
        names = {name for name in names - self._needed() if self._routing.model_of(name)}
        return {name for name in names if not self._routing.is_held(name)}

    def _needed(self) -> set[str | None]:
        tried = {canary.adapter for canary in self._routing.canaries.values()}
        serving = [council.serving for council in self._councils.values() if council.serving is not None]
        return tried | {name for s in serving for name in (s.live, s.wanted, s.previous)}

    def _spare(self) -> list[str]:
        """Adapters of ours that some engine lists and no pointer names, oldest first."""
        needed = self._needed()
        listed = dict.fromkeys(name for replica in self._routing.replicas for name in replica.lists)
        return [name for name in listed if self._routing.model_of(name) and name not in needed]

    async def _unload_surplus(self) -> None:
        """What nobody has needed for a while and nobody is being answered by; files stay, for vLLM may read them again.

        First no process sends requests for it any more, then it is unloaded. Raises NotLeading.
        """
        now, spare, waiting = time.monotonic(), self._spare(), self._waited_for()
        self._surplus_since = {name: self._surplus_since.get(name, now) for name in spare}
        due = [name for name in spare if waiting or now - self._surplus_since[name] >= self._settings.retire_after_s]
        places = max(0, self._settings.spare_adapters - len(waiting - set(spare)))
        idle = [name for name in due if name not in waiting]
        for name in idle[: max(0, len(spare) - places)]:
            council = self._council_of(name)
            if council is None or not council.leads or council.is_used(name):
                continue
            for replica in self._routing.replicas:
                council.hide(replica, name)
            await council.settle()
            if council.is_used(name):
                continue
            for replica in self._routing.replicas:
                if name in replica.lists:
                    await self._intake.unload(council, replica, name)
