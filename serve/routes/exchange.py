"""In and out: the pairs as other tools read them, and feedback that was given elsewhere. For operators."""

from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from feedback import imports, pairs
from feedback.connection import Ledger
from feedback.formats import Format, Rated, row_of_answer, rows
from serve.auth import Operator
from serve.gateway import Here, Model
from serve.uploads import FORM, received

router = APIRouter(prefix="/v1", tags=["exchange"])

Json = dict[str, Any]
REJECTS_LISTED = 1000
"""Enough to see what is wrong with a file; `heed import` sends fewer lines at a time and so prints them all."""


ARRAY_BYTES = 10 * 2**20
"""An array is held in memory whole, so it may be as large as any other body; longer files come as lines."""


@router.get("/pairs")
async def export(here: Here, _: Operator, format: Format = "trl", model: Model = None) -> StreamingResponse:
    """One JSON object a line, oldest first. In `kto` a pair is two lines; answers rated and in no pair follow."""
    ledger = here.ledger(model)
    await pairs.settle(ledger)  # before the first byte, so that a ledger that is down is a 503
    headers = {"x-heed-pairs": str(await pairs.count(ledger))}
    return StreamingResponse(_lines(ledger, format), media_type="application/jsonl", headers=headers)


async def _lines(ledger: Ledger, format: Format) -> AsyncIterator[bytes]:
    async for page in pairs.pages(ledger):
        yield _jsonl(row for pair in page for row in rows(pair, format))
    if format == "kto":
        async for one in pairs.unpaired(ledger):
            rated = Rated(one.prompt, one.completion, "up" if one.label else "down", one.tools)
            yield _jsonl([row_of_answer(rated)])


def _jsonl(some: Iterable[Json]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in some)


@router.post("/import", openapi_extra=FORM)
async def take_in(
    request: Request,
    here: Here,
    _: Operator,
    format: imports.Source,
    model: Model = None,
    score: Annotated[str | None, Query(description="Langfuse, LangSmith: name of the scores that are votes.")] = None,
) -> Json:
    """A file, JSON Lines, or one JSON array; a second import of the same changes nothing."""
    ledger = here.ledger(model)
    async with received(request) as sent:
        found = imports.lines(sent.file, 0 if sent.is_lines else ARRAY_BYTES)
        given = imports.read(found, format, score)
        report = await imports.take(ledger, given, format, REJECTS_LISTED)
    await pairs.settle(ledger)  # a long import pays for its pairs as it goes
    here.metrics.votes.labels("import").inc(report.imported)
    return {
        "object": "import",
        "format": format,
        "model": ledger.model,
        "lines": report.lines,
        "imported": report.imported,
        "duplicates": report.duplicates,
        "rejected": report.rejected,
        "rejects": [{"line": number, "reason": reason} for number, reason in report.rejects],
    }
