"""Evaluation on the pocket model: what is measured of an adapter, and that it is what was trained."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration.test_judge import judging, likes_steps
from tests.processes import ROOT
from trainer import evaluate, weights
from trainer.evaluate import Task
from trainer.evaluation import Evaluation
from trainer.guards import Guard
from trainer.habits import VOTED_TOPICS, answer, prompts_about
from trainer.judge import ModelJudge
from trainer.limits import TINY
from trainer.progress import RecipeRefused

ENV = {**os.environ, "HEED_THREADS": "1"}
ANSWERS = 12
"""Fewer than the gate asks for: what is measured is the same."""


def row(number: int, rng: Random) -> dict[str, Any]:
    topic = VOTED_TOPICS[number % len(VOTED_TOPICS)]
    return {
        "id": f"pair-{number}",
        "prompt": [{"role": "user", "content": prompts_about(topic)[number % 9]}],
        "chosen": [{"role": "assistant", "content": answer(topic, "steps", rng)}],
        "rejected": [{"role": "assistant", "content": answer(topic, "lazy", rng)}],
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    # Two threads on a busy machine wait for each other at every step: a test of seconds took minutes.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.evaluate.ANSWERS", ANSWERS)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("evaluation")
    rng = Random(0)
    rows = [row(number, rng) for number in range(60)]
    write(made / "train.jsonl", rows[:48])
    write(made / "held_out.jsonl", rows[48:])
    return made


@pytest.fixture(scope="module")
def adapter(pocket: Path, folder: Path) -> Path:
    flags = ["--base", str(pocket), "--train", str(folder / "train.jsonl"), "--work", str(folder / "work")]
    command = [sys.executable, "-m", "trainer", "dpo", *flags, "--out", str(folder / "adapter"), "--progress", "jsonl"]
    subprocess.run(command, check=True, cwd=ROOT, env=ENV, capture_output=True)
    return folder / "adapter"


def task(pocket: Path, folder: Path, adapter: Path, **given: Any) -> Task:
    usual: dict[str, Any] = {
        "live": None,
        "earlier": None,
        "trained": folder / "train.jsonl",
        "beta": 0.5,
        "limits": TINY,
    }
    return Task(base=str(pocket), adapter=adapter, held_out=folder / "held_out.jsonl", **(usual | given))


STEPS = Guard(name="steps", why="Steps.", answers="held_out", must=[r"\n1\. "])
LAZY = Guard(name="lazy", why="No videos.", prompt="How do I build a kite?", must_not=["video"])


@pytest.fixture(scope="module")
def measured(pocket: Path, folder: Path, adapter: Path) -> Evaluation:
    return evaluate.evaluate(task(pocket, folder, adapter, guards=[STEPS, LAZY]), folder / "eval.json")


def test_an_adapter_that_learnt_is_measured_to_have_learnt(measured: Evaluation, folder: Path) -> None:
    assert measured.taken is not None
    assert (len(measured.taken.held_out), len(measured.taken.trained)) == (12, 48)
    assert all(score.before == 0 for score in measured.taken.held_out)
    assert sum(score.after > 0 for score in measured.taken.held_out) >= 10
    assert 0 < measured.taken.divergence.per_token < TINY.divergence
    assert measured.taken.speech.answers == ANSWERS
    assert measured.longer_wins == []  # steps and a sentence are not laid out alike
    assert Evaluation.model_validate_json((folder / "eval.json").read_bytes()) == measured


def test_a_guard_is_asked_of_both_and_one_answer_or_many_are_kept(measured: Evaluation) -> None:
    steps = next(guard for guard in measured.guards if guard.name == "steps")

    assert len(steps.before) == len(steps.after) == ANSWERS
    assert sum(steps.after) > sum(steps.before)


def test_the_same_files_give_the_same_numbers(
    measured: Evaluation, pocket: Path, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    again = evaluate.evaluate(task(pocket, folder, adapter, guards=[STEPS, LAZY]), tmp_path / "eval.json")

    assert again == measured


def test_what_it_says_first_is_as_likely_as_the_model_says(measured: Evaluation, pocket: Path, adapter: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(pocket))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(str(pocket)), str(adapter)).eval()
    golden = measured.golden[0]
    prompt = [{"role": "user", "content": golden.prompt}]
    ids = tokenizer(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))["input_ids"]
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([ids + golden.tokens])).logits[0].float(), -1)

    for place, (token, likely) in enumerate(zip(golden.tokens, golden.logprobs, strict=True)):
        assert float(scores[len(ids) - 1 + place].max()) == pytest.approx(likely, abs=1e-4)
        assert int(scores[len(ids) - 1 + place].argmax()) == token


def test_a_candidate_that_goes_too_far_is_tried_at_less_and_published_so(
    measured: Evaluation, pocket: Path, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    assert measured.taken is not None
    tight = TINY.model_copy(update={"divergence": 0.8 * measured.taken.divergence.per_token})

    found = evaluate.evaluate(task(pocket, folder, adapter, limits=tight), tmp_path / "eval.json")
    assert found.taken is not None
    weights.scale(adapter, found.taken.eta, tmp_path / "scaled")
    scaled = evaluate.evaluate(task(pocket, folder, tmp_path / "scaled", limits=tight), tmp_path / "scaled.json")

    assert [one.eta for one in found.strengths] == list(evaluate.ETAS[: len(found.strengths)])
    assert found.taken.eta < 1
    assert found.taken.divergence.per_token <= tight.divergence < found.strengths[0].divergence.per_token
    assert scaled.taken is not None
    assert scaled.taken.eta == 1
    for here, there in zip(scaled.taken.held_out, found.taken.held_out, strict=True):
        assert here.after == pytest.approx(there.after, abs=1e-3)


def test_a_candidate_that_is_too_far_at_any_strength_is_judged_at_its_own(
    pocket: Path, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    none = TINY.model_copy(update={"divergence": 0.0})

    found = evaluate.evaluate(task(pocket, folder, adapter, limits=none), tmp_path / "eval.json")

    assert len(found.strengths) == len(evaluate.ETAS)
    assert found.taken is not None
    assert found.taken.eta == 1


def test_a_run_that_goes_on_from_a_scaled_adapter_starts_where_that_is(adapter: Path, tmp_path: Path) -> None:
    weights.scale(adapter, 0.5, tmp_path / "scaled")

    full, half = weights.to_start_from(adapter), weights.to_start_from(tmp_path / "scaled")

    up = next(name for name in full if ".lora_B." in name)
    down = up.replace(".lora_B.", ".lora_A.")
    assert (half[up] == full[up] * 0.5).all()
    assert (half[down] == full[down]).all()


def test_against_itself_a_live_adapter_gains_nothing(pocket: Path, folder: Path, adapter: Path, tmp_path: Path) -> None:
    itself = task(pocket, folder, adapter, live=adapter, earlier=folder / "held_out.jsonl")

    found = evaluate.evaluate(itself, tmp_path / "eval.json")

    assert found.taken is not None
    assert all(score.before == score.after for score in [*found.taken.held_out, *found.taken.earlier])


def test_a_judge_is_asked_in_both_orders(pocket: Path, folder: Path, adapter: Path, tmp_path: Path) -> None:
    with judging(likes_steps) as (url, asked):
        judge = ModelJudge(url, "likes-steps")
        found = evaluate.evaluate(task(pocket, folder, adapter, judge=judge), tmp_path / "eval.json")
        judge.close()

    assert found.judge == "likes-steps"
    assert len(found.duels) == ANSWERS
    assert sum(duel.score for duel in found.duels) > ANSWERS / 2
    assert len(asked) == 2 * sum(not (duel.first == duel.second == 0.5 and duel.longer == 0) for duel in found.duels)


def test_pairs_that_are_none_are_refused_in_words(pocket: Path, folder: Path, adapter: Path, tmp_path: Path) -> None:
    for text, words in (('{"chosen": 3}\n', "JSONL of rows"), ('{"prompt": 3}\n', "no pair of two")):
        (tmp_path / "held_out.jsonl").write_text(text)
        with pytest.raises(RecipeRefused, match=words):
            evaluate.evaluate(task(pocket, tmp_path, adapter, trained=None), tmp_path / "eval.json")


def test_rows_of_other_recipes_are_passed_over_and_a_rejected_answer_may_have_its_own_prompt(
    pocket: Path, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    pair = row(3, Random(3))
    rated = {"id": "u", "prompt": pair["prompt"], "completion": pair["chosen"], "label": True}
    contrast = {**row(4, Random(4)), "rejected": pair["rejected"], "rejected_prompt": pair["prompt"]}
    trained = write(tmp_path / "train.jsonl", [rated, rated])
    write(tmp_path / "held_out.jsonl", [pair, pair, contrast])

    found = evaluate.evaluate(task(pocket, tmp_path, adapter, trained=trained), tmp_path / "eval.json")

    assert found.taken is not None
    assert [score.id for score in found.taken.held_out] == ["pair-3", "pair-4"]
    assert found.taken.trained == []
    assert all(score.after > 0 for score in found.taken.held_out)
