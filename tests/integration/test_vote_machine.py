"""Votes as a state machine: whatever people do, in whatever order, the ledger agrees with a few dicts."""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from feedback import archive, completions, pairs, votes
from feedback.check import violations
from feedback.connection import open_ledger
from feedback.errors import ChoiceUnknown, CompletionUnknown, PromptsDiffer, SameAnswer, VoteEmpty, VoteUnknown
from feedback.records import AnswerRef, Completion, Rating, Vote, new_id
from feedback.settings import LedgerSettings
from tests.integration.test_ledger import completion

T = TypeVar("T")

EXAMPLES = 40
STEPS = 30

Cast = tuple[str, int, str]  # completion, choice, voter
Preferred = tuple[frozenset[tuple[str, int]], str]  # two answers, voter


@dataclass(frozen=True)
class Opinion:
    says: tuple[Any, ...]
    prompt: str
    about: frozenset[str]
    created: float
    updated: float


@dataclass
class Model:
    """What the ledger is to remember, in plain Python."""

    asked: dict[str, Completion] = field(default_factory=dict)
    opinions: dict[Cast | Preferred, Opinion] = field(default_factory=dict)
    unsettled: Counter[str] = field(default_factory=Counter)

    def give(self, key: Cast | Preferred, says: tuple[Any, ...], about: set[str], now: float) -> bool:
        """Whether it changed something."""
        before = self.opinions.get(key)
        if before is not None and before.says == says:
            return False
        prompt = self.asked[min(about)].prompt_hash
        created = before.created if before else now
        self.opinions[key] = Opinion(says, prompt, frozenset(about), created, now)
        self.unsettled[prompt] += 1
        return True

    def take_back(self, key: Cast | Preferred) -> None:
        self.unsettled[self.opinions.pop(key).prompt] += 1

    def of(self, completion_id: str) -> list[Cast | Preferred]:
        return [key for key, opinion in self.opinions.items() if completion_id in opinion.about]


class Votes(RuleBasedStateMachine):
    ids: Bundle[str] = Bundle("ids")

    def __init__(self, url: str) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now = 1_700_000_000.25
        settings = LedgerSettings(ledger_url=url, archive=f"memory://{new_id('archive')}")
        self.ledger = open_ledger(settings, clock=lambda: self.now)
        self.model = Model()
        self.run(self.ledger.redis.flushdb())

    def run(self, act: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await act

        return self.loop.run_until_complete(awaited())

    def teardown(self) -> None:
        async def broken() -> list[str]:
            return [sentence async for sentence in violations(self.ledger)]

        assert self.run(broken()) == []
        self.run(self.ledger.close())
        self.loop.close()

    @rule(target=ids, prompt=st.sampled_from(("q", "another")), answers=st.integers(1, 2))
    def ask(self, prompt: str, answers: int) -> str:
        asked = completion(prompt, *("one", "two")[:answers])
        self.run(completions.record(self.ledger, asked))
        self.model.asked[asked.id] = asked
        return asked.id

    @rule(
        completion_id=ids,
        choice=st.integers(0, 1),
        voter=st.sampled_from(("ann", 'b"ob\\')),
        rating=st.sampled_from(("up", "down")),
        reasons=st.sampled_from(((), ("short", 'q"uoted'))),
        comment=st.sampled_from((None, "", '"created":1,"updated":2}', "ein Wörtchen 🪁")),
        correction=st.sampled_from((None, "one", "better")),
    )
    def cast(
        self,
        completion_id: str,
        choice: int,
        voter: str,
        rating: Rating,
        reasons: tuple[str, ...],
        comment: str | None,
        correction: str | None,
    ) -> None:
        self.now += 1
        act = votes.cast(
            self.ledger,
            completion_id=completion_id,
            choice=choice,
            voter=voter,
            rating=rating,
            reasons=reasons,
            comment=comment,
            correction=correction,
        )
        asked = self.model.asked.get(completion_id)
        if asked is None:
            self.refused(act, CompletionUnknown)
        elif choice >= len(asked.choices):
            self.refused(act, ChoiceUnknown)
        elif correction is not None and correction == ("one", "two")[choice]:
            self.refused(act, VoteEmpty)
        else:
            key, says = (completion_id, choice, voter), (rating, reasons, comment, correction)
            changes = self.model.give(key, says, {completion_id}, self.now)
            vote, changed = self.run(act)
            assert changed == changes
            assert (vote.created, vote.updated) == (self.model.opinions[key].created, self.model.opinions[key].updated)

    @rule(
        one=ids,
        other=ids,
        choices=st.tuples(st.integers(0, 1), st.integers(0, 1)),
        voter=st.sampled_from(("ann", 'b"ob\\')),
    )
    def prefer(self, one: str, other: str, choices: tuple[int, int], voter: str) -> None:
        self.now += 1
        chosen, rejected = (
            AnswerRef(completion_id=completion_id, choice=choice)
            for completion_id, choice in zip((one, other), choices, strict=True)
        )
        act = votes.prefer(self.ledger, chosen=chosen, rejected=rejected, voter=voter)
        asked = [self.model.asked.get(completion_id) for completion_id in (one, other)]
        known = [completion for completion in asked if completion is not None]
        if chosen == rejected:
            self.refused(act, SameAnswer)
        elif len(known) < 2:
            self.refused(act, CompletionUnknown)
        elif any(choice >= len(completion.choices) for choice, completion in zip(choices, known, strict=True)):
            self.refused(act, ChoiceUnknown)
        elif known[0].prompt_hash != known[1].prompt_hash:
            self.refused(act, PromptsDiffer)
        else:
            key = (frozenset(((one, choices[0]), (other, choices[1]))), voter)
            changes = self.model.give(key, (one, choices[0]), {one, other}, self.now)
            assert self.run(act)[1] == changes

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        standing = sorted(self.run(votes.page(self.ledger, limit=100))[0], key=lambda o: o.id)
        if not standing:
            self.refused(votes.withdraw(self.ledger, "vote-never"), VoteUnknown)
            return
        opinion = data.draw(st.sampled_from(standing))
        self.run(votes.withdraw(self.ledger, opinion.id))
        self.model.take_back(key_of(opinion))
        self.refused(votes.withdraw(self.ledger, opinion.id), VoteUnknown)

    @rule(completion_id=consumes(ids))
    def forget(self, completion_id: str) -> None:
        act = votes.forget_completion(self.ledger, completion_id)
        if self.model.asked.pop(completion_id, None) is None:
            self.refused(act, CompletionUnknown)
            return
        self.run(act)
        for key in self.model.of(completion_id):
            self.model.take_back(key)

    @rule(completion_id=ids)
    def let_time_pass(self, completion_id: str) -> None:
        """Redis deletes what has a lifetime when it ends, and leaves what has none."""
        key, unvoted = self.ledger.keys.completion(completion_id), self.ledger.keys.archive_unvoted
        if self.run(self.ledger.redis.ttl(key)) > 0:
            self.run(self.ledger.redis.pexpire(key, 0))
            del self.model.asked[completion_id]
        elif self.run(self.ledger.redis.zadd(unvoted, {completion_id: self.now}, xx=True, ch=True)):
            # In the archive it is not Redis that deletes.
            expired = self.run(archive.run(self.ledger)).expired
            assert expired == (completion_id in self.model.asked and not self.model.of(completion_id))
            if expired:
                del self.model.asked[completion_id]

    @rule(completion_id=ids)
    def change(self, completion_id: str) -> None:
        act = completions.update_metadata(self.ledger, completion_id, {"k": "v"})
        if completion_id in self.model.asked:
            self.run(act)
        else:
            self.refused(act, CompletionUnknown)

    @rule()
    def move_to_the_archive(self) -> None:
        """All completions of this machine are old, so those with a vote move; what people do after is the same."""
        self.run(archive.run(self.ledger))

    @rule()
    def settle(self) -> None:
        assert self.run(pairs.settle(self.ledger)) == len(self.model.unsettled)
        self.model.unsettled.clear()

    @invariant()
    def the_ledger_holds_what_the_model_holds(self) -> None:
        found, _ = self.run(votes.page(self.ledger, limit=100))
        assert {key_of(opinion): seen(opinion) for opinion in found} == self.model.opinions
        assert self.run(self.ledger.redis.hgetall(self.ledger.keys.unsettled)) == {
            prompt: str(count) for prompt, count in self.model.unsettled.items()
        }

    @invariant()
    def what_was_voted_on_stays_and_the_rest_has_a_lifetime(self) -> None:
        for completion_id in self.model.asked:
            is_let_live = self.run(self.ledger.redis.ttl(self.ledger.keys.completion(completion_id))) == -1
            is_noted = self.run(self.ledger.redis.zscore(self.ledger.keys.archive_unvoted, completion_id)) is not None
            of_it = self.run(votes.page(self.ledger, completion_id, limit=100))[0]
            assert {key_of(opinion) for opinion in of_it} == set(self.model.of(completion_id))
            assert is_let_live or not of_it
            assert of_it or is_noted or not is_let_live

    def refused(self, act: Awaitable[object], error: type[Exception]) -> None:
        with pytest.raises(error):
            self.run(act)


def key_of(opinion: votes.Opinion) -> Cast | Preferred:
    if opinion.id.startswith("vote-"):
        ((completion_id, choice),) = ((ref.completion_id, ref.choice) for ref in votes.refs(opinion))
        return completion_id, choice, opinion.voter
    return frozenset((ref.completion_id, ref.choice) for ref in votes.refs(opinion)), opinion.voter


def seen(opinion: votes.Opinion) -> Opinion:
    refs = votes.refs(opinion)
    says: tuple[Any, ...] = (refs[0].completion_id, refs[0].choice)
    if isinstance(opinion, Vote):
        says = (opinion.rating, tuple(opinion.reasons), opinion.comment, opinion.correction)
    about = frozenset(ref.completion_id for ref in refs)
    return Opinion(says, opinion.prompt_hash, about, opinion.created, opinion.updated)


def test_whatever_people_do_the_ledger_agrees_with_a_model_of_it(ledger_url: str) -> None:
    run_state_machine_as_test(
        partial(Votes, ledger_url),  # type: ignore[arg-type]  # any function that makes one will do, says its docstring
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, derandomize=True, database=None
        ),
    )
