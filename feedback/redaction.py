"""Redaction: personal data is taken out of what people wrote before the ledger keeps it (HEED_REDACT).

A value becomes a placeholder such as `<EMAIL_1>`, numbered as values first appear in a record, its prompt first. So the
same prompt is the same after redaction as well, and has one hash; a record's `redacted` counts what was replaced, by
kind. The values are kept nowhere, nor anything they could be recognised by. Names of voters and users stay as they
came, for erasure asks for them. Patterns and checksums find what has a form; names of people and streets have none.
"""

import asyncio
import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar, get_args

from feedback.errors import TextTooLong
from feedback.records import Choice, Comparison, Completion, Message, canonical, prompt_digest
from feedback.settings import LedgerSettings, PersonalKind

T = TypeVar("T")

NEEDS: dict[PersonalKind, re.Pattern[str]] = {
    "email": re.compile("@"),
    "phone": re.compile(r"(?:\d\D*){6}"),
    "card": re.compile(r"(?:\d\D*){12}"),
    "iban": re.compile(r"\d\d"),
    "ip": re.compile(r"\d\.\d|::|:[\da-fA-F]+:"),
}
"""What a text must have to hold one at all. Most texts have none of this, and are not looked through."""

SURE = 0.4
"""Presidio's score of a phone number of a valid form; below are patterns that only words around them could confirm."""

PLACEHOLDER = re.compile(rf"<(?:{'|'.join(kind.upper() for kind in get_args(PersonalKind))})_\d+>")
PICTURE = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,")
SPELLING = re.compile(r"[\s().\-/]")

TOKENS = "<TOKENS>"
"""What stands for a prompt that came as token ids, which cannot be read here and could be by others."""

PROMPT_FIRST = ("input", "prompt")
"""Fields of a row of a file that come before its answers."""


class CannotRedact(Exception):
    """HEED_REDACT asks for what is not installed, or for what another setting undoes."""


@contextmanager
def absent(*modules: str) -> Iterator[None]:
    """What is imported within does without these, unless they are loaded already.

    Presidio and spaCy load them where they are installed, for models that are not used here: 330 MB and 3 s.
    """
    hidden = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None makes an import fail as if it were not there
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


class Span(NamedTuple):
    start: int
    end: int
    kind: PersonalKind
    score: float


class Names:
    """The placeholders of one record. `known` are those of a record this one is about, in the order to use them in."""

    def __init__(self, redaction: "Redaction", known: Iterable[str] = ()) -> None:
        self.replaced: Counter[str] = Counter()
        self._redaction = redaction
        self._known = list(dict.fromkeys(known))
        self._given: dict[tuple[PersonalKind, str], str] = {}
        self._taken: set[str] = set()
        self._read = 0

    def text(self, text: str) -> str:
        """Raises TextTooLong."""
        if PICTURE.match(text):
            return text
        self._taken.update(PLACEHOLDER.findall(text))
        kinds = [kind for kind in self._redaction.kinds if NEEDS[kind].search(text)]
        if not kinds:
            return text
        self._read += len(text)
        most = self._redaction.most_characters
        if self._read > most:
            raise TextTooLong(
                f"more than {most} characters would have to be looked through for personal data "
                "(HEED_REDACT_CHARACTERS), so nothing was recorded; send less, or have the operator raise the limit"
            )
        parts, end = [], 0
        for span in self._redaction.spans(text, kinds):
            parts += [text[end : span.start], self._name(span.kind, text[span.start : span.end])]
            end = span.end
        return "".join([*parts, text[end:]])

    def tree(self, value: Any, has_numbers: bool = False) -> Any:
        """Every text within, names of fields too; `has_numbers`: a number may be personal as well."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.tree(held, has_numbers) for held in value]
        if isinstance(value, dict):
            return {
                self.text(name): self._arguments(held)
                if name == "arguments" and isinstance(held, str)
                else self.tree(held, has_numbers)
                for name, held in value.items()
            }
        if has_numbers and isinstance(value, int | float) and not isinstance(value, bool):
            found = self.text(str(value))
            return value if found == str(value) else found
        return value

    def _arguments(self, text: str) -> str:
        """Of a tool's call: JSON, which must stay JSON. What is not replaced in stays as it was written."""
        try:
            arguments = json.loads(text)
        except ValueError:
            return self.text(text)
        redacted = self.tree(arguments, has_numbers=True)
        return text if redacted == arguments else json.dumps(redacted, ensure_ascii=False)

    def _name(self, kind: PersonalKind, value: str) -> str:
        self.replaced[kind] += 1
        spelled = value.casefold() if kind in ("email", "ip") else SPELLING.sub("", value).casefold()
        if (kind, spelled) not in self._given:
            numbered = (f"<{kind.upper()}_{number}>" for number in range(1, 2**31))
            known = (name for name in self._known if name.startswith(f"<{kind.upper()}_"))
            free = next((name for name in known if name not in self._taken), None)
            self._given[kind, spelled] = free or next(
                name for name in numbered if name not in self._taken and name not in self._known
            )
            self._taken.add(self._given[kind, spelled])
        return self._given[kind, spelled]


class Redaction:
    """What HEED_REDACT asks for. Works in a thread of its own, so a long text holds up nobody else's answer."""

    def __init__(self, settings: LedgerSettings) -> None:
        self.kinds: tuple[PersonalKind, ...] = settings.redact
        self.most_characters = settings.redact_characters
        self.replaced: Counter[str] = Counter()
        self._regions = settings.redact_regions
        self._recognizers: dict[PersonalKind, Any] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, "redact")  # starts its thread when it first gets work

    @property
    def is_on(self) -> bool:
        return bool(self.kinds)

    def load(self) -> None:
        """Raises CannotRedact."""
        with self._lock:
            if not self.is_on or self._recognizers:
                return
            try:
                with absent("torch", "transformers"):
                    from feedback import recognizers
            except ModuleNotFoundError as error:
                raise CannotRedact(
                    f"HEED_REDACT is {','.join(self.kinds)} and {error.name} is not installed; install the extra with "
                    "`uv pip install -r requirements/redact.txt`, or set HEED_REDACT to nothing"
                ) from error
            if unknown := recognizers.unknown_regions(self._regions):
                raise CannotRedact(f"HEED_REDACT_REGIONS names {', '.join(unknown)}; use codes such as US, GB or DE")
            self._recognizers = {kind: recognizers.of(kind, self._regions) for kind in self.kinds}

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def spans(self, text: str, kinds: Iterable[PersonalKind]) -> list[Span]:
        """In order, none over another: where two kinds claim the same characters the surer one has them."""
        if not self._recognizers:
            self.load()
        found = [
            Span(one.start, one.end, kind, one.score)
            for kind in kinds
            for recognizer in [self._recognizers[kind]]
            for one in recognizer.analyze(text, recognizer.supported_entities, None)
            if one.score >= SURE
        ]
        kept: list[Span] = []
        claimed = bytearray(len(text))
        for span in sorted(found, key=lambda s: (-s.score, s.start - s.end, s.start)):
            if not any(claimed[span.start : span.end]):
                claimed[span.start : span.end] = b"\1" * (span.end - span.start)
                kept.append(span)
        return sorted(kept)

    async def completion(self, completion: Completion) -> Completion:
        """Raises TextTooLong. Token ids and log-probabilities would tell the text again, so they go too."""
        return await self._apply(partial(_completion, completion)) if self.is_on else completion

    async def comparison(self, comparison: Comparison) -> Comparison:
        """Raises TextTooLong."""
        return await self._apply(partial(_comparison, comparison)) if self.is_on else comparison

    async def tree(self, value: T) -> T:
        """Any value of lists, fields and texts. Raises TextTooLong."""
        return await self._apply(lambda names: names.tree(value)) if self.is_on and value else value

    async def said(
        self, about: Completion | None, choice: int, correction: str | None, comment: str | None, reasons: Sequence[str]
    ) -> tuple[str | None, str | None, list[str]]:
        """What a voter wrote of an answer, in this order. Raises TextTooLong.

        The answer's values are not known any more. Whoever corrects it mostly keeps their order, so the first e-mail
        address is taken for the answer's first, and so on; then come those of the prompt, then new numbers. Where the
        answer cannot be read (`about` is None), only new numbers.
        """
        if not self.is_on:
            return correction, comment, list(reasons)
        known = PLACEHOLDER.findall(canonical([about.answer(choice), about.messages])) if about else []
        return await self._apply(
            lambda names: (names.tree(correction), names.tree(comment), [names.text(reason) for reason in reasons]),
            known,
        )

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Of a file. Blocks. Raises TextTooLong."""
        if not self.is_on:
            return row
        names = Names(self)
        fields = sorted(row, key=lambda name: name not in PROMPT_FIRST)
        redacted = {names.text(name): names.tree(row[name]) for name in fields}
        self._count(names)
        return redacted

    async def _apply(self, act: Callable[[Names], T], known: Iterable[str] = ()) -> T:
        names = Names(self, known)
        done = await asyncio.get_running_loop().run_in_executor(self._pool, act, names)
        self._count(names)
        return done

    def _count(self, names: Names) -> None:
        with self._lock:
            self.replaced.update(names.replaced)


def _completion(completion: Completion, names: Names) -> Completion:
    messages = [names.tree(_readable(message)) for message in completion.messages]
    tools = names.tree(completion.tools)
    update = {
        "messages": messages,
        "tools": tools,
        "prompt_hash": prompt_digest(messages, tools),
        "choices": [_choice(choice, names) for choice in completion.choices],
        "params": names.tree(completion.params),
        "metadata": names.tree(completion.metadata),
        "prompt_token_ids": None,
    }
    return completion.model_copy(update=update | {"redacted": dict(names.replaced) or None})


def _choice(choice: Choice, names: Names) -> Choice:
    return choice.model_copy(update={"message": names.tree(choice.message), "logprobs": None, "token_ids": None})


def _comparison(comparison: Comparison, names: Names) -> Comparison:
    messages, tools = names.tree(comparison.messages), names.tree(comparison.tools)
    update = {"messages": messages, "tools": tools, "prompt_hash": prompt_digest(messages, tools)}
    return comparison.model_copy(update=update)


def _readable(message: Message) -> Message:
    content = message.get("content")
    if isinstance(content, list) and any(isinstance(part, int | list) for part in content):
        return message | {"content": TOKENS}
    return message
