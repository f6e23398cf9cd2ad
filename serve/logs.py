"""The log on stderr: lines for people, or one JSON object a line for collectors.

Every line says which request it is about. None holds what people wrote or a key: failures are logged by their kind and
place alone, for the words of an exception may quote what somebody sent.
"""

import logging
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

import orjson

from serve.tracing import trace_id

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being answered, set by serve/door.py."""

access = logging.getLogger("heed.access")

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Wordless(logging.Formatter):
    """Failures without their words; their kinds and places tell where to look."""

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802 - logging's name
        told = []
        error = ei[1]
        while error is not None:
            frames = "".join(traceback.format_tb(error.__traceback__))
            told.append(f"{frames}{type(error).__module__}.{type(error).__qualname__}")
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return "\nwhile dealing with it:\n".join(reversed(told))


class Lines(Wordless):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(name)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        told = self.formatMessage(record)
        about = request_id.get()
        if about and about not in record.message:
            told += f" ({about})"
        # Not logging's own way, which takes the text that another handler has made of the failure, words and all.
        return f"{told}\n{self.formatException(record.exc_info)}" if record.exc_info else told


class JsonLines(Wordless):
    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if about := request_id.get():
            told["request_id"] = about
        if about := trace_id():
            told["trace_id"] = about
        told |= getattr(record, "fields", {})
        if record.exc_info:
            told["failure"] = self.formatException(record.exc_info)
        return orjson.dumps(told, default=str).decode()


def configure(form: Literal["text", "json"], has_access: bool) -> None:
    """For a process that is a gateway and nothing else."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    access.setLevel(logging.INFO if has_access else logging.WARNING)


def tell_end(method: str, route: str, status: int, took_s: float, key: str) -> None:
    """The line of a request. `route` is the pattern and not the path, which may name a voter."""
    if access.isEnabledFor(logging.INFO):
        took_ms = round(took_s * 1000, 1)
        fields = {"method": method, "route": route, "status": status, "duration_ms": took_ms, "key": key}
        access.info("%s %s %s in %s ms by %s", method, route, status, took_ms, key, extra={"fields": fields})
