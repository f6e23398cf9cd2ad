"""Training files in the shapes of OpenAI's files API. For operators."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse

from feedback import files
from feedback.errors import FileUnknown
from feedback.records import TrainingFile
from serve.auth import Operator
from serve.errors import Refused
from serve.gateway import After, Here, page
from serve.uploads import FORM, received

router = APIRouter(prefix="/v1/files", tags=["files"])

Json = dict[str, Any]
PURPOSE = "fine-tune"
MOST = 10_000
"""As many as OpenAI lists at once."""


@router.post("", openapi_extra=FORM)
async def upload(request: Request, here: Here, _: Operator) -> Json:
    """JSON Lines of OpenAI's or TRL's preference rows, read line by line before it is kept."""
    async with received(request) as sent:
        if not sent.filename:
            raise Refused(400, "missing_required_parameter", "send the file as `file` of multipart/form-data", "file")
        purpose = sent.fields.get("purpose", PURPOSE)
        if purpose != PURPOSE:
            raise Refused(400, "purpose_not_supported", f"the purpose is {purpose[:40]!r}; send {PURPOSE!r}", "purpose")
        return _shown(await files.store(here.ledger(), sent.file, sent.filename[:200], purpose))


@router.get("")
async def list_files(
    here: Here,
    _: Operator,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=MOST)] = MOST,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> Json:
    found, has_more = await files.page(here.ledger(), after, limit, newest_first=order == "desc")
    return page([_shown(file) for file in found if purpose in (None, file.purpose)], has_more)


@router.get("/{file_id}")
async def retrieve(file_id: str, here: Here, _: Operator) -> Json:
    return _shown(await files.get(here.ledger(), file_id))


@router.get("/{file_id}/content")
async def content(file_id: str, here: Here, _: Operator) -> FileResponse:
    file = await files.get(here.ledger(), file_id)
    path = files.path_of(here.ledger(), file.id)
    if not path.is_file():
        raise FileUnknown(f"the bytes of {file.id} are gone; delete it and upload it again")
    return FileResponse(path, media_type="application/jsonl", filename=file.filename)


@router.delete("/{file_id}")
async def delete(file_id: str, here: Here, _: Operator) -> Json:
    """A job that has not begun with it will fail."""
    await files.delete(here.ledger(), file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def _shown(file: TrainingFile) -> Json:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",  # it was read before it was kept
        "status_details": None,
        "expires_at": None,
        # Beyond OpenAI's fields.
        "sha256": file.sha256,
        "train_rows": file.train,
        "held_out_rows": file.held_out,
    }
