"""A scripted attack: five of a hundred voters vote against everybody, and a bot casts ten thousand votes."""

import random

from feedback import caps, pairs, voters
from feedback.connection import Ledger
from feedback.records import Completion
from tests import electorate
from tests.electorate import Rule, contrary, honest

QUESTIONS = 625
ANSWERS = 16
"""To each question: ten thousand in all, as many as the bot has votes."""

HONEST = 95
CONTRARY = 5
VOTES = 200
"""Of each person, on answers drawn by chance: two on each answer or so."""


async def dataset(ledger: Ledger) -> set[str]:
    """What a job would train on, or measure with, if it began now."""
    await pairs.settle_and_judge(ledger)
    standing = await pairs.get_many(ledger, await pairs.ids(ledger))
    kept = caps.within(standing, caps.of(ledger.settings))
    return {pair.id for pair in standing if pair.id in kept}


async def crowd(ledger: Ledger, asked: list[Completion], people: list[str], rule: Rule, seed: int) -> None:
    chance = random.Random(seed)
    answers = [(completion, choice) for completion in asked for choice in range(ANSWERS)]
    for person in people:
        await electorate.vote(ledger, electorate.thumbs(person, rule, chance.sample(answers, VOTES), chance))


async def test_an_attack_changes_under_a_hundredth_of_the_dataset(ledger: Ledger) -> None:
    asked = [electorate.question(number, ANSWERS) for number in range(QUESTIONS)]
    await electorate.ask(ledger, asked)
    people = [f"person-{number:02}" for number in range(HONEST)]
    await crowd(ledger, asked, people, honest(noise=0.1), seed=1)
    before = await dataset(ledger)

    await crowd(ledger, asked, [f"contrary-{number}" for number in range(CONTRARY)], contrary, seed=2)
    answers = [(completion, choice) for completion in asked for choice in range(ANSWERS)]
    await electorate.vote(ledger, electorate.thumbs("bot", contrary, answers, random.Random(3)))
    after = await dataset(ledger)

    changed = len(before ^ after) / len(before)
    silent, _ = await voters.page(ledger, "quarantined", limit=1000)
    names = {voter.name for voter in silent}
    assert changed < 0.01
    assert len(names & set(people)) < 0.01 * HONEST
    assert names >= {"bot", *(f"contrary-{number}" for number in range(CONTRARY))}
