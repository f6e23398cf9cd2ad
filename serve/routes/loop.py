"""The circle as a whole: what the votes amount to, and how much of everything there is. For operators."""

from collections.abc import AsyncIterator
from typing import Any, Literal

import orjson
from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from feedback import adapters, pairs, preview, stats
from feedback.connection import Ledger
from feedback.records import Pair
from serve.auth import Operator
from serve.gateway import Here, Model

router = APIRouter(prefix="/v1", tags=["loop"])

Format = Literal["trl", "openai", "kto"]
Json = dict[str, Any]


@router.get("/pairs")
async def export(here: Here, _: Operator, format: Format = "trl", model: Model = None) -> StreamingResponse:
    """One JSON object a line, oldest first. In `kto` a pair is two lines, and rated answers in no pair follow."""
    ledger = here.ledger(model)
    await pairs.settle(ledger)  # before the first byte, so that a ledger that is down is a 503
    return StreamingResponse(_lines(ledger, format, await pairs.ids(ledger)), media_type="application/jsonl")


@router.get("/pairs/preview")
async def show_preview(here: Here, _: Operator, model: Model = None) -> Json:
    """What a job would train on now, and why the rest is left out."""
    ledger = here.ledger(model)
    return {"object": "pairs.preview", "model": ledger.model, **(await preview.look(ledger)).model_dump()}


async def _lines(ledger: Ledger, format: Format, ids: list[str]) -> AsyncIterator[bytes]:
    for start in range(0, len(ids), pairs.BATCH):
        for pair in await pairs.get_many(ledger, ids[start : start + pairs.BATCH]):
            yield b"".join(orjson.dumps(row) + b"\n" for row in _rows(pair, format))
    if format == "kto":
        async for rated in pairs.unpaired(ledger):
            yield orjson.dumps({"prompt": rated.prompt, "completion": [rated.completion], "label": rated.label}) + b"\n"


def _rows(pair: Pair, format: Format) -> list[Json]:
    if format == "openai":
        row = {"input": {"messages": pair.prompt}}
        return [row | {"preferred_output": [pair.chosen], "non_preferred_output": [pair.rejected]}]
    if format == "kto":
        answers = ((pair.chosen, True), (pair.rejected, False))
        return [{"prompt": pair.prompt, "completion": [answer], "label": label} for answer, label in answers]
    return [{"id": pair.id, "prompt": pair.prompt, "chosen": [pair.chosen], "rejected": [pair.rejected]}]


@router.get("/stats")
async def show_stats(here: Here, _: Operator, model: Model = None) -> Json:
    """What is not settled yet is settled first."""
    ledger = here.ledger(model)
    await pairs.settle(ledger)
    serving = await adapters.serving(ledger)
    return {
        "object": "stats",
        "model": ledger.model,
        **await stats.totals(ledger),
        **await stats.quality(ledger),
        "serving": serving.model_dump(exclude={"v"}),
    }
