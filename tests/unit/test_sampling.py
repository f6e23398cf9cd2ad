"""Sampling: every pair takes part, new ones more often, and one more vote changes little."""

import random
from collections import Counter

import pytest

from feedback.caps import Caps
from feedback.records import Pair, Source, Split, digest
from trainer.sampling import Least, Recent, Replay, ages, choose

NONE = Least(0, 0)
MOST = 20_000


def pair(
    number: int, *, split: Split = "train", source: Source = "thumbs", weight: float = 1.0, voter: str = ""
) -> Pair:
    return Pair(
        id=f"pair-{number:05}",
        prompt_hash=digest(str(number)),
        prompt=[{"role": "user", "content": f"question {number}"}],
        chosen={"role": "assistant", "content": "good"},
        rejected={"role": "assistant", "content": "bad"},
        source=source,
        split=split,
        opinions=[],
        completions=[],
        adapters=["heed-base"],
        voters=[voter] if voter else [],
        needed=[voter] if voter else [],
        weight=weight,
        created=float(number),
    )


def many(train: int, held_out: int) -> list[Pair]:
    return [pair(i) for i in range(train)] + [pair(10_000 + i, split="held_out") for i in range(held_out)]


def ids(some: list[Pair]) -> list[str]:
    return [pair.id for pair in some]


def test_a_pair_ages_by_what_came_after_the_round_it_was_new_in() -> None:
    some = many(10, 0)

    found = ages(some, rounds=[3.5, 7.5])

    assert [found[one.id] for one in some] == [6, 6, 6, 6, 2, 2, 2, 2, 0, 0]


def test_a_first_job_takes_each_pair_once() -> None:
    some = many(300, 40)

    chosen = choose(some, ids(some), Recent(100, MOST), seed=5, least=NONE)

    assert chosen.ids == sorted(ids(some))
    assert (chosen.replayed, chosen.capped) == (0, 0)


def test_pairs_that_one_half_life_came_after_are_drawn_half_as_often() -> None:
    some = many(3000, 0)
    how = Recent(half_life=1000, most=MOST, rounds=[999.5, 1999.5])

    drawn = [choose(some, [], how, seed, NONE).ids for seed in range(20)]

    counts = Counter(int(i.removeprefix("pair-")) // 1000 for chosen in drawn for i in chosen)
    assert counts[2] == 20_000
    assert counts[1] / 20_000 == pytest.approx(0.5, abs=0.02)  # 0.0035 is one standard deviation
    assert counts[0] / 20_000 == pytest.approx(0.25, abs=0.02)


def test_without_a_new_vote_the_next_job_gets_the_same_lessons() -> None:
    some = many(300, 40)

    first = choose(some, ids(some), Recent(50, MOST), seed=1, least=NONE)
    again = choose(some, [], Recent(50, MOST, rounds=[20_000.0]), seed=1, least=NONE)

    assert again.ids == first.ids


def test_the_choice_depends_on_seed_and_pairs_and_not_on_their_order() -> None:
    some = many(400, 40)
    how = Recent(100, MOST, rounds=[199.5])

    first = choose(some, [], how, seed=1, least=NONE)

    assert choose(random.Random(3).sample(some, len(some)), [], how, seed=1, least=NONE) == first
    assert choose(some, [], how, seed=2, least=NONE) != first


def test_one_more_vote_changes_few_of_the_old_pairs() -> None:
    some = many(400, 0)
    how = Recent(100, MOST, rounds=[199.5])

    before = choose(some[:-1], [], how, seed=1, least=NONE)
    after = choose(some, [], how, seed=1, least=NONE)

    assert set(after.ids) - set(before.ids) == {some[-1].id}
    assert len(set(before.ids) - set(after.ids)) <= 3


def test_trust_and_agreement_weigh_pairs_against_each_other_and_lose_none_where_all_are_alike() -> None:
    choices = [pair(i, source="preference") for i in range(2000)]
    thumbs = [pair(2000 + i) for i in range(2000)]
    contested = [pair(4000 + i, source="preference", weight=0.6) for i in range(2000)]

    drawn = Counter(choose([*choices, *thumbs, *contested], [], Recent(100, MOST), 0, NONE).ids)

    chosen, thumbed, contested_too = (sum(drawn[i] for i in ids(some)) for some in (choices, thumbs, contested))
    assert thumbed / chosen == pytest.approx(0.5, abs=0.05)
    assert contested_too / chosen == pytest.approx(0.6, abs=0.05)
    assert chosen + thumbed + contested_too == pytest.approx(6000, abs=150)
    assert max(drawn.values()) == 2


def test_held_out_pairs_count_once_whatever_they_came_from() -> None:
    some = [pair(i, split="held_out", source="correction" if i % 2 else "thumbs") for i in range(100)]

    assert choose(some, [], Recent(100, MOST), 0, NONE).ids == sorted(ids(some))


def test_a_cap_on_the_dataset_takes_the_newest_most_often() -> None:
    some = many(4000, 0)

    chosen = choose(some, [], Recent(500, 1000, rounds=[1999.5]), seed=0, least=NONE)

    assert len(chosen.ids) == pytest.approx(1000, abs=100)
    assert sum(i >= "pair-02000" for i in chosen.ids) > 0.9 * len(chosen.ids)


def test_what_faded_comes_back_when_there_would_be_too_few() -> None:
    some = many(2000, 200)
    how = Recent(1, MOST, rounds=[float(i) for i in range(1990)] + [10_190.5])

    chosen = choose(some, [], how, seed=0, least=Least(20, 15))

    sides = Counter(one.split for one in some if one.id in chosen.ids)
    assert sides == {"train": 20, "held_out": 15}


def test_what_is_over_a_cap_is_left_out_on_each_side_and_counted() -> None:
    bot = [pair(i, split="train" if i % 2 else "held_out", voter="bot") for i in range(200)]
    crowd = [pair(1000 + i, voter=f"person-{i}") for i in range(100)]
    limits = Caps(0.02, voter_pairs=10)

    chosen = choose([*bot, *crowd], [], Recent(100, MOST), seed=0, least=NONE, limits=limits)

    assert chosen.capped == 90  # of 100 to train on; on the other side there is nobody else
    assert len(chosen.ids) == 210


def test_a_warm_job_takes_what_is_new_and_replays_a_share_of_the_old_on_both_sides() -> None:
    everything = many(100, 20)
    new = ids(everything[:40]) + ids(everything[100:110])

    chosen = choose(everything, new, Replay(0.1), seed=7, least=NONE)

    replayed = [one for one in everything if one.id in set(chosen.ids) - set(new)]
    assert set(new) <= set(chosen.ids)
    assert Counter(one.split for one in replayed) == {"train": 4, "held_out": 1}
    assert chosen.replayed == 5


def test_the_seed_chooses_what_is_replayed_and_one_more_old_pair_changes_at_most_one() -> None:
    everything = many(100, 0)
    new = ids(everything[:50])

    first = choose(everything[:-1], new, Replay(0.2), seed=1, least=NONE)

    assert choose(everything[:-1], new, Replay(0.2), seed=1, least=NONE) == first
    assert choose(everything[:-1], new, Replay(0.2), seed=2, least=NONE) != first
    assert len(set(first.ids) - set(choose(everything, new, Replay(0.2), seed=1, least=NONE).ids)) <= 1


def test_few_new_pairs_are_topped_up_with_old_ones_to_the_least_there_must_be() -> None:
    everything = many(60, 10)

    chosen = choose(everything, ids(everything[:5]), Replay(0.1), seed=0, least=Least(20, 3))

    assert Counter(one.split for one in everything if one.id in chosen.ids) == {"train": 20, "held_out": 3}


def test_with_nothing_new_a_warm_job_trains_on_everything_again() -> None:
    everything = many(10, 2)

    assert choose(everything, [], Replay(0.0), seed=0, least=NONE).ids == sorted(ids(everything))
