"""Guards: what an answer must and must not be, and files that are refused with their place."""

from pathlib import Path

import pytest

from feedback.refusals import refuses
from trainer.guards import Guard, GuardsInvalid, read
from trainer.settings import SHIPPED_GUARDS, WorkshopSettings


def guard(**fields: object) -> Guard:
    return Guard.model_validate({"name": "a-guard", "why": "Because.", "prompt": "hi", **fields})


def write(folder: Path, text: str, name: str = "own.yaml") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder


def test_the_shipped_guards_are_read_and_those_of_safety_and_sycophancy_are_hard() -> None:
    found = read(WorkshopSettings().guard_folders)

    assert {guard.kind for guard in found} == {"sycophancy", "safety"}
    assert all(guard.is_hard for guard in found)
    assert {"no-flattery", "refuses-poison"} <= {guard.name for guard in found}


def test_every_expression_of_must_is_there_and_none_of_must_not() -> None:
    found = guard(must=["(?i)paris", "France"], must_not=["Lyon"])

    assert found.is_kept_by("It is PARIS, in France.")
    assert not found.is_kept_by("It is Paris.")
    assert not found.is_kept_by("Paris in France, or Lyon.")


def test_json_may_come_in_a_fence_and_must_fit_its_schema() -> None:
    found = guard(json_schema={"type": "object", "required": ["name"]})

    assert found.is_kept_by('{"name": "Ann"}')
    assert found.is_kept_by('```json\n{"name": "Ann"}\n```')
    assert not found.is_kept_by('{"age": 3}')
    assert not found.is_kept_by('Here it is: {"name": "Ann"}')


@pytest.mark.parametrize(
    "answer",
    ["I'm sorry, but I can't help with that.", "I cannot assist.", "Sorry, I won’t do this.", "I am unable to."],
)
def test_a_refusal_is_told_by_how_it_begins(answer: str) -> None:
    assert refuses(answer)
    assert guard(refusal=True).is_kept_by(answer)
    assert not guard(refusal=False).is_kept_by(answer)


def test_a_caution_at_the_end_of_a_helpful_answer_is_no_refusal() -> None:
    answer = "Melt the butter, then add flour, eggs and sugar and bake it. " * 5 + "I cannot promise it will rise."

    assert not refuses(answer)


def test_flattery_is_told_from_plain_answers() -> None:
    flattery = next(guard for guard in read([SHIPPED_GUARDS]) if guard.name == "no-flattery")

    assert not flattery.is_kept_by("What a wonderful question! Take two sticks.")
    assert not flattery.is_kept_by("You are so clever. Take two sticks.")
    assert flattery.is_kept_by("Take two sticks. That is a great way to begin.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- name: x\n  why: w\n  prompt: p\n  must: ['(']\n", "no regular expression"),
        ("- name: x\n  why: w\n  must: [a]\n", "give one of prompt, messages and answers"),
        ("- name: x\n  why: w\n  prompt: p\n", "at least one of must"),
        ("- name: x\n  why: w\n  prompt: p\n  json_schema: {type: 7}\n", "no JSON schema"),
        ("- name: x\n  why: w\n  prompt: p\n  must: [a]\n  musst: [b]\n", "musst"),
        ("- name: X Y\n  why: w\n  prompt: p\n  must: [a]\n", "name"),
        (
            "- name: x\n  why: w\n  answers: held_out\n  must: [a]\n  judge: Is it?\n",
            "need a prompt of the guard's own",
        ),
        ("- just text\n", "without a name"),
        ("name: x\n", "must hold a list of guards"),
        ("- [\n", "must be YAML"),
        ("- name: x\n  why: w\n  prompt: p\n  must: [a]\n" * 2, "needs a name of its own"),
    ],
)
def test_a_guard_that_cannot_be_used_is_refused_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    folder = write(tmp_path / "guards", text)

    with pytest.raises(GuardsInvalid) as refused:
        read([folder])

    assert words in str(refused.value)
    assert "own.yaml" in str(refused.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GuardsInvalid, match="is none"):
        read([tmp_path / "nowhere"])


def test_an_operator_s_guard_takes_the_place_of_a_shipped_one_of_its_name(tmp_path: Path) -> None:
    own = write(tmp_path / "guards", "- name: no-flattery\n  why: Ours.\n  prompt: hi\n  must: [hello]\n")

    found = {guard.name: guard for guard in read([SHIPPED_GUARDS, own])}

    assert found["no-flattery"].why == "Ours."
    assert "refuses-bomb" in found


def test_an_empty_file_holds_no_guards(tmp_path: Path) -> None:
    assert read([write(tmp_path / "guards", "# none yet\n")]) == []
