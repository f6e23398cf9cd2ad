"""Batches of rows of like lengths, in an order that seed and epoch alone decide."""

import random

from trainer.lengths import LikeLengths

BATCH = 8


def lengths() -> list[int]:
    dice = random.Random(0)
    return [dice.randrange(10, 500) for _ in range(400)]


def padding(order: list[int], found: list[int]) -> float:
    """Share of a batch's tokens that are padding."""
    batches = [[found[row] for row in order[start : start + BATCH]] for start in range(0, len(order), BATCH)]
    return 1 - sum(map(sum, batches)) / sum(len(batch) * max(batch) for batch in batches)


def test_a_batch_holds_rows_of_like_lengths() -> None:
    found = lengths()

    grouped = padding(list(LikeLengths(BATCH, found, seed=0)), found)

    assert grouped < 0.15
    assert padding(list(range(len(found))), found) > 0.35


def test_an_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    rows = LikeLengths(BATCH, lengths(), seed=0)
    first = list(rows)

    rows.set_epoch(1)
    second = list(rows)

    assert sorted(first) == sorted(second) == list(range(400))
    assert first != second


def test_a_run_that_goes_on_in_its_second_epoch_has_that_epochs_order() -> None:
    uninterrupted, resumed = LikeLengths(BATCH, lengths(), seed=3), LikeLengths(BATCH, lengths(), seed=3)
    list(uninterrupted)

    for rows in (uninterrupted, resumed):
        rows.set_epoch(1)

    assert list(uninterrupted) == list(resumed)
