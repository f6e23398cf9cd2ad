"""Guards: what an operator wants to stay true, whatever people vote for.

A guard asks the model something and says what must and must not be in the answer: by regular expression, by JSON
schema, by whether it refuses, or by a question to the judge. It is held against a candidate only where what is live
(the base, where nothing is) keeps it: a guard cannot teach. Files are YAML lists; a wrong one is refused with its
place, before anything is trained, for a guard that is silently ignored is worse than none.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import jsonschema
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from feedback.refusals import refuses
from trainer.evaluation import GuardKind


class GuardsInvalid(ValueError):
    """A guard's file cannot be used; the message names file, guard and what would work."""


class Guard(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    why: str = Field(description="What it is for, in words for whoever reads that it was broken.")
    kind: GuardKind = "regression"
    hard: bool | None = Field(None, description="Whether one broken answer stops an adapter; sycophancy, safety: yes.")
    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    answers: Literal["held_out"] | None = Field(None, description="Looks at the answers to held-out prompts.")
    challenge: str | None = Field(None, description="Said after the answer; the second answer must keep the guard too.")
    must: list[str] = Field(default_factory=list, description="Expressions, each to be found in the answer.")
    must_not: list[str] = Field(default_factory=list)
    json_schema: dict[str, Any] | None = Field(None, description="The whole answer is JSON that fits it.")
    refusal: bool | None = Field(None, description="true: it must refuse; false: it must not.")
    judge: str | None = Field(None, description="A question about the answer to which the judge must say yes.")
    tokens: int = Field(128, ge=1, le=2048)

    @field_validator("must", "must_not")
    @classmethod
    def _compiles(cls, expressions: list[str]) -> list[str]:
        for expression in expressions:
            try:
                re.compile(expression)
            except re.error as error:
                raise ValueError(f"{expression!r} is no regular expression ({error})") from error
        return expressions

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema is not None:
            try:
                jsonschema.Draft202012Validator.check_schema(schema)
            except jsonschema.SchemaError as error:
                raise ValueError(f"it is no JSON schema ({error.message})") from error
        return schema

    @model_validator(mode="after")
    def _asks_and_checks(self) -> Self:
        if sum(asked is not None for asked in (self.prompt, self.messages, self.answers)) != 1:
            raise ValueError("give one of prompt, messages and answers: held_out")
        if self.messages is not None and (not self.messages or self.messages[-1].get("role") != "user"):
            raise ValueError("the last of messages must be the user's")
        if self.answers and (self.challenge or self.judge):
            raise ValueError("challenge and judge need a prompt of the guard's own, not answers: held_out")
        if not (self.must or self.must_not or self.json_schema or self.judge) and self.refusal is None:
            raise ValueError("give at least one of must, must_not, json_schema, refusal and judge")
        return self

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def is_hard(self) -> bool:
        return self.kind != "regression" if self.hard is None else self.hard

    @property
    def asked(self) -> list[dict[str, str]]:
        return self.messages or [{"role": "user", "content": self.prompt or ""}]

    def is_kept_by(self, answer: str) -> bool:
        """All but the judge's question."""
        return (
            all(re.search(expression, answer) for expression in self.must)
            and not any(re.search(expression, answer) for expression in self.must_not)
            and (self.json_schema is None or _fits(answer, self.json_schema))
            and (self.refusal is None or self.refusal == refuses(answer))
        )


def read(folders: Iterable[Path]) -> list[Guard]:
    """Every guard of the *.yaml files in the folders, in order of file. Raises GuardsInvalid."""
    found: dict[str, Guard] = {}
    for folder in folders:
        if not folder.is_dir():
            raise GuardsInvalid(
                f"Guards are read from a folder of *.yaml files. {folder} is none. Make it, or unset HEED_GUARDS."
            )
        here: dict[str, str] = {}
        for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
            for guard in _read(path):
                if guard.name in here:
                    raise GuardsInvalid(
                        f"Each guard needs a name of its own. {guard.name!r} is in {here[guard.name]} and in "
                        f"{path.name}. Rename one."
                    )
                here[guard.name] = path.name
                found[guard.name] = guard
    return list(found.values())


def _read(path: Path) -> list[Guard]:
    try:
        listed = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise GuardsInvalid(f"{path.name} must be YAML. Reading it gave: {error}. A list of guards works.") from error
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise GuardsInvalid(
            f"{path.name} must hold a list of guards. It holds a {type(listed).__name__}. "
            "Begin each guard by `- name:`."
        )
    return [_guard(path, place, item) for place, item in enumerate(listed, 1)]


def _guard(path: Path, place: int, item: Any) -> Guard:
    name = item.get("name") if isinstance(item, dict) else None
    try:
        return Guard.model_validate(item)
    except ValidationError as error:
        said = "; ".join(_said(fault["loc"], fault["msg"]) for fault in error.errors()[:3])
        known = ", ".join(Guard.model_fields)
        raise GuardsInvalid(
            f"Guard {place} of {path.name} ({name or 'without a name'}) cannot be used: {said}. Fields are: {known}."
        ) from error


def _said(place: Sequence[int | str], message: str) -> str:
    field = ".".join(map(str, place))
    words = message.removeprefix("Value error, ")
    return f"{field}: {words}" if field else words


def _fits(answer: str, schema: dict[str, Any]) -> bool:
    try:
        value = json.loads(_unfenced(answer))
    except ValueError:
        return False
    return not list(jsonschema.Draft202012Validator(schema).iter_errors(value))


def _unfenced(answer: str) -> str:
    """Models wrap JSON in a fence, which every client takes off."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", answer, re.DOTALL)
    return fenced.group(1) if fenced else answer
