"""The preview: what a job would train on now, and why the rest of what people said is left out.

Read from the tally, so it costs the same for a thousand votes and for a million. `new` are the pairs no adapter has
learnt from yet: a job takes them all, and a share of the others again. Lengths are in characters.
"""

from pydantic import BaseModel, Field

from feedback import methods, pairs, tally
from feedback.connection import Ledger
from feedback.records import Method

SETTLE_WITHIN_S = 1.0
"""Somebody waits for a preview: prompts that are not settled by then are told as `unsettled` instead."""


class Half(BaseModel):
    """Pairs to train on, or held out to judge by."""

    total: int
    new: int
    needed: int
    by_source: dict[str, int]


class Weights(BaseModel):
    mean: float | None
    contested: int = Field(description="Pairs that some voters were against.")


class Lengths(BaseModel):
    chosen_mean: float | None
    rejected_mean: float | None
    chosen_longer_share: float | None


class Preview(BaseModel):
    train: Half
    held_out: Half
    is_enough: bool = Field(description="Whether a job that names no method would be taken.")
    method: Method | None = Field(description="What it would learn by: pairs (dpo), or thumbs where pairs are too few.")
    weights: Weights
    lengths: Lengths
    unpaired: dict[str, int] = Field(description="Rated answers in no pair, by what most thought of them: up, down.")
    opinions_used: int
    left_out: dict[str, int] = Field(description="Opinions in no pair, by lessons.Reason.")
    unfit: dict[str, int] = Field(description="Pairs no job can learn from, by texts.Fault.")
    unsettled: int = Field(description="Prompts whose newest opinions are not counted yet.")


async def look(ledger: Ledger) -> Preview:
    await pairs.settle(ledger, SETTLE_WITHIN_S)
    keys = ledger.keys
    pipe = ledger.redis.pipeline(transaction=True)
    pipe.hgetall(keys.tally)
    pipe.zcard(keys.pairs_waiting)
    pipe.zintercard(2, [keys.pairs_waiting, keys.pairs_held_out])
    pipe.hlen(keys.unsettled)
    found, waiting, waiting_held_out, unsettled = await ledger.reply(pipe.execute())
    counts = tally.counted(found)
    train = _half(tally.under(counts, "pairs:train"), waiting - waiting_held_out, ledger.settings.min_pairs)
    held_out = _half(tally.under(counts, "pairs:held_out"), waiting_held_out, ledger.settings.min_held_out_pairs)
    total = train.total + held_out.total
    method = methods.choice(counts, ledger.settings)
    return Preview(
        train=train,
        held_out=held_out,
        is_enough=method is not None,
        method=method,
        weights=Weights(
            mean=_mean(counts["weight:millionths"] / tally.MILLION, total), contested=counts["weight:contested"]
        ),
        lengths=Lengths(
            chosen_mean=_mean(counts["characters:chosen"], total),
            rejected_mean=_mean(counts["characters:rejected"], total),
            chosen_longer_share=_mean(counts["characters:chosen_longer"], total),
        ),
        unpaired={label: counts[f"unpaired:{label}"] for label in ("up", "down")},
        opinions_used=counts["opinions:used"],
        left_out=tally.under(counts, "left_out"),
        unfit=tally.under(counts, "unfit"),
        unsettled=unsettled,
    )


def _half(by_source: dict[str, int], new: int, needed: int) -> Half:
    return Half(total=sum(by_source.values()), new=new, needed=needed, by_source=by_source)


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None
