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

from feedback import adapters
from feedback.adapters import base_name
from feedback.connection import Ledger
from feedback.errors import AdapterUnknown, LedgerUnavailable, RecordConflict
from feedback.records import Adapter, Serving
from serve import probe, weights
from serve.engine import EngineRefused
from serve.metrics import Metrics
from serve.probe import AdapterUnfit, Reading
from serve.routing import Replica, Routing
from serve.settings import GatewaySettings
from serve.upstream import EngineUnreachable

log = logging.getLogger("heed.hotswap")

DEATHS = 2
"""An engine that died this often while it took up the same adapter died of it."""

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
        for replica in self._routing.replicas:
            await self._visit(replica)
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

    async def _visit(self, replica: Replica) -> None:
        """See what the engine lists. One that lost a name it held was restarted, and shows everything again."""
        try:
            lists = await replica.engine.models()
        except (EngineUnreachable, EngineRefused) as error:
            replica.forget()
            self._ill("engine", f"does not answer ({error})")
            return
        if not replica.is_up or not replica.holds <= lists.keys():
            replica.forget()
            replica.is_up = True
        replica.lists = lists
        self._well("engine")

    async def _serve(self, model: str) -> None:
        """The base first, for the others are compared with it; then what answers, what is to answer, what did."""
        serving = self._serving[model]
        await self._keep(model, base_name(model))
        await self._keep(model, serving.live)
        if serving.wanted != serving.live:
            await self._swap(model, serving)
        elif serving.previous:
            await self._keep(model, serving.previous)

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
        """Whether every engine that is up, and at least one, holds it. Raises AdapterUnfit."""
        reachable = [replica for replica in self._routing.replicas if replica.is_up]
        for replica in reachable:
            try:
                await self._hold(replica, model, name)
            except (NotYet, LedgerUnavailable) as reason:
                self._ill(name, str(reason))
                return False
            except EngineUnreachable as error:
                replica.forget()
                self._deaths[name] += 1
                if self._deaths[name] >= DEATHS:
                    raise AdapterUnfit(f"the engine died {DEATHS} times while it took up {name}") from error
                return False
        if reachable:
            del self._deaths[name]
        return bool(reachable)

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
        return {name for s in self._serving.values() for name in (s.live, s.wanted, s.previous)}

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
