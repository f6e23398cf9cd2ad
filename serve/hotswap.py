"""The hot swap: what should answer is compared with what the engines hold, again and again, and made so.

`wanted` in the ledger is intent; what an engine really holds is fact. Load, verify, probe, flip, keep the previous one
loaded, unload the rest when nobody is being answered by it. The same loop gives a restarted vLLM its adapters back
before it gets traffic, and finds everything in place after a restart of the gateway.

Never `load_inplace`, never one name for two sets of weights: vLLM would answer from a stale cache
(vLLM #42125, #33791).
"""

import asyncio
import logging
import time
from collections import Counter
from pathlib import Path

from feedback import adapters, canary
from feedback.adapters import base_name
from feedback.connection import Ledger
from feedback.errors import AdapterUnknown, LedgerUnavailable, RecordConflict
from feedback.records import Adapter, Serving
from serve import probe, weights
from serve.engine import EngineRefused
from serve.metrics import Metrics
from serve.probe import AdapterUnfit, Reading
from serve.replicas import Replica
from serve.routing import Routing
from serve.settings import GatewaySettings
from serve.upstream import EngineUnreachable

log = logging.getLogger("heed.hotswap")

DEATHS = 2
"""An engine that died this often while it took up the same adapter died of it."""

VISIT_S = 1
"""How long a round waits for engines to say what they list; a loaded one takes some hundredths."""

RETRY_S = 5
"""Between two attempts with what was found unfit and is needed all the same; it reads the adapter's files."""


class NotYet(Exception):
    """Nothing is wrong with the adapter; the next round tries again."""


class HotSwap:
    def __init__(
        self, routing: Routing, ledgers: dict[str, Ledger], settings: GatewaySettings, metrics: Metrics
    ) -> None:
        self.trouble: dict[str, str] = {}
        """What is not as it should be, by name: for /readyz and the log."""
        self._routing = routing
        self._ledgers = ledgers
        self._settings = settings
        self._metrics = metrics
        self._serving: dict[str, Serving] = {}
        self._known: dict[str, Adapter] = {}
        self._bases: dict[tuple[int, str], Reading] = {}
        self._deaths: Counter[str] = Counter()
        self._visits: dict[Replica, asyncio.Task[None]] = {}
        self._not_before: dict[str, float] = {}

    async def run(self) -> None:
        while True:
            self._routing.nudged.clear()
            try:
                await self.reconcile()
            except Exception:  # the loop must outlive whatever one round meets
                log.exception("a round of the hot swap failed; the next one follows")
            try:
                async with asyncio.timeout(self._settings.reconcile_every_s):
                    await self._routing.nudged.wait()
            except TimeoutError:
                pass

    async def reconcile(self) -> None:
        """One round. Nothing is remembered that the next round does not check again."""
        for model, ledger in self._ledgers.items():
            try:
                self._see(model, await adapters.serving(ledger))
                self._well("ledger")
            except LedgerUnavailable as error:
                self._ill("ledger", str(error))
        await self._visit_all()
        self._metrics.engine_up.set(sum(replica.is_up for replica in self._routing.replicas))
        for model in list(self._serving):
            await self._serve(model)
        await self._unload_surplus()
        await self._load_waited_for()

    def _see(self, model: str, serving: Serving) -> None:
        self._serving[model] = serving
        self._routing.previous[model] = serving.previous
        if self._routing.live.get(model) != serving.live:
            self._routing.live[model] = serving.live
            log.info("%s answers as %s: %s", model, serving.live, serving.reason or "as it was left")
            self._routing.notify()
        self._metrics.generation.labels(model).set(serving.generation)

    async def _visit_all(self) -> None:
        """At once, and those that are slow are not waited for: until they answer or are late they stay as they were."""
        for replica in self._routing.replicas:
            if replica not in self._visits:
                self._visits[replica] = asyncio.create_task(self._visit(replica))
        await asyncio.wait(self._visits.values(), timeout=VISIT_S)
        self._visits = {replica: visit for replica, visit in self._visits.items() if not visit.done()}
        down = [f"{replica.name} {replica.why_down}" for replica in self._routing.replicas if not replica.is_up]
        self._ill("engine", "; ".join(down)) if down else self._well("engine")

    async def _visit(self, replica: Replica) -> None:
        """See what the engine lists. One that lost a name it held was restarted, and shows everything again."""
        others = (other for other in self._routing.replicas if other is not replica)
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

    async def _serve(self, model: str) -> None:
        """The base first, for the others are compared with it; then what answers, what is to answer, what did."""
        serving = self._serving[model]
        await self._keep(model, base_name(model))
        await self._keep(model, serving.live)
        if serving.wanted != serving.live:
            await self._swap(model, serving)
        elif serving.previous:
            await self._keep(model, serving.previous)
        await self._try(model)

    async def _try(self, model: str) -> None:
        """The canary, which takes traffic once it is held, and is rejected where it cannot be."""
        if (tried := self._routing.canaries.get(model)) is None:
            return
        try:
            if await self._hold_everywhere(model, tried.adapter):
                self._well(tried.adapter)
        except AdapterUnfit as unfit:
            self._ill(tried.adapter, str(unfit))
            await self._withdraw(tried.adapter)
            try:
                await canary.end(self._ledgers[model], tried, "rejected", str(unfit))
            except LedgerUnavailable:
                return  # the next round finds the same
            self._routing.canaries.pop(model, None)
            self._metrics.swaps.labels("rejected").inc()
            self._well(tried.adapter)

    async def _keep(self, model: str, name: str) -> None:
        """Held everywhere, or noted why not and tried again later."""
        if time.monotonic() < self._not_before.get(name, 0):
            return
        try:
            if await self._hold_everywhere(model, name):
                self._well(name)
        except AdapterUnfit as unfit:
            self._ill(name, str(unfit))
            self._not_before[name] = time.monotonic() + RETRY_S

    async def _hold_everywhere(self, model: str, name: str) -> bool:
        """Whether every engine that takes traffic, and at least one, holds it. Raises AdapterUnfit.

        One takes it up first, and the others when it is well there: an adapter that an engine dies of takes only one.
        """
        base = base_name(model)
        able = [replica for replica in self._routing.up() if name == base or base in replica.holds]
        if name == base:
            return await self._hold_base(able, model)
        if not able or not await self._take_up(able[0], model, name):
            return False
        taken = await asyncio.gather(*(self._take_up(one, model, name) for one in able[1:]), return_exceptions=True)
        for error in taken:
            if isinstance(error, BaseException):
                raise error
        if not all(taken):
            return False
        self._deaths.pop(name, None)
        return True

    async def _hold_base(self, replicas: list[Replica], model: str) -> bool:
        """Whether one at least holds it; it was well elsewhere, so it is an engine that is at fault where it is not.

        Raises AdapterUnfit where no engine is well with it.
        """
        name = base_name(model)
        taken = await asyncio.gather(*(self._take_up(one, model, name) for one in replicas), return_exceptions=True)
        faults = [(one, fault) for one, fault in zip(replicas, taken, strict=True) if isinstance(fault, Exception)]
        if faults and len(faults) == len(replicas):
            raise faults[0][1]
        for replica, fault in faults:
            replica.eject(str(fault), self._settings.engine_rest_s, self._settings.engine_rest_max_s)
        return True in taken

    async def _take_up(self, replica: Replica, model: str, name: str) -> bool:
        """Whether it holds it now; one that dies gets no traffic, and the next round goes on without it.

        Raises AdapterUnfit.
        """
        try:
            await self._hold(replica, model, name)
        except (NotYet, LedgerUnavailable) as reason:
            self._ill(name, str(reason))
            return False
        except EngineUnreachable as error:
            replica.forget(f"broke while it took up {name} ({error})")
            self._deaths[name] += not self._routing.is_held(name)  # one that others serve is not to blame
            if self._deaths[name] >= DEATHS:
                raise AdapterUnfit(f"engines died {DEATHS} times while they took up {name}") from error
            return False
        return True

    async def _hold(self, replica: Replica, model: str, name: str) -> None:
        """Loaded, verified, probed. Raises AdapterUnfit, NotYet, EngineUnreachable, LedgerUnavailable."""
        if name in replica.holds:
            return
        base = base_name(model)
        if name != base and base not in replica.holds:
            raise NotYet(f"{base} is not there to compare {name} with")
        path = await self._path(model, name)
        if path and name not in replica.lists:
            await self._load(replica, name, path)
        listed = replica.lists.get(name)
        if name not in replica.lists or listed != (str(path) if path else None):
            raise AdapterUnfit(f"the engine serves {name} from {listed}, and it should be {path or 'its base model'}")
        try:
            if name == base:
                self._bases[id(replica), base] = await probe.read(replica.engine, base)
            else:
                golden, tolerance = self._known[name].golden, self._settings.probe_tolerance
                await probe.compare(replica.engine, name, base, self._bases[id(replica), base], golden, tolerance)
        except AdapterUnfit:
            if path:
                await self._unload(replica, name)
            raise
        replica.holds.add(name)
        self._routing.notify()
        log.info("%s is loaded and answers as it should", name)

    async def _load(self, replica: Replica, name: str, path: Path) -> None:
        try:
            await replica.engine.load(name, str(path))
        except EngineRefused as refused:
            if refused.status == 404:  # another disk, or a network's that is late: no verdict on the adapter
                raise NotYet(f"the engine does not see the files of {name} at {path}") from refused
            if refused.status >= 500 and not await replica.engine.is_healthy():
                raise EngineUnreachable(f"it broke while it loaded {name}") from refused
            raise AdapterUnfit(f"the engine will not load {name}: {refused}") from refused
        replica.lists = await replica.engine.models()

    async def _path(self, model: str, name: str) -> Path | None:
        """The adapter's folder, its bytes checked against its record; None for a base vLLM serves by itself."""
        if name == base_name(model):
            return Path(self._settings.base_adapter).resolve() if self._settings.base_adapter else None
        if name not in self._known:
            try:
                self._known[name] = await adapters.get(self._ledgers[model], name)
            except AdapterUnknown as unknown:
                raise AdapterUnfit(f"{name} was never registered") from unknown
        path = self._settings.adapters_dir / name
        try:
            found = await asyncio.to_thread(adapters.digest_of, path)
            is_finite = await asyncio.to_thread(weights.are_finite, path)
        except OSError as error:
            raise AdapterUnfit(f"the files of {name} cannot be read at {path} ({error.strerror})") from error
        if found != self._known[name].digest:
            raise AdapterUnfit(f"the files of {name} are not those that were registered (digest {found[:12]})")
        if not is_finite:
            raise AdapterUnfit(f"the weights of {name} are not all finite numbers")
        self._routing.digests[name] = found
        return path

    async def _swap(self, model: str, serving: Serving) -> None:
        ledger, wanted = self._ledgers[model], serving.wanted
        try:
            if not await self._hold_everywhere(model, wanted):
                return
            self._see(model, await adapters.flip(ledger, wanted, serving.live, serving.reason or "promoted"))
        except AdapterUnfit as unfit:
            self._ill(wanted, str(unfit))
            if wanted != base_name(model):
                await self._withdraw(wanted)
                await adapters.reject(ledger, wanted, str(unfit))
                self._metrics.swaps.labels("rejected").inc()
                self._well(wanted)
        except LedgerUnavailable as error:
            self._ill("ledger", str(error))
        except RecordConflict:
            pass  # somebody wants something else by now; the next round sees it
        else:
            self._metrics.swaps.labels("live").inc()
            self._well(wanted)

    async def _load_waited_for(self) -> None:
        """Adapters that clients named and wait for, as many as there are spare places."""
        for name in sorted(self._waited_for()):
            spare, model = self._spare(), self._routing.model_of(name)
            if model is None or (name not in spare and len(spare) >= self._settings.spare_adapters):
                continue
            await self._keep(model, name)
            if reason := self.trouble.pop(name, None):
                self._routing.refused[name] = reason
            else:
                self._routing.refused.pop(name, None)
        for name in [n for n in self._routing.refused if time.monotonic() >= self._not_before.get(n, 0)]:
            del self._routing.refused[name]
        self._routing.notify()

    def _waited_for(self) -> set[str]:
        """Adapters that requests wait for and no pointer names."""
        names = {name for name in self._routing.waiting if self._routing.model_of(name)}
        return {name for name in names - self._needed() if not self._routing.is_held(name)}

    def _needed(self) -> set[str | None]:
        tried = {canary.adapter for canary in self._routing.canaries.values()}
        return tried | {name for s in self._serving.values() for name in (s.live, s.wanted, s.previous)}

    def _spare(self) -> list[str]:
        """Adapters of ours that some engine lists and no pointer names, oldest first."""
        needed = self._needed()
        listed = dict.fromkeys(name for replica in self._routing.replicas for name in replica.lists)
        return [name for name in listed if self._routing.model_of(name) and name not in needed]

    async def _unload_surplus(self) -> None:
        """What nobody needs and nobody is being answered by; files stay, for vLLM may read them again."""
        spare, waiting = self._spare(), self._waited_for()
        places = max(0, self._settings.spare_adapters - len(waiting - set(spare)))
        idle = [name for name in spare if not self._routing.in_flight(name) and name not in waiting]
        for name in idle[: max(0, len(spare) - places)]:
            for replica in self._routing.replicas:
                if name in replica.lists:
                    await self._unload(replica, name)

    async def _withdraw(self, name: str) -> None:
        """One that is unfit on one engine is served by none."""
        for replica in self._routing.up():
            if name in replica.lists:
                await self._unload(replica, name)

    async def _unload(self, replica: Replica, name: str) -> None:
        replica.holds.discard(name)  # first, so that no request is sent to it from here on
        replica.lists.pop(name, None)
        try:
            await replica.engine.unload(name)
        except (EngineUnreachable, EngineRefused) as error:
            log.warning("%s was not unloaded: %s", name, error)

    def _ill(self, name: str, reason: str) -> None:
        if self.trouble.get(name) != reason:
            log.warning("%s: %s", name, reason)
        self.trouble[name] = reason

    def _well(self, name: str) -> None:
        if self.trouble.pop(name, None):
            log.info("%s: well again", name)
