"""What became of a vote, in a sentence: from the gateway's `vote.lineage`."""

from datetime import datetime
from typing import Any

Json = dict[str, Any]


def fate(lineage: Json) -> str:
    """The furthest that the vote has come; training on a held-out side judged an adapter and taught it nothing."""
    taught = [one for one in lineage["adapters"] if one["split"] == "train"]
    live = next((one for one in lineage["adapters"] if one["is_live"]), None)
    running = next((job for job in lineage["jobs"] if job["status"] in ("queued", "running")), None)
    if live and live["live_since"]:
        words = f"{_verb(live)} {live['id']}, live since {_when(live['live_since'])}"
    elif taught or lineage["adapters"]:
        newest = (taught or lineage["adapters"])[-1]
        words = f"{_verb(newest)} {newest['id']}, which is {newest['state']}"
    elif running:
        words = f"in {running['id']}, which is {running['status']}"
    elif lineage["pairs"] or lineage["unpaired"]:
        words = "waiting for the next training"
    elif lineage["left_out"]:
        words = f"in no pair: {lineage['left_out'].replace('_', ' ')}"
    else:
        words = "waiting to be paired"
    return words if lineage["is_standing"] else f"withdrawn; {words}" if lineage["jobs"] else "withdrawn"


def _verb(adapter: Json) -> str:
    return "trained into" if adapter["split"] == "train" else "held out to judge"


def _when(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")
