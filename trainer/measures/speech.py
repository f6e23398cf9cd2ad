"""Speech: how answers look from outside, whatever they say. Length, whether they end, how they repeat, how they are
laid out: what a policy changes first when it has found a way to please that nobody meant.
"""

import random
import re
from collections.abc import Sequence
from statistics import fmean

from trainer.measures.numbers import Numbers
from trainer.measures.resampling import quantile

NGRAM = 4
MARKS = re.compile(r"^\s{0,3}(?:#{1,6} |[-*+] |\d+[.)] |```|> )|\*\*[^*\n]+\*\*", re.MULTILINE)
"""Headings, items of lists, fences, quotes, bold: the layout that readers reward by itself (Arena's style control)."""

NULL_DRAWS = 400


class Said(Numbers):
    """One sampled answer."""

    text: str
    tokens: int
    ended: bool
    """By its own end-of-turn token, and not by the limit."""


class Speech(Numbers):
    answers: int
    length: float
    """Mean, in tokens. A median jumps where answers come in a short and a long kind."""
    ended: float
    repeated: float
    """Mean share of an answer's 4-grams of words that it has said before."""
    marks: float
    """Mean number of marks of layout."""


class Wobble(Numbers):
    """What the live adapter differs from itself by, in one of forty samples: no threshold may be narrower."""

    length_low: float = 1.0
    length_high: float = 1.0
    ended: float = 0.0
    repeated: float = 0.0
    marks_low: float = 1.0
    marks_high: float = 1.0


def speech(answers: Sequence[Said]) -> Speech:
    return Speech(
        answers=len(answers),
        length=fmean(said.tokens for said in answers),
        ended=fmean(said.ended for said in answers),
        repeated=fmean(repetition(said.text) for said in answers),
        marks=fmean(marks(said.text) for said in answers),
    )


def marks(text: str) -> int:
    return len(MARKS.findall(text))


def repetition(text: str) -> float:
    words = text.split()
    grams = [tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def wobble(once: Sequence[Said], again: Sequence[Said]) -> Wobble:
    """From two samples of one model, answer by answer to the same prompts.

    Which of the two is called the candidate is a coin, so tossing it for each prompt gives the distribution of every
    difference when there is none (a permutation test).
    """
    chance = random.Random(len(once))
    found: list[tuple[float, float, float, float]] = []
    for _ in range(NULL_DRAWS):
        pairs = [(b, a) if chance.random() < 0.5 else (a, b) for a, b in zip(once, again, strict=True)]
        one, other = speech([a for a, _ in pairs]), speech([b for _, b in pairs])
        found.append(
            (
                ratio(one.length, other.length),
                other.ended - one.ended,
                one.repeated - other.repeated,
                ratio(one.marks, other.marks),
            )
        )
    lengths, ends, repeats, marks = (sorted(column) for column in zip(*found, strict=True))
    return Wobble(
        length_low=quantile(lengths, 0.025),
        length_high=quantile(lengths, 0.975),
        ended=quantile(ends, 0.975),
        repeated=quantile(repeats, 0.975),
        marks_low=quantile(marks, 0.025),
        marks_high=quantile(marks, 0.975),
    )


def ratio(one: float, other: float) -> float:
    """Of counts, each taken as one more: nothing is like nothing, and one mark is not infinitely more than none."""
    return (one + 1) / (other + 1)
