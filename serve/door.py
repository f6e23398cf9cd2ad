"""What every request meets first: an id, a look at where it was sent, at its size and its type, and the last resort."""

import logging
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.auth import Keys
from serve.errors import Refused, envelope
from serve.metrics import Metrics

log = logging.getLogger("heed.gateway")

Headers = dict[bytes, bytes]


class Door:
    """ASGI middleware, outermost."""

    def __init__(self, app: ASGIApp, keys: Keys, body_limit: int, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._body_limit = body_limit
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        number = secrets.token_hex(12)
        scope.setdefault("state", {})["number"] = number
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", b"req-" + number.encode())]
            await send(message)

        try:
            self._look_at(scope)
            await self._app(scope, self._limited(receive), send_with_id)
        except Refused as refused:
            answer = envelope(refused.status_code, refused.code, refused.detail, refused.param, refused.headers)
            await answer(scope, receive, send_with_id)
        except Exception:  # the last resort: nobody gets a traceback, and everybody an answer
            log.exception("req-%s failed", number)
            if not status:
                words = f"something went wrong on our side; the log has it under req-{number}"
                await envelope(500, "internal_error", words)(scope, receive, send_with_id)
        finally:
            self._metrics.requests.labels(scope["method"], status or 499).inc()

    def _look_at(self, scope: Scope) -> None:
        """Raises Refused."""
        headers: Headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._keys.knows_host(host):
            raise Refused(
                403,
                "host_not_allowed",
                "the Host header does not name this machine; use 127.0.0.1 or HEED_ALLOWED_HOSTS",
            )
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._body_limit:
            raise self._too_large()
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        has_body = length not in (b"", b"0") or b"transfer-encoding" in headers
        if has_body and kind != b"application/json":
            # Browsers send other types across origins without asking first: a web page could post to localhost.
            shown = kind.decode("latin-1")[:40] or "none"
            raise Refused(415, "unsupported_media_type", f"the content-type is {shown}; send application/json")

    def _limited(self, receive: Receive) -> Receive:
        """Counts what comes, for a body may come in chunks and not say its length."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._body_limit:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> Refused:
        limit = self._body_limit / 2**20
        return Refused(413, "body_too_large", f"the body is larger than {limit:g} MB (HEED_BODY_LIMIT_MB); send less")
