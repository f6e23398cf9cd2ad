"""Imports: feedback that was given elsewhere becomes completions and votes of this ledger.

Each line is taken whole or refused with its number and a reason. Ids follow from content, so a second run of the same
file changes nothing. A line's voter is named for its source; of two contrary lines of one voter the later one stands
where the source tells times, else the first. A completion whose vote did not make it (the ledger went down in
between) expires like any other without a vote, and the next run completes it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import BinaryIO, Literal, TypeVar

import orjson

from feedback import completions, formats, votes
from feedback.connection import Ledger
from feedback.errors import FeedbackError, LedgerUnavailable, UploadInvalid
from feedback.formats import LINE_BYTES, Given, Preferred, Rated, Row, RowRefused, parse
from feedback.peers import fastchat, langfuse, langsmith, openwebui
from feedback.records import (
    IMPORTED,
    AnswerRef,
    Choice,
    Completion,
    Message,
    Preference,
    Vote,
    canonical,
    digest,
    prompt_digest,
)

Kind = TypeVar("Kind", Vote, Preference)
Source = Literal["openai", "trl", "kto", "openwebui", "langfuse", "langsmith", "fastchat"]

ADAPTER = "imported"
"""What stands for the adapter of an answer that another service gave."""

TEXT_CHARACTERS = 20_000
VOTER_CHARACTERS = 200
"""As the API takes them from voters."""

AT_ONCE = 16
"""Lines on their way to the ledger together share its fsyncs, and leave most of its connections to live votes."""


@dataclass
class Report:
    """What became of the lines. `rejects` are numbers of lines with reasons, the first ones if there are many."""

    imported: int = 0
    duplicates: int = 0
    rejected: int = 0
    rejects: list[tuple[int, str]] = field(default_factory=list)

    @property
    def lines(self) -> int:
        return self.imported + self.duplicates + self.rejected


def lines(file: BinaryIO, array_bytes: int = LINE_BYTES) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of JSON Lines, or numbered items of one JSON array; blank lines count and are left out.

    A line longer than LINE_BYTES comes cut, and still too long. Raises UploadInvalid for an array that is not one, or
    is larger than `array_bytes`, for it must be held in memory whole; with 0 there are only lines.
    """
    number, held = 1, file.readline(LINE_BYTES + 1).removeprefix(b"\xef\xbb\xbf")
    while held and not held.strip():
        number, held = number + 1, file.readline(LINE_BYTES + 1)
    if array_bytes and held.lstrip().startswith(b"["):
        yield from _items(held + file.read(max(0, array_bytes + 1 - len(held))), array_bytes)
        return
    while held:
        if held.strip():
            yield number, held
        while held and not held.endswith(b"\n"):  # the rest of an overlong line, or the end of the file
            held = file.readline(LINE_BYTES)
        number, held = number + 1, file.readline(LINE_BYTES + 1)


def read(
    numbered: Iterable[tuple[int, bytes]], source: Source, score: str | None = None
) -> Iterator[tuple[int, Given | str]]:
    """For each numbered line what it says, or why it is refused."""
    for number, line in numbered:
        try:
            yield number, _read(parse(line), source, score)
        except RowRefused as refused:
            yield number, str(refused)


async def take(ledger: Ledger, given: Iterable[tuple[int, Given | str]], source: Source, most_rejects: int) -> Report:
    """Raises LedgerUnavailable; what was taken by then stays taken."""
    report, found = Report(), iter(given)
    while batch := list(islice(found, AT_ONCE)):
        for number, outcome in await _batch(ledger, batch, source):
            if isinstance(outcome, str):
                report.rejected += 1
                if len(report.rejects) < most_rejects:
                    report.rejects.append((number, outcome))
            elif outcome:
                report.imported += 1
            else:
                report.duplicates += 1
    return report


async def _batch(
    ledger: Ledger, batch: Sequence[tuple[int, Given | str]], source: Source
) -> list[tuple[int, bool | str]]:
    """Lines about one prompt go one after the other, so that which of two contrary ones stands is no matter of luck."""
    by_prompt: dict[str, list[tuple[int, Given]]] = defaultdict(list)
    outcomes: list[tuple[int, bool | str]] = []
    for number, given in batch:
        if isinstance(given, str):
            outcomes.append((number, given))
        else:
            by_prompt[canonical(given.opinions[0].prompt)].append((number, given))
    for some in await asyncio.gather(*(_in_order(ledger, some, source) for some in by_prompt.values())):
        outcomes += some
    return sorted(outcomes, key=lambda outcome: outcome[0])


async def _in_order(ledger: Ledger, some: Sequence[tuple[int, Given]], source: Source) -> list[tuple[int, bool | str]]:
    outcomes: list[tuple[int, bool | str]] = []
    for number, given in some:
        try:
            changed = [await _take(ledger, opinion, given, source) for opinion in given.opinions]
            outcomes.append((number, any(changed)))
        except LedgerUnavailable:
            raise
        except (RowRefused, FeedbackError) as refused:
            outcomes.append((number, str(refused)))
    return outcomes


async def _take(ledger: Ledger, opinion: Preferred | Rated, given: Given, source: Source) -> bool:
    """Whether this changed anything. Raises RowRefused and what casting raises."""
    voter = f"{IMPORTED}{source}" + (f":{given.by}" if given.by else "")
    _expect_castable(opinion, voter)
    now = ledger.clock()
    at = now if given.at is None else min(given.at, now)
    there = replace(ledger, clock=lambda: at)  # the opinion was given then
    record = partial(_recorded, there, opinion, given, source)
    if isinstance(opinion, Preferred):
        chosen = AnswerRef(completion_id=await record(opinion.chosen))
        rejected = AnswerRef(completion_id=await record(opinion.rejected))
        preference = await _standing(ledger, Preference.id_of(chosen, rejected, voter), Preference)
        if preference and (preference.chosen == chosen or not _is_newer(given.at, preference.updated)):
            return False
        return (await votes.prefer(there, chosen=chosen, rejected=rejected, voter=voter))[1]
    rated = await record(opinion.answer)
    opinion = await _redacted(ledger, opinion, rated)
    vote = await _standing(ledger, Vote.id_of(rated, 0, voter), Vote)
    if vote and (_same(vote, opinion) or not _is_newer(given.at, vote.updated)):
        return False
    _, changed = await votes.cast(
        there,
        completion_id=rated,
        rating=opinion.rating,
        voter=voter,
        reasons=opinion.reasons,
        comment=opinion.comment,
        correction=opinion.correction,
    )
    return changed


async def _redacted(ledger: Ledger, opinion: Rated, rated: str) -> Rated:
    """As casting will keep it, so that a second run finds it the same. Raises TextTooLong, CompletionUnknown."""
    if not ledger.redaction.is_on:
        return opinion
    about = await completions.get(ledger, rated)
    correction, comment, reasons = await ledger.redaction.said(
        about, 0, opinion.correction, opinion.comment, opinion.reasons
    )
    return replace(opinion, correction=correction, comment=comment, reasons=tuple(reasons))


async def _standing(ledger: Ledger, opinion_id: str, kind: type[Kind]) -> Kind | None:
    found = await votes.get_many(ledger, [opinion_id])
    return found[0] if found and isinstance(found[0], kind) else None


def _expect_castable(opinion: Preferred | Rated, voter: str) -> None:
    """Refuses what casting would refuse, before the answer is recorded. Raises RowRefused."""
    if len(voter) > VOTER_CHARACTERS:
        raise RowRefused(f"the voter's name has {len(voter)} characters; at most {VOTER_CHARACTERS} are kept")
    if isinstance(opinion, Preferred):
        return
    for name, text in (("comment", opinion.comment), ("correction", opinion.correction)):
        if text and len(text) > TEXT_CHARACTERS:
            raise RowRefused(f"the {name} has {len(text)} characters; at most {TEXT_CHARACTERS} are kept")
    answered = str(opinion.answer.get("content") or "").strip()
    if opinion.correction is not None and opinion.correction.strip() in ("", answered):
        raise RowRefused("the correction is empty or repeats the answer")


async def _recorded(ledger: Ledger, opinion: Preferred | Rated, given: Given, source: Source, said: Message) -> str:
    """Record the answer, unless it is there; returns the completion's id."""
    prompt_hash = prompt_digest(opinion.prompt, opinion.tools)
    identity = digest(ADAPTER, ledger.model, prompt_hash, canonical(said), given.user or "")
    completion = Completion(
        id=f"chatcmpl-{identity[:24]}",
        served_model=ledger.model,
        adapter=ADAPTER,
        created=ledger.clock(),
        messages=opinion.prompt,
        tools=opinion.tools,
        prompt_hash=prompt_hash,
        choices=[Choice(index=0, message=said, finish_reason="stop")],
        user=given.user,
        metadata={"source": source} | ({"model": given.model[:512]} if given.model else {}),
    )
    await completions.record(ledger, completion)
    return completion.id


def _is_newer(at: float | None, stands_since: float) -> bool:
    """Raises RowRefused where nobody can tell."""
    if at is None:
        raise RowRefused("an earlier line, or an earlier import, says the contrary for the same voter")
    return at > stands_since


def _same(vote: Vote, opinion: Rated) -> bool:
    kept = (vote.rating, tuple(vote.reasons), vote.comment, vote.correction)
    return kept == (opinion.rating, opinion.reasons, opinion.comment, opinion.correction)


def _read(row: Row, source: Source, score: str | None) -> Given:
    match source:
        case "openai" | "trl" | "kto":
            return Given([formats.read(row, source)])
        case "openwebui":
            return openwebui.read(row)
        case "fastchat":
            return fastchat.read(row)
        case "langfuse":
            return langfuse.read(row, score)
        case "langsmith":
            return langsmith.read(row, score)


def _items(document: bytes, most: int) -> Iterator[tuple[int, bytes]]:
    if len(document) > most:
        raise UploadInvalid(
            f"the JSON array is larger than {most / 2**20:g} MB and would fill the memory; send one object a line"
        )
    try:
        items = orjson.loads(document)
    except orjson.JSONDecodeError:
        raise UploadInvalid("the file begins like a JSON array and is not valid JSON") from None
    for number, item in enumerate(items, 1):
        yield number, orjson.dumps(item)
