"""Lessons: what the opinions on one prompt teach. Pure: opinions and answers in, pairs out.

Answers are told apart by what they say, so the same answer sampled twice is one answer. The rules:
- A preference, a comparison won by a side, and a correction each say that one text is better than another. Of a voter
  who said several things about the same two texts the latest counts; across voters the majority decides, and a draw
  teaches nothing. A pair's weight is its agreement: voters who agree, of all who were heard on the two texts. Who
  called it a tie, or both bad, was heard and agrees with no side.
- Thumbs are counted for each text, the latest of each voter. One with more ups than downs and one with more downs
  than ups are a pair, each text in one such pair at most, unless somebody has compared the two. Its weight is the
  share of the thumbs on both that agree.
- A text that was rated and is in no pair stays unpaired, for methods that take single ratings.
- Every opinion ends in a pair or in exactly one Reason for not being in one.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from feedback import votes
from feedback.records import (
    AnswerRef,
    ComparisonVote,
    Completion,
    Message,
    Pair,
    Preference,
    Preferred,
    Source,
    Split,
    Unpaired,
    Vote,
    conversation_digest,
)
from feedback.texts import sameness

Reason = Literal[
    "lone_thumb",  # its answer is in no pair; it can teach unpaired
    "tie",
    "both_bad",
    "draw",  # as many voters for as against
    "outvoted",  # it lowers the weight of the pair that won
    "superseded",  # its voter said something later about the same texts
    "covered",  # a thumb on an answer that a comparison or a correction already speaks for
    "same_text",  # both answers say the same
    "honeypot",  # the answer was known before; it measures the voter
    "quarantined",  # its voter is quarantined or banned (feedback/voters.py)
    "gone",  # an answer it is about was deleted
]

Undecided = Literal["tie", "both_bad"]
UNDECIDED: Mapping[Preferred, Undecided] = {"tie": "tie", "both_bad": "both_bad"}

TRUST: Mapping[Source, int] = {"preference": 0, "comparison": 1, "correction": 2, "thumbs": 3}
"""A pair that several kinds of opinion agree on is counted under the first of them."""


@dataclass(frozen=True)
class Derived:
    """What the opinions on one prompt amount to."""

    pairs: list[Pair] = field(default_factory=list)
    unpaired: list[Unpaired] = field(default_factory=list)
    left_out: dict[str, Reason] = field(default_factory=dict)

    @property
    def uses(self) -> dict[str, list[str]]:
        """Ids of the pairs, or of the unpaired answer, that each opinion is part of."""
        found: dict[str, list[str]] = defaultdict(list)
        lessons: list[Pair | Unpaired] = [*self.pairs, *self.unpaired]
        for lesson in lessons:
            for opinion_id in lesson.opinions:
                found[opinion_id].append(lesson.id)
        return dict(found)


@dataclass(frozen=True)
class Statement:
    """One opinion on two answers: the first is better, unless `undecided` says that the voter did not choose."""

    opinion: votes.Opinion
    source: Source
    better: Message
    worse: Message
    undecided: Undecided | None = None

    @property
    def texts(self) -> frozenset[str]:
        return frozenset((sameness(self.better), sameness(self.worse)))


@dataclass(frozen=True)
class Rated:
    """A text and the latest thumb of each of its voters."""

    text: str
    thumbs: list[Vote]

    @cached_property
    def net(self) -> int:
        return sum(1 if vote.rating == "up" else -1 for vote in self.thumbs)

    @cached_property
    def agreeing(self) -> list[Vote]:
        """The thumbs of the majority."""
        rating = "up" if self.net > 0 else "down"
        return [vote for vote in self.thumbs if vote.rating == rating]

    @property
    def answer(self) -> AnswerRef:
        return self.thumbs[0].answer


def derive(opinions: Iterable[votes.Opinion], asked: Mapping[str, Completion], held_out_share: float) -> Derived:
    """What `opinions` of one prompt teach; `asked` holds the completions they are about."""
    reading = _Reading(asked, held_out_share)
    standing: list[votes.Opinion] = []
    for opinion in sorted(opinions, key=lambda o: (o.updated, o.created, o.id)):
        if all(ref.completion_id in asked for ref in votes.refs(opinion)):
            standing.append(opinion)
        else:
            reading.leave_out(opinion, "gone")
    compared = reading.read_statements([s for o in standing for s in reading.statements(o)])
    reading.read_thumbs([o for o in standing if isinstance(o, Vote)], compared)
    return reading.result()


def split_of(messages: Sequence[Message], held_out_share: float) -> Split:
    """By hash of the conversation's first user turn, so all its turns and votes fall on one side for ever."""
    share = int(conversation_digest(list(messages))[:8], 16) / 0x1_0000_0000
    return "held_out" if share < held_out_share else "train"


class _Reading:
    """The opinions on one prompt while they are read."""

    def __init__(self, asked: Mapping[str, Completion], held_out_share: float) -> None:
        self._asked = asked
        self._held_out_share = held_out_share
        self._pairs: list[Pair] = []
        self._unpaired: list[Unpaired] = []
        self._left_out: dict[str, Reason] = {}

    def result(self) -> Derived:
        used = {opinion_id for pair in self._pairs for opinion_id in pair.opinions}
        return Derived(self._pairs, self._unpaired, {i: why for i, why in self._left_out.items() if i not in used})

    def leave_out(self, opinion: votes.Opinion, reason: Reason) -> None:
        self._left_out[opinion.id] = reason

    def statements(self, opinion: votes.Opinion) -> Iterator[Statement]:
        if isinstance(opinion, Preference):
            yield Statement(opinion, "preference", self._said(opinion.chosen), self._said(opinion.rejected))
        elif isinstance(opinion, ComparisonVote):
            a, b = self._said(opinion.a), self._said(opinion.b)
            better, worse = (b, a) if opinion.preferred == "b" else (a, b)
            yield Statement(opinion, "comparison", better, worse, UNDECIDED.get(opinion.preferred))
        elif opinion.correction:
            wanted: Message = {"role": "assistant", "content": opinion.correction}
            yield Statement(opinion, "correction", wanted, self._said(opinion.answer))

    def read_statements(self, statements: Iterable[Statement]) -> set[frozenset[str]]:
        """Returns which texts were compared with each other, whatever came of it."""
        groups: dict[frozenset[str], dict[str, Statement]] = defaultdict(dict)
        for statement in statements:
            if len(statement.texts) == 1:
                self.leave_out(statement.opinion, "same_text")
                continue
            heard = groups[statement.texts]
            if earlier := heard.get(statement.opinion.voter):
                self.leave_out(earlier.opinion, "superseded")
            heard[statement.opinion.voter] = statement
        for heard in groups.values():
            self._decide(list(heard.values()))
        return set(groups)

    def _decide(self, heard: list[Statement]) -> None:
        wins = Counter(sameness(s.better) for s in heard if not s.undecided).most_common()
        lead = wins[0][1] - sum(count for _, count in wins[1:]) if wins else 0
        agreeing: list[Statement] = []
        for statement in heard:
            if statement.undecided:
                self.leave_out(statement.opinion, statement.undecided)
            elif lead == 0 or sameness(statement.better) != wins[0][0]:
                self.leave_out(statement.opinion, "outvoted" if lead else "draw")
            else:
                agreeing.append(statement)
        if agreeing:
            source = min((s.source for s in agreeing), key=TRUST.__getitem__)
            by = [s.opinion for s in agreeing]
            needed = by if lead == 1 else []
            self._teach(source, agreeing[0].better, agreeing[0].worse, by, len(agreeing) / len(heard), needed)

    def read_thumbs(self, thumbs: Iterable[Vote], compared: set[frozenset[str]]) -> None:
        by_text: dict[str, dict[str, Vote]] = defaultdict(dict)
        for vote in thumbs:
            heard = by_text[sameness(self._said(vote.answer))]
            if earlier := heard.get(vote.voter):
                self.leave_out(earlier, "superseded")
            heard[vote.voter] = vote
        rated = [Rated(text, list(heard.values())) for text, heard in by_text.items()]
        covered = {sameness(message) for pair in self._pairs for message in (pair.chosen, pair.rejected)}
        paired = covered | self._pair_thumbs(rated, compared)
        for one in rated:
            for vote in one.thumbs:
                if one.net == 0:
                    self.leave_out(vote, "draw")
                elif (vote.rating == "up") != (one.net > 0):
                    self.leave_out(vote, "outvoted")
                else:
                    self.leave_out(vote, "covered" if one.text in covered else "lone_thumb")
            if one.net != 0 and one.text not in paired:
                self._leave_unpaired(one)

    def _pair_thumbs(self, rated: list[Rated], compared: set[frozenset[str]]) -> set[str]:
        """Returns the texts that found a partner. Oldest first, so that new votes do not part old pairs."""
        paired: set[str] = set()
        by_age = sorted(rated, key=lambda one: min((vote.created, vote.id) for vote in one.thumbs))
        disliked = [one for one in by_age if one.net < 0]
        for liked in [one for one in by_age if one.net > 0]:
            other = next((d for d in disliked if frozenset((liked.text, d.text)) not in compared), None)
            if other is None:
                continue
            disliked.remove(other)
            paired |= {liked.text, other.text}
            by = [*liked.agreeing, *other.agreeing]
            weight = len(by) / len([*liked.thumbs, *other.thumbs])
            needed = [*liked.agreeing * (liked.net == 1), *other.agreeing * (other.net == -1)]
            self._teach("thumbs", self._said(liked.answer), self._said(other.answer), by, weight, needed)
        return paired

    def _teach(
        self,
        source: Source,
        chosen: Message,
        rejected: Message,
        by: Sequence[votes.Opinion],
        weight: float,
        needed: Sequence[votes.Opinion],
    ) -> None:
        """Without any of `needed` the pair would not stand: theirs is a majority of one."""
        quoted = sorted({ref.completion_id for opinion in by for ref in votes.refs(opinion)})
        first = self._asked[quoted[0]]
        pair = Pair(
            id=Pair.id_of(first.prompt_hash, sameness(chosen), sameness(rejected)),
            prompt_hash=first.prompt_hash,
            prompt=first.messages,
            tools=first.tools,
            chosen=trainable(chosen),
            rejected=trainable(rejected),
            source=source,
            split=split_of(first.messages, self._held_out_share),
            opinions=sorted(opinion.id for opinion in by),
            completions=quoted,
            adapters=sorted({self._asked[completion_id].adapter for completion_id in quoted}),
            voters=sorted({opinion.voter for opinion in by}),
            needed=sorted({opinion.voter for opinion in needed}),
            keys=sorted({opinion.key for opinion in by if opinion.key}),
            weight=weight,
            created=max(opinion.updated for opinion in by),
        )
        self._pairs.append(pair)

    def _leave_unpaired(self, one: Rated) -> None:
        first = self._asked[one.answer.completion_id]
        unpaired = Unpaired(
            id=Unpaired.id_of(first.prompt_hash, one.text),
            prompt_hash=first.prompt_hash,
            answer=one.answer,
            label=one.net > 0,
            split=split_of(first.messages, self._held_out_share),
            opinions=sorted(vote.id for vote in one.agreeing),
            weight=len(one.agreeing) / len(one.thumbs),
            created=max(vote.updated for vote in one.agreeing),
        )
        self._unpaired.append(unpaired)

    def _said(self, ref: AnswerRef) -> Message:
        answer = self._asked[ref.completion_id].answer(ref.choice)
        assert answer is not None, "a vote is only taken for a choice that exists"
        return answer


def trainable(message: Message) -> Message:
    """What training needs of a message: no nulls, no fields of the serving engine."""
    kept = {k: message[k] for k in ("role", "content", "tool_calls") if message.get(k)}
    return {"role": "assistant", "content": "", **kept}
