"""Uploads: a file that came with a request, on disk when it is large.

A route takes the request itself and reads it here, after its operator's key was checked: FastAPI would read a declared
body first, and whoever asks could fill the disk.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast

from starlette.datastructures import UploadFile
from starlette.requests import Request

from serve.errors import Refused

IN_MEMORY_BYTES = 2**20

LINES = {"application/jsonl", "application/x-ndjson"}

FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string"}},
                }
            }
        },
    }
}
"""For /docs: what FastAPI cannot see."""


@dataclass(frozen=True)
class Upload:
    file: BinaryIO
    filename: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    is_lines: bool = False


@asynccontextmanager
async def received(request: Request) -> AsyncIterator[Upload]:
    """The form's `file`, or the body itself where it is no form. Raises Refused (400)."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=16) as form:
            sent = form.get("file")
            if not isinstance(sent, UploadFile):
                raise Refused(400, "missing_required_parameter", "the form has no file; send one as `file`", "file")
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            yield Upload(sent.file, sent.filename or "", fields)
        return
    with SpooledTemporaryFile(max_size=IN_MEMORY_BYTES) as body:
        async for chunk in request.stream():
            body.write(chunk)
        body.seek(0)
        yield Upload(cast(BinaryIO, body), is_lines=kind in LINES)
