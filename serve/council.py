"""One served model among the gateway processes: what is live, which one leads its swaps, and what the engines hold.

All meet at the ledger, some times a second and apart from the rounds in which engines are worked on: so a flip is seen
everywhere within one interval, and one to an adapter that the engines hold already, as at a rollback, waits for no
load. The leader shows on the board what it found fit at each engine; the others take what the board says and the engine
lists. What is taken off the board is touched at an engine only when every process has seen that.
"""

import asyncio
import logging
import time
from contextlib import suppress

from feedback import adapters, gateways
from feedback.adapters import base_name
from feedback.connection import Ledger
from feedback.errors import LeadLost, LedgerUnavailable, RecordConflict
from feedback.gateways import Board, Telling
from feedback.records import Serving
from serve.metrics import Metrics
from serve.replicas import Replica
from serve.routing import Routing
from serve.settings import GatewaySettings
from serve.trouble import Trouble

log = logging.getLogger("heed.hotswap")


class NotLeading(Exception):
    """Another process may be at work on the engines, so this one stops."""


class Council:
    def __init__(
        self,
        name: str,
        routing: Routing,
        ledger: Ledger,
        settings: GatewaySettings,
        metrics: Metrics,
        trouble: Trouble,
    ) -> None:
        self.ledger = ledger
        self.model = ledger.model
        self.base = base_name(ledger.model)
        self.serving: Serving | None = None
        self.told: dict[str, Telling] = {}
        """What the other processes said of themselves."""
        self.token: int | None = None
        self._name = name
        self._routing = routing
        self._settings = settings
        self._metrics = metrics
        self._trouble = trouble
        self._shown: dict[Replica, set[str]] = {replica: set() for replica in routing.replicas}
        self._board, self._version = Board(), 0
        self._heard = 0
        """The version that was told in the last beat: who reads an older one came after it."""
        self._leads_until = 0.0
        self._is_lost = False
        self._met = asyncio.Event()

    @property
    def leads(self) -> bool:
        return self.token is not None and time.monotonic() < self._leads_until

    @property
    def may_load(self) -> bool:
        """The last leader goes on to heal engines while the ledger is away, for nobody else can have become one."""
        return self.leads or (self.token is not None and self._is_lost)

    def owns(self, adapter: str) -> bool:
        return adapter == self.base or self._routing.model_of(adapter) == self.model

    def expect_lead(self) -> None:
        """Raises NotLeading."""
        if not self.leads:
            raise NotLeading

    async def meet(self, *, would_lead: bool = True) -> bool:
        """Tell, hear and act on it; whether there was news, which is told by meeting again."""
        began, told_board = time.monotonic(), self._version
        patience = self._settings.lease_s
        try:
            heard = await gateways.beat(
                self.ledger, self._name, self._telling(), patience, told_board, would_lead=would_lead
            )
        except LedgerUnavailable as error:
            self._is_lost = True
            self._trouble.ill("ledger", str(error))
            self._tell_met()
            return False
        if self._is_lost:
            self._is_lost = False
            self._trouble.well("ledger")
        self._heard = told_board
        self._leads_until = began + patience * gateways.RENEWED
        led, self.token = self.token, heard.token
        self.told = {who: telling for who, telling in heard.told.items() if who != self._name}
        is_news = self._see(heard.serving)
        if heard.board is not None:
            self._board, self._version = heard.board, heard.version
        if heard.board is not None or (led is not None and self.token is None):
            self._take_up_board()
            is_news = True
        if self.token is not None:
            if led != self.token:
                log.info("%s leads the swaps of %s (lease %d)", self._name, self.model, self.token)
            is_news |= await self._act()
        self._tell_met()
        return is_news

    async def reject(self, adapter: str, reason: str) -> None:
        """Raises LeadLost, LedgerUnavailable."""
        assert self.token is not None
        await adapters.reject(self.ledger, adapter, reason, self.token)

    async def leave(self) -> None:
        """The lease and the others' waiting end now. While the ledger is away they end by themselves."""
        self.token = None
        with suppress(LedgerUnavailable):
            await gateways.leave(self.ledger, self._name)

    def show(self, replica: Replica, adapter: str) -> None:
        """Fit at this engine: from here on it gets requests for it, and soon those of the other processes."""
        if adapter in replica.holds and adapter in self._shown[replica]:
            return
        replica.holds.add(adapter)
        self._shown[replica].add(adapter)
        self._routing.notify()
        self._routing.nudge()

    def hide(self, replica: Replica, adapter: str) -> None:
        """No request is sent to it for this adapter from here on; by the others neither, once this has settled."""
        replica.holds.discard(adapter)
        self._shown[replica].discard(adapter)

    async def settle(self) -> None:
        """Until every process has seen the board as it is shown here. Raises NotLeading."""
        self._routing.nudge()
        while not self._is_lost:
            self.expect_lead()
            is_published = self._draft() == self._board and self._heard == self._version
            if is_published and all(telling.board == self._version for telling in self.told.values()):
                return
            await self._met.wait()

    def observe(self, replica: Replica) -> None:
        """What an engine lists was seen. The leader takes off the board what one has forgotten; the others believe the
        board as far as the engine lists it."""
        shown = self._shown[replica]
        if self.token is not None:
            if replica.is_up:
                shown &= replica.lists.keys()
            return
        held = shown & replica.lists.keys() if replica.is_up else set()
        if held != {name for name in replica.holds if self.owns(name)}:
            replica.holds = {name for name in replica.holds if not self.owns(name)} | held
            self._routing.notify()

    def is_seen_everywhere(self, generation: int) -> bool:
        """Whether every process that is there answers by this flip or a later one."""
        everybody = [*self.told.values(), self._telling()]
        return all(telling.generation >= generation for telling in everybody)

    def is_used(self, adapter: str) -> bool:
        """Whether any process is answering with it, or may still begin to because it has not seen the last flip."""
        if self.serving is None or not self.is_seen_everywhere(self.serving.generation):
            return True
        elsewhere = any(adapter in telling.in_flight for telling in self.told.values())
        return elsewhere or self._routing.in_flight(adapter) > 0

    def waited_for(self) -> set[str]:
        """Adapters that requests wait for, here or elsewhere."""
        return {name for telling in (*self.told.values(), self._telling()) for name in telling.waiting}

    def _tell_met(self) -> None:
        self._met.set()
        self._met = asyncio.Event()

    def _telling(self) -> Telling:
        return Telling(
            generation=self.serving.generation if self.serving else -1,
            board=self._version,
            in_flight=sorted(filter(self.owns, self._routing.used())),
            waiting=sorted(filter(self.owns, self._routing.waiting)),
        )

    def _see(self, serving: Serving) -> bool:
        if serving == self.serving:
            return False
        self.serving = serving
        self._routing.previous[self.model] = serving.previous
        if self._routing.live.get(self.model) != serving.live:
            self._routing.live[self.model] = serving.live
            log.info("%s answers as %s: %s", self.model, serving.live, serving.reason or "as it was left")
            self._routing.notify()
        self._metrics.generation.labels(self.model).set(serving.generation)
        return True

    def _take_up_board(self) -> None:
        board = self._board
        for replica in self._routing.replicas:
            self._shown[replica] = set(board.engines.get(replica.engine.url, ()))
            self.observe(replica)
        self._routing.digests |= board.digests
        if self.token is None:
            others = {name: why for name, why in self._routing.refused.items() if not self.owns(name)}
            self._routing.refused = others | board.refused
            for name in [name for name in self._trouble if self.owns(name) and name not in board.trouble]:
                del self._trouble[name]
            self._trouble.update(board.trouble)
        self._routing.notify()

    def _draft(self) -> Board:
        shown = {replica.engine.url: sorted(names) for replica, names in self._shown.items()}
        names = {name for each in shown.values() for name in each}
        return Board(
            engines=shown,
            digests={name: digest for name, digest in self._routing.digests.items() if name in names},
            refused={name: why for name, why in self._routing.refused.items() if self.owns(name)},
            trouble={name: why for name, why in self._trouble.items() if self.owns(name)},
        )

    async def _act(self) -> bool:
        """As the leader: show what was found, and flip where what is wanted is held already."""
        assert self.token is not None
        try:
            is_news = False
            if (draft := self._draft()) != self._board:
                self._version = await gateways.publish(self.ledger, self.token, draft)
                self._board, is_news = draft, True
            return await self._flip(self.token) or is_news
        except LeadLost as lost:
            log.info("%s", lost)
            self.token = None
        except LedgerUnavailable:
            pass  # the next beat finds out
        return False

    async def _flip(self, token: int) -> bool:
        """Raises LeadLost, LedgerUnavailable."""
        serving = self.serving
        if serving is None or serving.wanted == serving.live or not self.leads or not self._is_ready(serving):
            return False
        try:
            why = serving.reason or "promoted"
            self._see(await adapters.flip(self.ledger, serving.wanted, serving.live, why, token))
        except RecordConflict:
            return False  # somebody wants something else by now; the next beat tells
        self._metrics.swaps.labels("live").inc()
        self._trouble.well(serving.wanted)
        return True

    def _is_ready(self, serving: Serving) -> bool:
        """Whether all engines that take traffic hold what is wanted; one that has just restarted takes none."""
        up = self._routing.up()
        taking = [one for one in up if serving.live in one.holds] or [one for one in up if self.base in one.holds]
        return bool(taking) and all(serving.wanted in one.holds for one in taking)
