"""Methods: what a job can learn by, and whether the votes are enough for it.

`dpo` and `supervised` are OpenAI's names. It has none for learning from single ratings, so `unpaired` is TRL's word.
`reward` trains no adapter but a reward model, which judges answers.
"""

from collections import Counter
from typing import get_args

from feedback import tally
from feedback.connection import Ledger
from feedback.errors import TooFewPairs
from feedback.records import Method
from feedback.settings import LedgerSettings

METHODS: tuple[Method, ...] = get_args(Method)
BY_ITSELF: tuple[Method, ...] = ("dpo", "unpaired")
"""What a job that names no method learns by: the first for which the votes are enough."""


async def method_for(ledger: Ledger) -> Method:
    """What a job that names no method learns by: pairs, or where they are too few, thumbs. Raises TooFewPairs."""
    counted = await tally.read(ledger)
    if chosen := choice(counted, ledger.settings):
        return chosen
    raise TooFewPairs(missing(counted, "dpo", ledger.settings))


def choice(counted: Counter[str], settings: LedgerSettings) -> Method | None:
    return next((method for method in BY_ITSELF if not missing(counted, method, settings)), None)


async def require_enough(ledger: Ledger, method: Method | None = None) -> None:
    """For this method, or for any that a job would choose itself. Raises TooFewPairs."""
    if method is None:
        await method_for(ledger)
    elif lack := missing(await tally.read(ledger), method, ledger.settings):
        raise TooFewPairs(lack)


def missing(counted: Counter[str], method: Method, settings: LedgerSettings) -> str:
    """What the votes still lack, in words; empty when they are enough."""
    train, held_out = (tally.under(counted, f"pairs:{split}") for split in ("train", "held_out"))
    paired, held = sum(train.values()), sum(held_out.values())
    liked, disliked = (counted[f"unpaired:{label}"] for label in ("up", "down"))
    if method == "unpaired":
        if min(liked, disliked) + paired >= settings.min_thumbs:
            return ""
        return (
            f"the votes amount to {liked} liked and {disliked} disliked answers beside {paired} pairs; at least "
            f"{settings.min_thumbs} of each are needed: rate more answers, both ways"
        )
    if method == "supervised":
        written = train.get("correction", 0)
        if written >= settings.min_pairs and held >= settings.min_held_out_pairs:
            return ""
        return (
            f"the votes amount to {written} corrections to train on and {held} pairs held out; at least "
            f"{settings.min_pairs} and {settings.min_held_out_pairs} are needed: correct more answers"
        )
    if paired >= settings.min_pairs and held >= settings.min_held_out_pairs:
        return ""
    return (
        f"the votes amount to {paired} pairs to train on and {held} held out; at least {settings.min_pairs} and "
        f"{settings.min_held_out_pairs} are needed: vote up and down on answers to the same prompt, prefer one answer "
        "to another, or correct some"
    )
