"""One adapter into one engine: its files checked, loaded, verified, probed; and out of it again.

Never `load_inplace`, never one name for two sets of weights: vLLM would answer from a stale cache
(vLLM #42125, #33791).
"""

import asyncio
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from feedback import adapters
from feedback.errors import AdapterUnknown, LedgerUnavailable
from feedback.records import Adapter
from serve import probe, weights
from serve.council import Council, NotLeading
from serve.engine import EngineLate, EngineRefused
from serve.probe import AdapterUnfit, Reading
from serve.replicas import Replica
from serve.routing import Routing
from serve.settings import GatewaySettings
from serve.trouble import Trouble
from serve.upstream import EngineUnreachable

log = logging.getLogger("heed.hotswap")

DEATHS = 2
"""An engine that died this often while it took up the same adapter died of it."""


class NotYet(Exception):
    """Nothing is wrong with the adapter; the next round tries again."""


class Intake:
    def __init__(self, routing: Routing, settings: GatewaySettings, trouble: Trouble) -> None:
        self._routing = routing
        self._settings = settings
        self._trouble = trouble
        self._base: dict[str, Any] | None = None
        """What adapters' shapes are compared with, once it is known here."""
        self._known: dict[str, Adapter] = {}
        self._bases: dict[tuple[int, str], Reading] = {}
        self._deaths: Counter[str] = Counter()

    async def hold_everywhere(self, council: Council, name: str) -> bool:
        """Whether every engine that takes traffic, and at least one, holds it. Raises AdapterUnfit, NotLeading.

        One takes it up first, and the others when it is well there: an adapter that an engine dies of takes only one.
        """
        base = council.base
        able = [replica for replica in self._routing.up() if name == base or base in replica.holds]
        if name == base:
            return await self._hold_base(council, able)
        if not able or not await self._take_up(council, able[0], name):
            return False
        taken = await asyncio.gather(*(self._take_up(council, one, name) for one in able[1:]), return_exceptions=True)
        for error in taken:
            if isinstance(error, BaseException):
                raise error
        if not all(taken):
            return False
        self._deaths.pop(name, None)
        return True

    async def _hold_base(self, council: Council, replicas: list[Replica]) -> bool:
        """Whether one at least holds it; it was well elsewhere, so it is an engine that is at fault where it is not.

        Raises AdapterUnfit where no engine is well with it.
        """
        takings = (self._take_up(council, one, council.base) for one in replicas)
        taken = await asyncio.gather(*takings, return_exceptions=True)
        faults = [(one, fault) for one, fault in zip(replicas, taken, strict=True) if isinstance(fault, Exception)]
        for replica, fault in faults:
            if not isinstance(fault, AdapterUnfit) or len(faults) == len(replicas):
                raise fault
            replica.eject(str(fault), self._settings.engine_rest_s, self._settings.engine_rest_max_s)
        return True in taken

    async def _take_up(self, council: Council, replica: Replica, name: str) -> bool:
        """Whether it holds it now; one that dies gets no traffic, and the next round goes on without it.

        Raises AdapterUnfit, NotLeading.
        """
        try:
            await self._hold(council, replica, name)
        except (NotYet, LedgerUnavailable) as reason:
            self._trouble.ill(name, str(reason))
            return False
        except EngineLate as late:
            self._trouble.ill(name, f"{late}; more adapters may be in use than it has slots for (--max-loras)")
            return False
        except EngineUnreachable as error:
            replica.forget(f"broke while it took up {name} ({error})")
            self._deaths[name] += not self._routing.is_held(name)  # one that others serve is not to blame
            if self._deaths[name] >= DEATHS:
                raise AdapterUnfit(f"engines died {DEATHS} times while they took up {name}") from error
            return False
        return True

    async def _hold(self, council: Council, replica: Replica, name: str) -> None:
        """Loaded, verified, probed. Raises AdapterUnfit, NotYet, NotLeading, EngineUnreachable, LedgerUnavailable."""
        if name in replica.holds:
            council.show(replica, name)
            return
        base = council.base
        if name != base and base not in replica.holds:
            raise NotYet(f"{base} is not there to compare {name} with")
        if name != base and (id(replica), base) not in self._bases:  # another process probed it
            self._bases[id(replica), base] = await probe.read(replica.engine, base)
        path = await self._path(council, name)
        if path and name not in replica.lists:
            await self._load(council, replica, name, path)
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
                await self.unload(council, replica, name)
            if name != base:
                await self._expect_unspoiled(council, replica, base)
            raise
        if not council.may_load:
            raise NotLeading
        council.show(replica, name)
        log.info("%s is loaded at %s and answers as it should", name, replica.name)

    async def _expect_unspoiled(self, council: Council, replica: Replica, base: str) -> None:
        """An engine that answers wrongly ever since takes no traffic until it is well with its base again.

        Finite weights may overflow on the way, and the NaN stays in freed KV blocks until a long prompt, as the probe
        has one, is written over them (vLLM 0.32 on CPU).
        """
        try:
            await probe.read(replica.engine, base)
        except AdapterUnfit as spoiled:
            for held in list(replica.holds):
                council.hide(replica, held)
            replica.forget(f"was spoiled by an adapter ({spoiled})")

    async def _load(self, council: Council, replica: Replica, name: str, path: Path) -> None:
        council.hide(replica, name)
        await council.settle()  # or requests of other processes reach it before it was probed
        if not council.may_load:
            raise NotLeading
        try:
            await replica.engine.load(name, str(path))
        except EngineRefused as refused:
            if refused.status == 404:  # another disk, or a network's that is late: no verdict on the adapter
                raise NotYet(f"the engine does not see the files of {name} at {path}") from refused
            if refused.status >= 500 and not await replica.engine.is_healthy():
                raise EngineUnreachable(f"it broke while it loaded {name}") from refused
            raise AdapterUnfit(f"the engine will not load {name}: {refused}") from refused
        replica.lists = await replica.engine.models()

    async def _path(self, council: Council, name: str) -> Path | None:
        """The adapter's folder, its files sound and those of its record; None for a base vLLM serves by itself."""
        if name == council.base:
            if not self._settings.base_adapter:
                return None
            path = Path(self._settings.base_adapter).resolve()
            await self._expect_sound(path, name, may_be_zero=True)
            return path
        if name not in self._known:
            try:
                self._known[name] = await adapters.get(council.ledger, name)
            except AdapterUnknown as unknown:
                raise AdapterUnfit(f"{name} was never registered") from unknown
        path = self._settings.adapters_dir / name
        try:
            found = await asyncio.to_thread(adapters.digest_of, path)
        except OSError as error:
            raise AdapterUnfit(f"the files of {name} cannot be read at {path} ({error.strerror})") from error
        if found != self._known[name].digest:
            raise AdapterUnfit(f"the files of {name} are not those that were registered (digest {found[:12]})")
        await self._expect_sound(path, name)
        self._routing.digests[name] = found
        return path

    async def _expect_sound(self, path: Path, name: str, *, may_be_zero: bool = False) -> None:
        """Raises AdapterUnfit."""
        if self._base is None and self._settings.base_model:
            self._base = await asyncio.to_thread(weights.base_config, self._settings.base_model)
        try:
            faults = await asyncio.to_thread(weights.faults, path, self._base, may_be_zero=may_be_zero)
        except OSError as error:
            raise AdapterUnfit(f"the files of {name} cannot be read at {path} ({error.strerror})") from error
        if faults:
            raise AdapterUnfit(f"the files of {name} would be served wrongly: {'; '.join(faults)}")

    async def withdraw(self, council: Council, name: str) -> None:
        """One that is unfit on one engine is served by none. Raises NotLeading."""
        for replica in self._routing.up():
            if name in replica.lists:
                await self.unload(council, replica, name)

    async def unload(self, council: Council, replica: Replica, name: str) -> None:
        """Raises NotLeading."""
        council.expect_lead()
        council.hide(replica, name)
        replica.lists.pop(name, None)
        try:
            await replica.engine.unload(name)
        except (EngineUnreachable, EngineRefused) as error:
            log.warning("%s was not unloaded from %s: %s", name, replica.name, error)
