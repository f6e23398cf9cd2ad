"""What became of a vote, in the words of the page "Your votes"."""

import re
from typing import Any

import pytest

from serve.console.fate import fate, is_settled

Json = dict[str, Any]

LIVE_SINCE = 1_700_000_000.0


def lineage(**told: Any) -> Json:
    nothing = {"is_standing": True, "pairs": [], "unpaired": None, "left_out": None, "jobs": [], "adapters": []}
    return nothing | told


def adapter(version: int, split: str = "train", state: str = "candidate", live_since: float | None = None) -> Json:
    is_live = live_since is not None
    name = f"heed-v{version}-00000000"
    return {"id": name, "split": split, "state": state, "is_live": is_live, "live_since": live_since}


def job(status: str) -> Json:
    return {"id": "ftjob-1", "status": status}


PAIR = {"pairs": [{"id": "pair-1"}]}
LIVE = adapter(2, state="live", live_since=LIVE_SINCE)

FATES: dict[str, tuple[Json, str, bool]] = {
    "new": ({}, "waiting to be paired", False),
    "in a pair": (PAIR, "waiting for the next training", False),
    "counts alone": ({"unpaired": "unpaired-1"}, "waiting for the next training", False),
    "left out": ({"left_out": "same_text"}, "in no pair: same text", False),
    "queued": (PAIR | {"jobs": [job("queued")]}, "in ftjob-1, which is queued", False),
    "running": (PAIR | {"jobs": [job("failed"), job("running")]}, "in ftjob-1, which is running", False),
    "job failed": (PAIR | {"jobs": [job("failed")]}, "waiting for the next training", False),
    "trained": ({"adapters": [adapter(1)]}, "trained into heed-v1-00000000, which is candidate", False),
    "trained twice": (
        {"adapters": [adapter(1, state="retired"), adapter(2, state="rejected")]},
        "trained into heed-v2-00000000, which is rejected",
        False,
    ),
    "held out": (
        {"adapters": [adapter(1, "held_out")]},
        "held out to judge heed-v1-00000000, which is candidate",
        False,
    ),
    "taught, then held out": (
        {"adapters": [adapter(1), adapter(2, "held_out")]},
        "trained into heed-v1-00000000, which is candidate",
        False,
    ),
    "live": ({"adapters": [adapter(1), LIVE]}, "trained into heed-v2-00000000, live since 2023-11-1", True),
    "withdrawn": ({"is_standing": False}, "withdrawn", True),
    "withdrawn while it is trained on": (
        {"is_standing": False, "jobs": [job("running")]},
        "withdrawn; in ftjob-1, which is running",
        False,
    ),
    "withdrawn after training": (
        {"is_standing": False, "jobs": [job("succeeded")], "adapters": [adapter(1)]},
        "withdrawn; trained into heed-v1-00000000, which is candidate",
        True,
    ),
}


@pytest.mark.parametrize(("told", "words", "is_last"), FATES.values(), ids=FATES)
def test_the_furthest_that_a_vote_has_come_is_told(told: Json, words: str, is_last: bool) -> None:
    found = fate(lineage(**told))

    assert re.sub(r"\d \d\d:\d\d$", "", found) == words
    assert is_settled(lineage(**told)) is is_last
