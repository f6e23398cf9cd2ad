"""The other methods with the real TRL: each learns what its rows say, and no kill changes a byte of it."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.recipes import Child, corrections, preferring_steps, thumbs, write_rows
from trainer import manifest, reports, reward, weights
from trainer.checkpoints import is_whole
from trainer.judge import by_reward, duels
from trainer.likelihoods import log_probabilities
from trainer.progress import RecipeRefused

ROWS = {
    "unpaired": thumbs(preferring_steps(16, seed=0)),
    "supervised": corrections(preferring_steps(32, seed=0)),
    "reward": preferring_steps(32, seed=0),
}
METHODS = sorted(ROWS)


def child_of(method: str, pocket: Path, folder: Path, *more: str) -> Child:
    folder.mkdir(exist_ok=True)
    train = write_rows(folder / "train.jsonl", ROWS[method])
    return Child(pocket, train, folder, more=more, method=method)


@pytest.fixture(scope="module")
def undisturbed(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Child]:
    made = {
        method: child_of(method, pocket, tmp_path_factory.mktemp(method), "--report-to", "tensorboard")
        for method in METHODS
    }
    for child in made.values():
        assert child.run() == 0, (child.folder / "stderr").read_text()[-2000:]
    return made


@pytest.mark.parametrize("method", METHODS)
def test_after_kill_nine_the_run_goes_on_to_the_same_bytes(
    method: str, pocket: Path, undisturbed: dict[str, Child], tmp_path: Path
) -> None:
    child = child_of(method, pocket, tmp_path)
    process = child.start()
    child.until(process, "checkpoint", 4)
    with process:
        process.kill()
    assert not child.out.exists()

    code = child.run()

    assert code == 0, (child.folder / "stderr").read_text()[-2000:]
    assert child.said("resumed")[0]["step"] >= 4
    assert weights.digest(child.out) == weights.digest(undisturbed[method].out)


def test_who_asks_for_a_report_finds_each_metric_in_it(undisturbed: dict[str, Child]) -> None:
    (written,) = (undisturbed["reward"].folder / "tensorboard").iterdir()

    assert all(name in written.read_bytes() for name in (b"train/loss", b"train/accuracy", b"train/margin"))


@pytest.mark.parametrize(
    ("asked", "said"), [("csv", "'csv' is none. Name one of them."), ("tensorboard, wandb", "`pip install wandb`")]
)
def test_a_report_that_cannot_be_had_is_refused_with_what_would_do(asked: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeRefused, match=re.escape(said)):
        reports.prepare(asked, tmp_path)


def test_a_reward_model_judges_as_the_people_it_learnt_from(pocket: Path, undisturbed: dict[str, Child]) -> None:
    judge = by_reward(str(pocket), undisturbed["reward"].out)
    asked = preferring_steps(12, seed=7)

    found = duels(
        judge,
        [row["prompt"] for row in asked],
        [row["chosen"][0]["content"] for row in asked],
        [row["rejected"][0]["content"] for row in asked],
    )

    assert sum(duel.first for duel in found) >= 10
    assert [duel.first for duel in found] == [duel.second for duel in found]  # in both orders


@pytest.mark.parametrize("method", ["supervised", "unpaired"])
def test_an_adapter_of_any_method_is_one_that_can_be_served(method: str, undisturbed: dict[str, Child]) -> None:
    child = undisturbed[method]

    assert sorted(path.name for path in child.out.iterdir()) == [weights.CONFIG, weights.WEIGHTS]
    assert weights.weigh(child.out, str(child.base))["reasons"] == []
    assert [said["step"] for said in child.said("step")] == list(range(1, 13))
    assert child.events[-1]["trained_tokens"] > 0


def preference_for_steps(child: Child) -> float:
    """Mean log-odds that the adapter adds to the steps against the lazy answer, on questions it did not learn from."""
    tokenizer = AutoTokenizer.from_pretrained(child.base)
    model = AutoModelForCausalLM.from_pretrained(child.base, dtype=torch.float32).eval()
    some = preferring_steps(56, seed=9)[32:]
    encoded = [
        (
            tokenizer.encode(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)),
            tokenizer.encode(row[side][0]["content"] + "<|end|>"),
        )
        for side in ("chosen", "rejected")
        for row in some
    ]
    before = log_probabilities(model, encoded)
    after = log_probabilities(PeftModel.from_pretrained(model, str(child.out)).eval(), encoded)
    gained = [b - a for a, b in zip(before, after, strict=True)]
    return float(sum(gained[: len(some)]) - sum(gained[len(some) :])) / len(some)


@pytest.mark.parametrize("method", ["supervised", "unpaired"])
def test_what_was_liked_or_written_becomes_likelier(method: str, undisturbed: dict[str, Child]) -> None:
    # Twelve steps; the pocket model differs by the CPU that made it, and the supervised one gained 0.28 on one of them.
    assert preference_for_steps(undisturbed[method]) > 0.1


def test_thumbs_that_come_sorted_are_shuffled_and_learnt_from(undisturbed: dict[str, Child]) -> None:
    """TRL's own unpairing feeds batches of one kind, all liked first; then the loss stays where it began."""
    steps = undisturbed["unpaired"].said("step")

    first_epoch = steps[:4]
    assert all("rewards/chosen" in step["metrics"] and "rewards/rejected" in step["metrics"] for step in first_epoch)
    assert steps[-1]["metrics"]["loss"] < steps[0]["metrics"]["loss"] - 0.02


def test_the_rarer_kind_of_thumb_weighs_as_much_in_all(pocket: Path, tmp_path: Path) -> None:
    from trainer import rows, unpaired
    from trainer.training import Run

    liked_often = ROWS["unpaired"][:16] + ROWS["unpaired"][16:20]
    train = write_rows(tmp_path / "rows.jsonl", liked_often)
    run = Run(str(pocket), train, tmp_path / "out", tmp_path / "work", None, unpaired.Hyperparameters())
    fitted = rows.fit(liked_often, ("completion",), AutoTokenizer.from_pretrained(pocket), 512)

    trainer = unpaired.build_trainer(run, fitted.dataset())

    assert (trainer.desirable_weight, trainer.undesirable_weight) == (1.0, 4.0)


def test_thumbs_of_one_kind_are_refused(pocket: Path, tmp_path: Path) -> None:
    child = Child(pocket, write_rows(tmp_path / "t.jsonl", ROWS["unpaired"][:16]), tmp_path, method="unpaired")

    assert child.run() == 1
    assert "16 liked and 0 disliked" in child.said("error")[0]["message"]


def test_a_reward_model_prefers_what_people_preferred_and_says_what_it_was_made_from(
    undisturbed: dict[str, Child],
) -> None:
    child = undisturbed["reward"]
    some = preferring_steps(40, seed=9)[32:]
    answered = [{"prompt": row["prompt"], "completion": row[side]} for side in ("chosen", "rejected") for row in some]

    scores = reward.score(str(child.base), child.out, answered)
    one_by_one = [reward.score(str(child.base), child.out, [row])[0] for row in answered[:2]]

    right = sum(liked > not_liked for liked, not_liked in zip(scores[: len(some)], scores[len(some) :], strict=True))
    assert right >= 0.75 * len(some)
    assert scores[:2] == pytest.approx(one_by_one, abs=1e-4)
    made_from = json.loads((child.out / manifest.REWARD).read_text())
    assert made_from["base"] == str(child.base)
    assert made_from["hyperparameters"]["seed"] == 0
    assert weights.weigh(child.out, str(child.base))["reasons"]  # nobody can mistake it for an adapter to serve


def test_a_reward_model_of_another_base_is_refused(undisturbed: dict[str, Child], tmp_path: Path) -> None:
    other = shutil.copytree(undisturbed["reward"].base, tmp_path / "other")
    with (other / "config.json").open("a") as config:
        config.write(" ")

    with pytest.raises(RecipeRefused, match="must be of this base"):
        reward.Scorer(str(other), undisturbed["reward"].out)


def test_checkpoints_of_every_method_are_sealed(undisturbed: dict[str, Child]) -> None:
    for child in undisturbed.values():
        kept = list(child.work.glob("checkpoint-*"))

        assert kept
        assert all(is_whole(checkpoint) for checkpoint in kept)
