"""Export: the pairs as a file for whoever operates, straight from the gateway to the browser's disk.

A form and not a button of Gradio's, which would put what people said into a file of the console's first.
"""

import html
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from serve.client import CallFailed
from serve.console.calls import Calls

FORMATS = {
    "trl": "TRL: prompt, chosen, rejected",
    "openai": "OpenAI: input, preferred, non-preferred output",
    "kto": "KTO: prompt, completion, label",
}
FORM_BYTES = 4096

CSS = """
.heed-export { display: flex; flex-wrap: wrap; gap: 0.8em; align-items: end; }
.heed-export label { display: block; font-size: 0.9em; }
.heed-export > div, .heed-export select { max-width: 100%; }
.heed-export select, .heed-export input, .heed-export button { font: inherit; padding: 0.4em 0.8em;
  color: var(--body-text-color); background: var(--input-background-fill);
  border: 1px solid var(--border-color-primary); border-radius: 6px; }
"""


def form(model: str, needs_key: bool) -> str:
    options = "".join(f'<option value="{name}">{html.escape(words)}</option>' for name, words in FORMATS.items())
    key = ""
    if needs_key:
        key = (
            '<div><label for="export-key">Operator key</label>'
            '<input id="export-key" name="key" type="password" autocomplete="off"></div>'
        )
    return (
        '<form class="heed-export" method="post" action="/export">'
        f'<input type="hidden" name="model" value="{html.escape(model)}">'
        f'<div><label for="export-format">Rows</label><select id="export-format" name="format">{options}</select></div>'
        f'{key}<button id="export-download" type="submit">Download all pairs</button></form>'
    )


def add_export(app: FastAPI, calls: Calls) -> None:
    @app.post("/export")
    async def export(request: Request) -> Response:
        given = {name: values[-1] for name, values in parse_qs((await _body(request)).decode()).items()}
        format, model = given.get("format", "trl"), given.get("model", "heed")
        if format not in FORMATS:
            return PlainTextResponse(f"The format is {format[:40]!r}; it is one of {', '.join(FORMATS)}.", 400)
        content = calls.content(given.get("key", ""), "/pairs", format=format, model=model)
        try:
            first = await anext(content, b"")
        except CallFailed as failed:
            return PlainTextResponse(str(failed), 502)
        named = {"content-disposition": f'attachment; filename="pairs-{format}.jsonl"', "cache-control": "no-store"}
        return StreamingResponse(_whole(first, content), media_type="application/jsonl", headers=named)


async def _body(request: Request) -> bytes:
    """A form of a few words; what is longer is none of ours and is cut."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > FORM_BYTES:
            break
    return body[:FORM_BYTES]


async def _whole(first: bytes, rest: Any) -> AsyncIterator[bytes]:
    yield first
    async for part in rest:
        yield part
