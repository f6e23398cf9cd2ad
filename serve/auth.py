"""Who may do what: a client chats and votes, an operator does everything.

Keys are kept as digests and compared in constant time. Without client keys anyone on this machine is a client, so the
gateway then binds to loopback only, and answers only to names of this machine, lest a web page reach it by rebinding
a DNS name.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from serve.errors import Refused
from serve.settings import GatewaySettings

LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}
BEARER = {"www-authenticate": "Bearer"}


class CannotBind(Exception):
    """The settings would let strangers in."""


class Keys:
    def __init__(self, settings: GatewaySettings) -> None:
        self._operator = _stored(settings.operator_key or operator_key(settings.var))
        self._clients = [_stored(key) for key in settings.client_keys]
        self._hosts = LOCAL_NAMES | set(settings.allowed_hosts)

    @property
    def is_open(self) -> bool:
        """No client keys: whoever reaches us is a client."""
        return not self._clients

    def is_operator(self, key: str) -> bool:
        return hmac.compare_digest(_digest(key), self._operator)

    def is_client(self, key: str) -> bool:
        digest = _digest(key)
        # All are compared, so that the time taken does not tell which one matched.
        return sum(hmac.compare_digest(digest, known) for known in self._clients) > 0

    def knows_host(self, host: str) -> bool:
        """Whether a Host header may be answered."""
        return not self.is_open or re.sub(r":\d+$", "", host).lower() in self._hosts


def operator_key(var: Path) -> str:
    """The key in var/operator.key; made at the first start, for its owner's eyes only."""
    path = var / "operator.key"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        var.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".operator.key.{os.getpid()}")
    with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(f"heed-{secrets.token_urlsafe(24)}\n")
    try:
        os.link(made, path)  # complete or not there at all, and the first of two starting at once wins
    except FileExistsError:
        pass
    finally:
        made.unlink()
    return path.read_text().strip()


def check_binding(settings: GatewaySettings) -> None:
    """Raises CannotBind."""
    if settings.client_keys or is_loopback(settings.host):
        return
    raise CannotBind(
        f"HEED_HOST is {settings.host}, which other machines can reach, and no client keys are set. "
        "Set HEED_CLIENT_KEYS, or bind to 127.0.0.1."
    )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _stored(setting: str) -> str:
    """The digest of a key that a setting gives plain or as its digest."""
    is_digest = re.fullmatch(r"sha256:[0-9a-f]{64}", setting)
    return setting.removeprefix("sha256:") if is_digest else _digest(setting)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


async def client(request: Request) -> str:
    """A name for whoever asks: the default voter. Raises Refused (401)."""
    keys: Keys = request.app.state.keys
    key = _bearer(request)
    if keys.is_client(key) or (key and keys.is_operator(key)):
        return f"key-{_digest(key)[:12]}"
    if keys.is_open:
        return "anonymous"
    if not key:
        raise Refused(
            401, "missing_api_key", "no key came with the request; send Authorization: Bearer KEY", None, BEARER
        )
    raise Refused(401, "invalid_api_key", "the key is not known here; ask the operator for one", None, BEARER)


async def reader(request: Request) -> str | None:
    """Whose stored answers may be read: those of this key only, or None for everybody's. Raises Refused (401)."""
    keys: Keys = request.app.state.keys
    name = await client(request)
    return None if keys.is_open or keys.is_operator(_bearer(request)) else name


async def reader_of_all(request: Request) -> None:
    """Raises Refused (401, 403)."""
    if await reader(request) is not None:
        raise Refused(
            403, "operator_key_required", "a client's key reads by id; a list of everybody's needs the operator's key"
        )


async def operator(request: Request) -> str:
    """Raises Refused (401, 403)."""
    keys: Keys = request.app.state.keys
    key = _bearer(request)
    if key and keys.is_operator(key):
        return "operator"
    where = "it is in var/operator.key of the gateway's machine"
    if not key:
        raise Refused(401, "missing_api_key", f"this call needs the operator's key; {where}", None, BEARER)
    if keys.is_client(key):
        raise Refused(403, "operator_key_required", f"a client's key came, and this call needs the operator's; {where}")
    raise Refused(401, "invalid_api_key", f"the key is not the operator's; {where}", None, BEARER)


async def sees_all(request: Request) -> bool:
    """Whether an operator asks, of a call that clients may make as well."""
    keys: Keys = request.app.state.keys
    key = _bearer(request)
    return bool(key) and keys.is_operator(key)


Client = Annotated[str, Depends(client)]
Reader = Annotated[str | None, Depends(reader)]
ReaderOfAll = Annotated[None, Depends(reader_of_all)]
Operator = Annotated[str, Depends(operator)]
SeesAll = Annotated[bool, Depends(sees_all)]
