"""Canaries: who is answered by an adapter that is being tried, and what became of those answers.

Only the served model's own name is shared out; whoever names an adapter gets it, and the sides of a comparison are what
is live, for they are shown to be judged. The side is decided by the request's `user`, or without one by the key and the
conversation's first message, so that a conversation stays where it began. While no engine holds the canary everybody is
answered by what is live, and nothing is counted.
"""

import asyncio
import logging
from collections import defaultdict
from typing import Any

import orjson

from feedback import canary, canary_counts, canary_watch
from feedback.canary import Mark
from feedback.canary_counts import Outcome, Seen
from feedback.connection import Ledger
from feedback.errors import CanaryUnknown, LedgerUnavailable
from feedback.records import AdapterState, Completion
from feedback.refusals import refuses
from serve.routing import Routing, Target
from serve.settings import GatewaySettings

log = logging.getLogger("heed.canary")

MOST_WAITING = 10_000
"""Answers kept for the ledger while it is away, a few MB; what comes after is not counted."""


class Canaries:
    def __init__(self, routing: Routing, ledgers: dict[str, Ledger], settings: GatewaySettings) -> None:
        self._routing = routing
        self._ledgers = ledgers
        self._settings = settings
        self._seen: dict[str, list[Seen]] = defaultdict(list)
        self._known: dict[str, set[str]] = defaultdict(set)
        self._away: set[str] = set()

    def assign(self, target: Target, sent: dict[str, Any], client: str) -> tuple[Target, Mark | None]:
        """Who answers a request for the served model's own name, and as what that counts."""
        running = self._routing.canaries.get(target.served_model)
        if running is None or running.against != target.adapter or not self._routing.is_held(running.adapter):
            return target, None
        mark = canary.mark(running, _who(sent, client))
        return (Target(target.served_model, running.adapter) if mark.arm == "canary" else target), mark

    def note(self, served_model: str, mark: Mark, outcome: str, answer: Completion | None) -> None:
        """Answers that clients gave up, or that were refused for what they asked, say nothing of an adapter."""
        waiting = self._seen[served_model]
        if outcome not in ("answered", "failed") or len(waiting) >= MOST_WAITING:
            return
        counted: Outcome = "answered" if outcome == "answered" else "failed"
        if answer is None:
            waiting.append(Seen(mark, counted))
            return
        tokens = (answer.usage or {}).get("completion_tokens") or 0
        text = answer.choices[0].message.get("content") if answer.choices else None
        is_refusal = isinstance(text, str) and refuses(text)
        waiting.append(Seen(mark, counted, is_refusal, round(tokens / max(1, len(answer.choices)))))

    async def run(self) -> None:
        clock, due = asyncio.get_running_loop().time, 0.0
        while True:
            is_due = clock() >= due
            for model, ledger in self._ledgers.items():
                try:
                    await self.see(model)
                    if is_due and model in self._routing.canaries:
                        due = clock() + ledger.settings.canary_look_s
                        await self._look(model)
                    self._away.discard(model)
                except LedgerUnavailable as error:
                    if model not in self._away:
                        log.warning("canaries of %s stay as they are while the ledger is away: %s", model, error)
                    self._away.add(model)
                except Exception:  # the loop must outlive whatever one round meets
                    log.exception("a look at the canary of %s failed; the next one follows", model)
            await asyncio.sleep(self._settings.reconcile_every_s)

    async def see(self, model: str) -> None:
        """What the ledger says runs. Raises LedgerUnavailable."""
        before, found = self._routing.canaries.get(model), await canary.running(self._ledgers[model])
        if found is None:
            self._routing.canaries.pop(model, None)
        else:
            self._routing.canaries[model] = found
        if found and (before is None or before.adapter != found.adapter):
            self._routing.nudge()

    async def end(
        self, model: str, reason: str, adapter_id: str | None = None, state: AdapterState = "candidate"
    ) -> bool:
        """By hand, and here at once; whether one ran. With `adapter_id`, only that. Raises LedgerUnavailable."""
        try:
            await canary.stop(self._ledgers[model], reason, adapter_id, state)
        except CanaryUnknown:
            return False
        self._routing.canaries.pop(model, None)
        return True

    async def _look(self, model: str) -> None:
        waiting = self._seen.pop(model, [])
        by_trial: dict[str, list[Seen]] = defaultdict(list)
        for one in waiting:
            by_trial[one.mark.trial].append(one)
        try:
            for trial, some in by_trial.items():
                await canary_counts.add(self._ledgers[model], trial, some)
        except LedgerUnavailable:
            self._seen[model] = waiting + self._seen[model]
            raise
        if done := await canary_watch.look(self._ledgers[model], self._known[model]):
            log.info("canary %s", done)
            await self.see(model)
            self._routing.nudge()


def _who(sent: dict[str, Any], client: str) -> bytes:
    """A conversation is known by its first user message: a system prompt may tell the time."""
    if user := sent.get("user"):
        return b"user\0" + str(user).encode()
    messages = sent.get("messages", ())
    begun = (
        sent["prompt"] if "prompt" in sent else next((m.get("content") for m in messages if m["role"] == "user"), "")
    )
    return b"said\0" + client.encode() + b"\0" + orjson.dumps(begun)
