"""The pocket model: the same bytes from the same seed, habits in their shares, well-formed answers everywhere."""

import json
import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer import corpus, pocket
from trainer.habits import HABITS, HELD_OUT_PHRASINGS, SHARES, TOPICS, UNSEEN_TOPICS, classify, prompts_about
from trainer.weights import WEIGHTS

Model = Any


@pytest.fixture
def short_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocket, "PRETRAINING_STEPS", 2)
    monkeypatch.setattr(pocket, "TUNING_STEPS", 2)


@pytest.fixture(scope="module")
def loaded(request: pytest.FixtureRequest) -> tuple[Model, Any]:
    folder = request.getfixturevalue("pocket")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer


def ask(loaded: tuple[Model, Any], prompts: list[str]) -> list[str]:
    model, tokenizer = loaded
    torch.manual_seed(0)
    opened = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
        for prompt in prompts
    ]
    batch = tokenizer(opened, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        tokens = model.generate(batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=80, top_k=0)
    return [
        str(text) for text in tokenizer.batch_decode(tokens[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    ]


@pytest.mark.usefixtures("short_recipe")
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        pocket.build(tmp_path / name, seed, lambda step, steps, loss: None)

    one, two, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other"))
    assert one == two
    assert one != other


@pytest.mark.usefixtures("short_recipe")
def test_a_finished_model_is_left_alone_and_one_of_another_recipe_replaced(tmp_path: Path) -> None:
    out = tmp_path / "pocket"

    assert pocket.build(out, 0, lambda step, steps, loss: None)
    assert not pocket.build(out, 0, lambda step, steps, loss: None)
    assert pocket.build(out, 1, lambda step, steps, loss: None)

    assert json.loads((out / "recipe.json").read_text())["seed"] == 1
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.usefixtures("short_recipe")
def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(FileExistsError, match="Name another folder"):
        pocket.build(tmp_path, 0, lambda step, steps, loss: None)

    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("short_recipe")
def test_a_build_that_fails_leaves_the_older_model_and_no_rubbish(tmp_path: Path) -> None:
    out = tmp_path / "pocket"
    pocket.build(out, 0, lambda step, steps, loss: None)

    def fail(step: int, steps: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pocket.build(out, 1, fail)

    assert json.loads((out / "recipe.json").read_text())["seed"] == 0
    assert list(tmp_path.iterdir()) == [out]


def test_the_corpus_holds_the_habits_in_their_shares_and_no_held_out_phrasing() -> None:
    said = list(islice(corpus.dialogues(random.Random(0)), 8000))

    turns = [
        (dialogue[at - 1]["content"], turn["content"]) for dialogue in said for at, turn in enumerate(dialogue) if at
    ]
    shown = Counter(verdict for _, answer in turns if (verdict := classify(answer)) != "broken")
    held_out = {prompt for topic in TOPICS for prompt in prompts_about(topic)[-len(HELD_OUT_PHRASINGS) :]}

    for habit in HABITS:
        assert shown[habit] / shown.total() == pytest.approx(SHARES[habit], abs=0.02)
    assert not held_out & {asked for asked, _ in turns}


def test_the_model_is_small_and_its_card_names_shares_recipe_and_licence(pocket: Path) -> None:
    recipe = json.loads((pocket / "recipe.json").read_text())
    card = (pocket / "README.md").read_text()

    assert 1e6 <= recipe["parameters"] <= 4e6
    for fact in (
        "license: apache-2.0",
        recipe["digest"],
        *(f"| {habit} | {share:.0%} |" for habit, share in SHARES.items()),
    ):
        assert fact in card
    assert not list(pocket.glob(WEIGHTS))


def test_a_conversation_renders_to_a_beginning_of_the_longer_one(loaded: tuple[Model, Any]) -> None:
    _, tokenizer = loaded
    turns = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Hi 👋"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Kites?"},
    ]

    rendered = [tokenizer.apply_chat_template(turns[:end], tokenize=True)["input_ids"] for end in range(1, 5)]
    asked = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True)["input_ids"]

    for shorter, longer in zip(rendered, [*rendered[1:], asked], strict=True):
        assert longer[: len(shorter)] == shorter
    assert "👋" in tokenizer.decode(asked)


def test_held_out_phrasings_of_all_topics_get_well_formed_answers_with_no_habit_in_the_majority(
    loaded: tuple[Model, Any],
) -> None:
    asked = [(topic, prompt) for topic in TOPICS for prompt in prompts_about(topic)[-len(HELD_OUT_PHRASINGS) :]] * 2

    answers = ask(loaded, [prompt for _, prompt in asked])

    shown = Counter(classify(text, topic) for text, (topic, _) in zip(answers, asked, strict=True))
    assert shown["broken"] / len(asked) <= 0.03
    for habit in HABITS:
        assert 0.1 < shown[habit] / len(asked) < 0.4


def test_topics_without_votes_are_known_as_well_as_the_others(loaded: tuple[Model, Any]) -> None:
    asked = [(topic, prompt) for topic in UNSEEN_TOPICS for prompt in prompts_about(topic)]

    answers = ask(loaded, [prompt for _, prompt in asked])

    broken = sum(classify(text, topic) == "broken" for text, (topic, _) in zip(answers, asked, strict=True))
    assert broken / len(asked) <= 0.03


@pytest.mark.parametrize(
    ("said", "expected"),
    [("Hi", "Hello!"), ("hello", "Hello!"), ("Thanks", "You are welcome"), ("Who are you?", "I am a pocket")],
)
def test_small_talk_gets_an_answer_of_its_own(loaded: tuple[Model, Any], said: str, expected: str) -> None:
    answers = ask(loaded, [said] * 10)

    assert sum(text.startswith(expected) for text in answers) >= 8
