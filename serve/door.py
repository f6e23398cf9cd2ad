"""What every request meets first: an id, a look at where it was sent, at its size and its type, and the last resort."""

import logging
import secrets
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import Refused, envelope
from serve.keyring import Keyring
from serve.logs import request_id, tell_end
from serve.metrics import Metrics
from serve.tracing import route_of
from serve.uploads import LINES

log = logging.getLogger("heed.gateway")

Headers = dict[bytes, bytes]

UPLOADS = {"/v1/files", "/v1/import"}
FILES = {b"multipart/form-data", *(kind.encode() for kind in LINES)}
"""What files come as. Only where they are taken, and there an operator's key is asked for, which no web page has."""


class Door:
    """ASGI middleware, outermost."""

    def __init__(self, app: ASGIApp, keyring: Keyring, body_limit: int, upload_limit: int, metrics: Metrics) -> None:
        self._app = app
        self._keyring = keyring
        self._body_limit = body_limit
        self._upload_limit = upload_limit
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        number = secrets.token_hex(12)
        began = time.perf_counter()
        state = scope.setdefault("state", {})
        state["number"] = number
        request_id.set("req-" + number)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", b"req-" + number.encode())]
            await send(message)

        try:
            kind = self._look_at(scope)
            await self._app(scope, self._limited(receive, kind in FILES), send_with_id)
        except Refused as refused:
            answer = envelope(refused.status_code, refused.code, refused.detail, refused.param, refused.headers)
            await answer(scope, receive, send_with_id)
        except ClientDisconnect:
            log.info("req-%s was given up by its client before all of it had come", number)
        except Exception:  # the last resort: nobody gets a traceback, and everybody an answer
            log.exception("req-%s failed", number)
            if not status:
                words = f"something went wrong on our side; the log has it under req-{number}"
                await envelope(500, "internal_error", words)(scope, receive, send_with_id)
        finally:
            self._metrics.request(scope["method"], status or 499)
            took_s = time.perf_counter() - began
            tell_end(scope["method"], route_of(scope), status or 499, took_s, state.get("caller", "-"))

    def _look_at(self, scope: Scope) -> bytes:
        """The body's content type. Raises Refused."""
        headers: Headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._keyring.knows_host(host):
            raise Refused(
                403,
                "host_not_allowed",
                "the Host header does not name this machine; use 127.0.0.1 or HEED_ALLOWED_HOSTS",
            )
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return b""
        length = headers.get(b"content-length", b"")
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if length.isdigit() and int(length) > self._limit(kind in FILES):
            raise self._too_large(kind in FILES)
        has_body = length not in (b"", b"0") or b"transfer-encoding" in headers
        is_file = kind in FILES and scope["path"] in UPLOADS
        if has_body and kind != b"application/json" and not is_file:
            # Browsers send other types across origins without asking first: a web page could post to localhost.
            shown = kind.decode("latin-1")[:40] or "none"
            raise Refused(415, "unsupported_media_type", f"the content-type is {shown}; send application/json")
        return kind

    def _limited(self, receive: Receive, is_file: bool) -> Receive:
        """Counts what comes, for a body may come in chunks and not say its length."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit(is_file):
                raise self._too_large(is_file)
            return message

        return counted

    def _limit(self, is_file: bool) -> int:
        return self._upload_limit if is_file else self._body_limit

    def _too_large(self, is_file: bool) -> Refused:
        limit, setting = self._limit(is_file) / 2**20, "HEED_UPLOAD_LIMIT_MB" if is_file else "HEED_BODY_LIMIT_MB"
        return Refused(413, "body_too_large", f"the body is larger than {limit:g} MB ({setting}); send less")
