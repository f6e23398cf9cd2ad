"""Lessons: what the opinions on one prompt teach, rule by rule and for any mixture of them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.lessons import Derived, derive, split_of
from feedback.records import (
    AnswerRef,
    Choice,
    ComparisonVote,
    Completion,
    Pair,
    Preference,
    Preferred,
    Rating,
    Vote,
    prompt_digest,
)
from feedback.tally import MILLION, tally_of
from feedback.votes import Opinion

PROMPT = [{"role": "user", "content": "q"}]
GOOD, BAD, UGLY, GOOD_AGAIN = range(4)
TEXTS = ("good", "bad", "ugly", " good ")
clock = count(1)


def ref(answer: int) -> AnswerRef:
    return AnswerRef(completion_id=f"chatcmpl-{answer}")


ASKED = {
    ref(i).completion_id: Completion(
        id=ref(i).completion_id,
        served_model="heed",
        adapter=f"heed-v{i + 1}-0000000{i}",
        created=1.0,
        messages=PROMPT,
        prompt_hash=prompt_digest(PROMPT),
        choices=[Choice(index=0, message={"role": "assistant", "content": text})],
    )
    for i, text in enumerate(TEXTS)
}


def thumb(rating: Rating, answer: int, voter: str, correction: str | None = None) -> Vote:
    at = float(next(clock))
    return Vote(
        id=Vote.id_of(ref(answer).completion_id, 0, voter),
        completion_id=ref(answer).completion_id,
        prompt_hash=prompt_digest(PROMPT),
        rating=rating,
        voter=voter,
        model=f"heed-v{answer + 1}-0000000{answer}",
        correction=correction,
        created=at,
        updated=at,
    )


def up(answer: int, voter: str = "ann") -> Vote:
    return thumb("up", answer, voter)


def down(answer: int, voter: str = "ann", correction: str | None = None) -> Vote:
    return thumb("down", answer, voter, correction)


def prefer(chosen: int, rejected: int, voter: str = "ann") -> Preference:
    at = float(next(clock))
    one, other = ref(chosen), ref(rejected)
    preference_id = Preference.id_of(one, other, voter)
    hashed = prompt_digest(PROMPT)
    return Preference(
        id=preference_id, chosen=one, rejected=other, prompt_hash=hashed, voter=voter, created=at, updated=at
    )


def judge(a: int, b: int, preferred: Preferred, voter: str = "ann") -> ComparisonVote:
    at = float(next(clock))
    comparison_id = f"cmp-{a}-{b}"
    return ComparisonVote(
        id=ComparisonVote.id_of(comparison_id, voter),
        comparison_id=comparison_id,
        preferred=preferred,
        a=ref(a),
        b=ref(b),
        voter=voter,
        prompt_hash=prompt_digest(PROMPT),
        model_a=f"heed-v{a + 1}-0000000{a}",
        model_b=f"heed-v{b + 1}-0000000{b}",
        created=at,
        updated=at,
    )


def derived(opinions: Iterable[Opinion]) -> Derived:
    return derive(opinions, ASKED, held_out_share=0.1)


@dataclass(frozen=True)
class Case:
    """A rule, opinions, and what they amount to. A pair is its texts, source and weight."""

    rule: str
    opinions: Sequence[Opinion]
    pairs: list[tuple[str, str, str, float]] = field(default_factory=list)
    unpaired: list[tuple[str, bool, float]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


CASES = [
    Case("nothing teaches nothing", []),
    Case("a preference is a pair", [prefer(GOOD, BAD)], [("good", "bad", "preference", 1)]),
    Case("a comparison won by b is a pair", [judge(BAD, GOOD, "b")], [("good", "bad", "comparison", 1)]),
    Case("a tie teaches nothing", [judge(GOOD, BAD, "tie")], left_out={"tie": 1}),
    Case("two bad answers teach nothing", [judge(GOOD, BAD, "both_bad")], left_out={"both_bad": 1}),
    Case(
        "a correction is a pair against what it corrects",
        [down(BAD, correction="better")],
        [("better", "bad", "correction", 1)],
    ),
    Case("an up and a down are a pair", [up(GOOD), down(BAD, "bob")], [("good", "bad", "thumbs", 1)]),
    Case("a lone thumb stays unpaired", [up(GOOD)], unpaired=[("good", True, 1)], left_out={"lone_thumb": 1}),
    Case(
        "two ups of two answers stay unpaired",
        [up(GOOD), up(BAD)],
        unpaired=[("good", True, 1), ("bad", True, 1)],
        left_out={"lone_thumb": 2},
    ),
    Case("contrary preferences are a draw", [prefer(GOOD, BAD), prefer(BAD, GOOD, "bob")], left_out={"draw": 2}),
    Case("contrary thumbs are a draw", [up(GOOD), down(GOOD, "bob")], left_out={"draw": 2}),
    Case(
        "the majority decides and its share is the weight",
        [prefer(GOOD, BAD), prefer(GOOD, BAD, "bob"), prefer(BAD, GOOD, "cid")],
        [("good", "bad", "preference", 2 / 3)],
        left_out={"outvoted": 1},
    ),
    Case(
        "a tie is heard and agrees with nobody",
        [judge(GOOD, BAD, "a"), judge(GOOD, BAD, "tie", "bob")],
        [("good", "bad", "comparison", 1 / 2)],
        left_out={"tie": 1},
    ),
    Case(
        "preferences and comparisons of two texts are one pair",
        [judge(GOOD, BAD, "a"), prefer(GOOD, BAD, "bob")],
        [("good", "bad", "preference", 1)],
    ),
    Case(
        "the same text sampled again is the same answer",
        [prefer(GOOD, BAD), prefer(GOOD_AGAIN, BAD, "bob")],
        [("good", "bad", "preference", 1)],
    ),
    Case(
        "a voter's latest word on two texts counts, in whatever way it was given",
        [prefer(GOOD, BAD), judge(BAD, GOOD_AGAIN, "a")],
        [("bad", "good", "comparison", 1)],
        left_out={"superseded": 1},
    ),
    Case("answers that say the same do not pair", [prefer(GOOD, GOOD_AGAIN)], left_out={"same_text": 1}),
    Case(
        "thumbs on the same text are one voter's latest",
        [up(GOOD), down(GOOD_AGAIN)],
        unpaired=[("good", False, 1)],
        left_out={"superseded": 1, "lone_thumb": 1},
    ),
    Case(
        "a comparison outweighs thumbs on the same two answers",
        [prefer(GOOD, BAD), up(BAD, "bob"), down(GOOD, "bob")],
        [("good", "bad", "preference", 1)],
        left_out={"covered": 2},
    ),
    Case(
        "thumbs do not decide what comparisons left a draw",
        [judge(GOOD, BAD, "tie"), up(GOOD, "bob"), down(BAD, "bob")],
        unpaired=[("good", True, 1), ("bad", False, 1)],
        left_out={"tie": 1, "lone_thumb": 2},
    ),
    Case(
        "an answer is in one thumbs pair at most",
        [up(GOOD), down(BAD), down(UGLY)],
        [("good", "bad", "thumbs", 1)],
        unpaired=[("ugly", False, 1)],
        left_out={"lone_thumb": 1},
    ),
    Case(
        "the weight of thumbs is the share that agrees",
        [up(GOOD), up(GOOD, "bob"), down(GOOD, "cid"), down(BAD)],
        [("good", "bad", "thumbs", 3 / 4)],
        left_out={"outvoted": 1},
    ),
    Case(
        "equal corrections are one pair",
        [down(BAD, "ann", "better"), down(BAD, "bob", "better")],
        [("better", "bad", "correction", 1)],
    ),
    Case(
        "a correction that says what another answer says is a word for that answer",
        [down(BAD, "ann", "good"), prefer(BAD, GOOD, "bob"), prefer(GOOD, BAD, "cid")],
        [("good", "bad", "preference", 2 / 3)],
        left_out={"outvoted": 1},
    ),
    Case(
        "an opinion of a deleted answer teaches nothing",
        [prefer(GOOD, 7)],
        left_out={"gone": 1},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_rule(case: Case) -> None:
    found = derived(case.opinions)

    pairs = [(p.chosen["content"].strip(), p.rejected["content"].strip(), p.source, p.weight) for p in found.pairs]
    texts = {ref(i).completion_id: text.strip() for i, text in enumerate(TEXTS)}
    assert pairs == case.pairs
    assert [(texts[u.answer.completion_id], u.label, u.weight) for u in found.unpaired] == case.unpaired
    assert Counter(found.left_out.values()) == case.left_out


def test_a_pair_names_what_it_rests_on() -> None:
    crowd: list[Opinion] = [prefer(GOOD, BAD), judge(BAD, GOOD_AGAIN, "b", "bob"), prefer(BAD, GOOD, "cid")]

    (pair,) = derived(crowd).pairs

    assert pair.opinions == sorted(o.id for o in crowd[:2])
    assert pair.completions == ["chatcmpl-0", "chatcmpl-1", "chatcmpl-3"]
    assert pair.adapters == ["heed-v1-00000000", "heed-v2-00000001", "heed-v4-00000003"]
    assert pair.created == crowd[1].updated
    assert pair.split == split_of(PROMPT, 0.1)


def test_more_voters_do_not_make_a_pair_new_and_another_direction_does() -> None:
    (first,) = derived([prefer(GOOD, BAD)]).pairs
    (more,) = derived([prefer(GOOD, BAD), judge(GOOD_AGAIN, BAD, "a", "bob")]).pairs
    (turned,) = derived([prefer(BAD, GOOD)]).pairs

    assert more.id == first.id
    assert turned.id != first.id


def test_a_pair_recorded_before_weights_has_full_weight() -> None:
    (pair,) = derived([prefer(GOOD, BAD)]).pairs

    old = Pair.model_validate(pair.model_dump(exclude={"weight"}))

    assert old.weight == 1.0


answers = st.integers(0, len(TEXTS) - 1)
voters = st.sampled_from(["ann", "bob", "cid", "dee"])
two_answers = st.tuples(answers, answers).filter(lambda two: two[0] != two[1])
opinions = st.one_of(
    st.builds(thumb, st.sampled_from(["up", "down"]), answers, voters, st.sampled_from([None, "good", "better"])),
    st.builds(lambda two, voter: prefer(two[0], two[1], voter), two_answers, voters),
    st.builds(
        lambda two, said, voter: judge(two[0], two[1], said, voter),
        two_answers,
        st.sampled_from(["a", "b", "tie", "both_bad"]),
        voters,
    ),
)


@st.composite
def crowds(draw: st.DrawFn) -> list[Opinion]:
    """What stands in a ledger: of each voter one opinion of one thing."""
    return list({opinion.id: opinion for opinion in draw(st.lists(opinions, max_size=24))}.values())


@given(crowds())
def test_every_opinion_is_used_or_left_out_for_one_reason(crowd: list[Opinion]) -> None:
    found = derived(crowd)

    used = {opinion_id for pair in found.pairs for opinion_id in pair.opinions}
    assert used | found.left_out.keys() == {opinion.id for opinion in crowd}
    assert not used & found.left_out.keys()


@given(crowds(), st.randoms())
def test_the_order_in_which_opinions_are_read_changes_nothing(crowd: list[Opinion], random: Random) -> None:
    shuffled = list(crowd)
    random.shuffle(shuffled)

    assert derived(shuffled) == derived(crowd)


@given(crowds())
def test_no_two_lessons_contradict_or_repeat_each_other(crowd: list[Opinion]) -> None:
    found = derived(crowd)

    compared = [frozenset((p.chosen["content"].strip(), p.rejected["content"].strip())) for p in found.pairs]
    paired = {text for texts in compared for text in texts}
    single = [TEXTS[int(u.answer.completion_id[-1])].strip() for u in found.unpaired]
    assert all(len(texts) == 2 for texts in compared)
    assert len(set(compared)) == len(compared)
    assert len(set(single)) == len(single)
    assert not paired & set(single)


@given(crowds())
def test_a_pair_has_most_of_those_who_decided_and_each_of_them_once(crowd: list[Opinion]) -> None:
    by_id = {opinion.id: opinion for opinion in crowd}
    for pair in derived(crowd).pairs:
        assert 0 < pair.weight <= 1
        if pair.source == "thumbs":
            continue
        agreeing = [by_id[i].voter for i in pair.opinions]
        chosen, rejected = pair.chosen["content"].strip(), pair.rejected["content"].strip()
        latest: dict[str, str | bool | None] = {}
        for opinion in sorted(crowd, key=lambda o: o.updated):
            if (said := winner(opinion, {chosen, rejected})) is not False:
                latest[opinion.voter] = said
        for_it = [voter for voter, said in latest.items() if said == chosen]
        against = [voter for voter, said in latest.items() if said == rejected]
        assert sorted(agreeing) == sorted(for_it)
        assert len(for_it) > len(against)
        assert pair.weight == len(for_it) / len(latest)


def winner(opinion: Opinion, texts: set[str]) -> str | bool | None:
    """Which of two texts an opinion is for, None for neither; False when it is about something else."""

    def said(ref: AnswerRef) -> str:
        return TEXTS[int(ref.completion_id[-1])].strip()

    if isinstance(opinion, Vote):
        better, worse = opinion.correction, said(opinion.answer)
        return better if {better, worse} == texts and better != worse else False
    if isinstance(opinion, Preference):
        better, worse = said(opinion.chosen), said(opinion.rejected)
        return better if {better, worse} == texts and better != worse else False
    a, b = said(opinion.a), said(opinion.b)
    if {a, b} != texts or a == b:
        return False
    return {"a": a, "b": b}.get(opinion.preferred)


@given(crowds())
def test_the_tally_counts_what_was_derived(crowd: list[Opinion]) -> None:
    found = derived(crowd)
    counts = tally_of(found)

    assert sum(n for name, n in counts.items() if name.startswith("pairs:")) == len(found.pairs)
    assert sum(n for name, n in counts.items() if name.startswith("left_out:")) == len(found.left_out)
    assert counts["opinions:used"] + len(found.left_out) == len(crowd)
    assert counts["unpaired:up"] + counts["unpaired:down"] == len(found.unpaired)
    assert counts["weight:millionths"] == sum(round(pair.weight * MILLION) for pair in found.pairs)
    assert counts["characters:chosen"] == sum(len(pair.chosen["content"]) for pair in found.pairs)
    assert 0 not in counts.values()
