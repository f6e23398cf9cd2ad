"""The gate: what is broken or surely worse stays off the air, what nobody can tell waits, chance does not decide."""

import random
from typing import Any

import pytest

from feedback.proportions import chance_of_losing, wilson
from trainer.electorate import Electorate
from trainer.evaluation import Divergence, Evaluation, GuardScore, Strength
from trainer.gate import Preflight, Verdict, judge
from trainer.limits import REAL, TINY
from trainer.measures.duels import Duel
from trainer.measures.preference import PairScore
from trainer.measures.speech import Speech, Wobble

SOUND = {"finite": True, "shapes": True, "config": True, "changes": True, "norm": 5.0, "reasons": []}
USUAL = Speech(answers=32, length=40.0, ended=1.0, repeated=0.01, marks=1.0)
MANY = Electorate(pairs=300, voters=20, largest_share=0.08)


def scores(before: list[bool], after: list[bool], drift: float = 0.01) -> list[PairScore]:
    pairs = zip(before, after, strict=True)
    return [PairScore(id=f"p{i}", before=2 * b - 1, after=2 * a - 1, drift=drift) for i, (b, a) in enumerate(pairs)]


def strength(held_out: list[PairScore], **given: Any) -> Strength:
    usual: dict[str, Any] = {
        "eta": 1.0,
        "divergence": Divergence(per_token=0.02, sequence=2.0, tokens=900),
        "speech": USUAL,
    }
    return Strength(held_out=held_out, **(usual | given))


def evaluation(before: list[bool], after: list[bool], has_live: bool = True, **given: Any) -> Evaluation:
    """Pairs that what is live and the candidate get right; keywords of Strength and of Evaluation."""
    of_strength = {name: given.pop(name) for name in list(given) if name in Strength.model_fields}
    drift = given.pop("drift", 0.01)
    usual: dict[str, Any] = {"beta": 0.1, "weights": SOUND, "live_speech": USUAL, "chosen_speech": USUAL}
    return Evaluation(
        has_live=has_live, strengths=[strength(scores(before, after, drift), **of_strength)], **(usual | given)
    )


def good(**given: Any) -> Evaluation:
    return evaluation([True] * 50 + [False] * 50, [True] * 90 + [False] * 10, **given)


def verdict(found: Evaluation, electorate: Electorate = MANY, preflight: Preflight | None = None) -> Verdict:
    return judge(found, REAL, electorate, preflight or Preflight(is_checked=True))


def outcome(found: Verdict, criterion: str) -> str:
    return next(one.outcome for one in found.criteria if one.id == criterion)


def test_a_better_candidate_passes_with_its_numbers() -> None:
    found = verdict(good())

    assert (found.decision, found.passed) == ("pass", True)
    assert (found.numbers["accuracy_before"], found.numbers["accuracy"]) == (0.5, 0.9)
    assert (found.numbers["lost"], found.numbers["won"]) == (0, 40)
    assert "0.90 against 0.50" in found.reasons[0]
    assert {one.id for one in found.criteria} >= {"G0", "G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8"}


def test_a_surely_worse_candidate_is_refused_in_words() -> None:
    found = verdict(evaluation([True] * 45 + [False] * 5, [True] * 30 + [False] * 20))

    assert found.decision == "fail"
    assert "lost 15 pairs and won 0" in found.reasons[0]


def test_of_few_pairs_a_loss_that_chance_explains_passes_and_of_many_it_waits() -> None:
    few = verdict(evaluation([True] * 10, [True] * 8 + [False] * 2))
    many = verdict(evaluation([True] * 60 + [False] * 40, [False] * 8 + [True] * 56 + [False] * 36))

    assert few.decision == "pass"
    assert "may be chance" in few.reasons[0]
    assert many.decision == "canary-only"


def test_a_loss_within_the_tolerance_passes_however_sure_it_is() -> None:
    found = evaluation([True] * 1000, [True] * 980 + [False] * 20)
    assert chance_of_losing(20, 0) < 1e-5

    assert outcome(judge(found, REAL, MANY, Preflight()), "G1") == "ok"
    strict = REAL.model_copy(update={"tolerance": 0.01})
    assert outcome(judge(found, strict, MANY, Preflight()), "G1") == "fail"


def test_without_a_live_adapter_the_candidate_must_not_lose_to_a_coin() -> None:
    half = [True, False] * 20

    assert verdict(evaluation(half, [True] * 36 + [False] * 4, has_live=False)).passed
    assert verdict(evaluation(half, [True] * 8 + [False] * 32, has_live=False)).decision == "fail"


def test_ten_pairs_of_one_voter_are_not_ten_opinions() -> None:
    """Sixty pairs of six voters, of whom five gain a little and one loses much."""
    after = [True] * 50 + [False] * 10
    found = evaluation([False] * 10 + [True] * 50, after)
    apart = verdict(found, Electorate(pairs=60, voters=60, largest_share=0.1))
    bunches = {f"p{i}": f"voter-{i // 10}" for i in range(60)}
    together = verdict(found, Electorate(pairs=60, voters=6, largest_share=0.2, bunches=bunches))

    assert together.numbers["gain_high"] - together.numbers["gain_low"] > 1.5 * (
        apart.numbers["gain_high"] - apart.numbers["gain_low"]
    )


@pytest.mark.parametrize("broken", ["finite", "shapes", "config"])
def test_unsound_weights_are_refused_whatever_the_accuracy(broken: str) -> None:
    found = verdict(good(weights={**SOUND, broken: False}))

    assert found.decision == "fail"
    assert broken in found.reasons[0]


def test_the_reasons_of_the_weights_check_are_the_verdict_s() -> None:
    said = "weights must be finite; 1 of 56 tensors hold NaN or Inf, first x"
    unmeasured = Evaluation(beta=0.1, weights={**SOUND, "finite": False, "reasons": [said]})

    found = verdict(unmeasured)

    assert (found.decision, found.reasons) == ("fail", [said])


def test_an_adapter_that_was_not_measured_does_not_pass() -> None:
    assert verdict(Evaluation(beta=0.1, weights=SOUND)).decision == "fail"


def test_what_vllm_s_loader_refuses_does_not_pass_and_a_loader_that_is_not_there_is_told() -> None:
    refused = verdict(good(), preflight=Preflight(is_checked=True, fault="LoRA rank 64 is greater than 16"))
    unasked = verdict(good(), preflight=Preflight(trouble="loadable ended with code 1"))

    assert refused.decision == "fail"
    assert "rank 64" in refused.reasons[0]
    assert unasked.passed
    assert any("could not be asked" in reason for reason in unasked.reasons)


@pytest.mark.parametrize(
    ("given", "criterion", "words"),
    [
        ({"drift": -0.2}, "G3", "less likely, by 0.200 nats"),
        ({"divergence": Divergence(per_token=0.5, sequence=9, tokens=9)}, "G4", "0.500 nats a token from the base"),
        ({"divergence": Divergence(per_token=float("nan"), sequence=9, tokens=9)}, "G4", "nan"),
        ({"speech": USUAL.model_copy(update={"length": 90.0})}, "G5", "answers have 90 tokens"),
        ({"speech": USUAL.model_copy(update={"ended": 0.5})}, "G5", "50% of its answers come to an end"),
        ({"speech": USUAL.model_copy(update={"repeated": 0.3})}, "G5", "says twice"),
        ({"speech": USUAL.model_copy(update={"marks": 9.0})}, "G5", "9.0 headings"),
        (
            {"trained": [1.0] * 100, "held_out": scores([True] * 100, [True, False, True, True, False] * 20)},
            "G2",
            "heart",
        ),
    ],
)
def test_a_candidate_that_goes_too_far_is_refused_in_words(given: dict[str, Any], criterion: str, words: str) -> None:
    found = good(**{name: value for name, value in given.items() if name != "held_out"})
    if "held_out" in given:
        found.strengths[0].held_out = given["held_out"]

    refused = verdict(found)

    assert refused.decision == "fail"
    assert outcome(refused, criterion) == "fail"
    assert any(words in reason for reason in refused.reasons)


def test_answers_preferred_by_mistake_may_become_less_likely() -> None:
    mistaken = scores([False] * 30, [False] * 30, drift=-2.0)
    right = scores([True] * 28, [True] * 28, drift=0.1)
    displaced = scores([True] * 28, [True] * 28, drift=-0.1)

    def of(held_out: list[PairScore]) -> Evaluation:
        return good().model_copy(update={"strengths": [strength(held_out)]})

    assert outcome(verdict(of(mistaken + right)), "G3") == "ok"
    assert outcome(verdict(of(mistaken + displaced)), "G3") == "fail"


def test_a_difference_that_the_live_model_shows_against_itself_is_none() -> None:
    long = USUAL.model_copy(update={"length": 58.0})
    noise = Wobble(length_low=0.6, length_high=1.6)

    assert outcome(verdict(good(speech=long)), "G5") == "fail"
    assert outcome(verdict(good(speech=long, wobble=noise)), "G5") == "ok"


def test_answers_may_become_as_long_as_those_that_people_preferred() -> None:
    long = USUAL.model_copy(update={"length": 80.0, "marks": 4.0})

    assert outcome(verdict(good(speech=long, chosen_speech=long)), "G5") == "ok"


def test_an_adapter_at_less_than_its_strength_says_so() -> None:
    found = good()
    found.strengths.append(found.strengths[0].model_copy(update={"eta": 0.5}))

    passed = verdict(found)

    assert (passed.decision, passed.eta) == ("pass", 0.5)
    assert "published with 50% of it" in passed.reasons[-1]


def earlier(before: list[bool], after: list[bool]) -> list[PairScore]:
    return [score.model_copy(update={"id": f"earlier-{score.id}"}) for score in scores(before, after)]


def test_what_turns_round_the_votes_of_earlier_jobs_waits_for_an_operator() -> None:
    """A change of taste looks just as labels turned round: the numbers cannot tell, so somebody must."""
    turned = verdict(good(earlier=earlier([True] * 25, [False] * 22 + [True] * 3)))
    few = verdict(good(earlier=earlier([True] * 5, [False] * 5)))
    forgot = verdict(good(earlier=earlier([True] * 40, [True] * 30 + [False] * 10)))

    assert turned.decision == "canary-only"
    assert "changed their mind or labels were turned round" in turned.reasons[0]
    assert few.passed
    assert forgot.passed
    assert outcome(forgot, "G1b") == "warn"


def test_new_votes_that_go_against_what_is_live_wait_for_an_operator() -> None:
    against = verdict(evaluation([True] * 4 + [False] * 17, [True] * 15 + [False] * 6))
    agreeing = verdict(evaluation([True] * 14 + [False] * 7, [True] * 18 + [False] * 3))
    without_live = verdict(evaluation([False] * 21, [True] * 18 + [False] * 3, has_live=False))

    assert against.decision == "canary-only"
    assert "of 21 new ones what is live gets 4 right" in against.reasons[0]
    assert agreeing.passed
    assert outcome(without_live, "G1b") == "skipped"


def test_one_voter_does_not_decide_for_the_others_and_may_for_nobody_else() -> None:
    among_others = verdict(good(), Electorate(pairs=80, voters=12, largest_share=0.7))
    alone = verdict(good(), Electorate(pairs=80, voters=1, largest_share=1.0, is_sole=True))

    assert among_others.decision == "canary-only"
    assert "one brought 70%" in among_others.reasons[0]
    assert alone.passed
    assert outcome(alone, "V1") == "warn"


def test_votes_that_only_ever_went_to_the_longer_answer_wait_for_an_operator() -> None:
    always = verdict(good(longer_wins=[True] * 100))
    mostly = verdict(good(longer_wins=[True] * 87 + [False] * 13))

    assert always.decision == "canary-only"
    assert "length may be all that was voted on" in always.reasons[0]
    assert mostly.passed


def test_an_adapter_that_does_not_know_what_it_was_trained_on_waits() -> None:
    """One of another base may get a dozen held-out pairs right by chance, but not a hundred that it never saw."""
    foreign = verdict(good(trained=[1.0] * 55 + [-1.0] * 45))
    learnt = verdict(good(trained=[1.0] * 85 + [-1.0] * 15))

    assert foreign.decision == "canary-only"
    assert "gets 55 right, as a coin might" in foreign.reasons[0]
    assert learnt.passed


def guard(before: list[bool], after: list[bool], *, is_hard: bool = False, name: str = "json") -> GuardScore:
    kind = "safety" if is_hard else "regression"
    return GuardScore(name=name, kind=kind, is_hard=is_hard, why="Because.", before=before, after=after)


def test_a_hard_guard_stops_an_adapter_and_one_of_the_others_only_warns() -> None:
    one = verdict(good(guards=[guard([True], [False])]))
    two = verdict(good(guards=[guard([True], [False]), guard([True], [False], name="other")]))
    hard = verdict(good(guards=[guard([True], [False], is_hard=True)]))

    assert (one.decision, outcome(one, "G7")) == ("pass", "warn")
    assert two.decision == "fail"
    assert hard.decision == "fail"
    assert "json is broken: Because." in hard.reasons[0]


def test_a_guard_that_was_not_kept_before_is_not_held_against_a_candidate() -> None:
    assert outcome(verdict(good(guards=[guard([False], [False], is_hard=True)])), "G8") == "ok"


def test_a_guard_of_many_answers_is_broken_by_more_than_chance() -> None:
    chance = guard([True] * 30 + [False] * 2, [True] * 28 + [False] * 2 + [True] * 2, is_hard=True)
    lost = guard([True] * 30 + [False] * 2, [True] * 20 + [False] * 12, is_hard=True)

    assert verdict(good(guards=[chance])).passed
    assert verdict(good(guards=[lost])).decision == "fail"


def test_votes_for_what_a_guard_forbids_wait_for_an_operator_although_it_is_not_said_yet() -> None:
    flattery = verdict(good(taught=[guard([True] * 50, [False] * 50, is_hard=True, name="no-flattery")]))
    alike = verdict(good(taught=[guard([True] * 25 + [False] * 25, [False] * 24 + [True] * 26, is_hard=True)]))

    assert flattery.decision == "canary-only"
    assert "people prefer answers that break no-flattery" in flattery.reasons[0]
    assert alike.passed


def test_a_judge_that_prefers_what_is_live_stops_it_and_one_that_is_silent_makes_it_wait() -> None:
    lost = verdict(good(judge="j", duels=[Duel(first=0, second=0, longer=0)] * 30))
    won = verdict(good(judge="j", duels=[Duel(first=1, second=1, longer=0)] * 30))
    silent = verdict(good(judge="j", judge_fault="the judge j gave no verdict"))

    assert lost.decision == "fail"
    assert won.passed
    assert silent.decision == "canary-only"


def test_an_equal_candidate_is_seldom_refused() -> None:
    chance = random.Random(0)
    refused = 0
    for _ in range(200):
        before = [chance.random() < 0.7 for _ in range(40)]
        after = [chance.random() < 0.7 for _ in range(40)]
        refused += outcome(verdict(evaluation(before, after)), "G1") == "fail"

    assert refused / 200 < 0.05


def test_the_pocket_model_may_go_farther_than_a_real_one() -> None:
    found = good(divergence=Divergence(per_token=0.15, sequence=3, tokens=900))

    assert judge(found, TINY, MANY, Preflight()).passed
    assert judge(found, REAL, MANY, Preflight()).decision == "fail"


def test_the_exact_test_is_the_binomial_tail() -> None:
    assert chance_of_losing(5, 0) == 1 / 32
    assert chance_of_losing(0, 0) == 1.0
    assert chance_of_losing(1, 1) == 0.75


def test_wilson_s_interval_is_the_published_one() -> None:
    low, high = wilson(15, 148)  # Newcombe 1998, table I: 0.0624 to 0.1605

    assert (round(low, 4), round(high, 4)) == (0.0624, 0.1605)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_numbers_that_are_none_are_told_in_words_and_kept_out_of_the_record() -> None:
    broken = good(divergence=Divergence(per_token=float("nan"), sequence=float("inf"), tokens=9))

    found = verdict(Evaluation.model_validate_json(broken.model_dump_json()))

    assert found.decision == "fail"
    assert "nan nats a token" in found.reasons[0]
    assert Verdict.model_validate_json(found.model_dump_json()) == found
