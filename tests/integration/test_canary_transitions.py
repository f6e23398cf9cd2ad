"""Canaries among all else that moves adapters: whatever is done in whatever order, and by two at once, one is tried."""

import asyncio
import random
from contextlib import suppress

import pytest

from feedback import adapters, canary
from feedback.connection import Ledger
from feedback.errors import FeedbackError
from feedback.records import Adapter

NAMES = [Adapter.id_of("heed", version, f"{version:08x}") for version in range(1, 5)]
STEPS = 60


async def registered(ledger: Ledger) -> None:
    for version, name in enumerate(NAMES, 1):
        adapter = Adapter(
            id=name,
            served_model="heed",
            version=version,
            digest="d",
            base_model="pocket",
            base_revision="r",
            job=f"ftjob-{version}",
            dataset_digest="d",
            pairs=1,
            state="candidate",
            created=float(version),
        )
        await adapters.register(ledger, adapter, "trained")


async def something(ledger: Ledger, chance: random.Random) -> None:
    """What an operator, a gateway or the workshop may do at any moment; refusals are answers too."""
    name, running, serving = chance.choice(NAMES), await canary.running(ledger), await adapters.serving(ledger)
    act = chance.choice(["start", "start", "stop", "want", "flip", "flip", "back", "ask", "end", "reject", "tidy"])
    if act == "start":
        await canary.start(ledger, name, chance.choice([5, 5, 50, 100]), auto=chance.random() < 0.5)
    elif act == "stop":
        await canary.stop(ledger, "by hand")
    elif act == "want":
        await adapters.want(ledger, name, "wanted")
    elif act == "flip" and serving.wanted != serving.live:
        await adapters.flip(ledger, serving.wanted, serving.live, serving.reason or "promoted")
    elif act == "back":
        await adapters.roll_back(ledger, "worse")
    elif act == "ask" and running:
        await canary.promote(ledger, running, "canary: liked")
    elif act == "end" and running:
        await canary.end(ledger, running, "retired", "rolled back: disliked")
    elif act == "reject" and chance.random() < 0.1 and name not in (serving.wanted, serving.live):
        await adapters.reject(ledger, name, "unfit")
    else:
        await canary.tidied(ledger)


async def tried(ledger: Ledger, chance: random.Random) -> None:
    with suppress(FeedbackError):
        await something(ledger, chance)


@pytest.mark.parametrize("seed", range(6))
async def test_one_is_tried_at_most_and_what_is_live_is_never_a_canary(ledger: Ledger, seed: int) -> None:
    await registered(ledger)
    chance, was_tried = random.Random(seed), 0
    for _ in range(STEPS):
        await asyncio.gather(tried(ledger, chance), tried(ledger, chance))

        running, live = await canary.tidied(ledger)
        known = [await adapters.get(ledger, name) for name in NAMES]
        assert [one.id for one in known if one.state == "canary"] == ([running.adapter] if running else [])
        assert [one.id for one in known if one.state == "live"] == [one.id for one in known if one.id == live]
        for one in known:
            assert one.history[-1].state == one.state
        if running:
            was_tried += 1
            assert running.against == live != running.adapter
    assert was_tried > 3


async def test_of_many_who_end_it_one_does(ledger: Ledger) -> None:
    await registered(ledger)
    found = await canary.start(ledger, NAMES[0], 10, auto=True)

    asked = await asyncio.gather(*(canary.promote(ledger, found, "canary: liked") for _ in range(8)))
    ended = await asyncio.gather(*(canary.end(ledger, found, "retired", "rolled back: disliked") for _ in range(8)))

    assert (sum(asked), sum(ended)) == (1, 1)
    history = (await adapters.get(ledger, NAMES[0])).history
    assert [change.state for change in history] == ["candidate", "canary", "retired"]
