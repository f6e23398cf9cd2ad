"""Who may do what: a client chats and votes, an annotator also reads everybody's answers, an operator does everything.

Without client keys anyone on this machine is a client, so the gateway then binds to loopback only, and answers only to
names of this machine, lest a web page reach it by rebinding a DNS name. A vote token (serve/vote_tokens.py) stands for
a key where one answer is voted on.
"""

import ipaddress
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from feedback import credentials
from serve.accord import Accord
from serve.errors import Refused
from serve.keyring import ANONYMOUS, NOBODY, Caller, Keyring
from serve.settings import GatewaySettings
from serve.vote_tokens import HEADER, VoteTokens

BEARER = {"www-authenticate": "Bearer"}


class CannotBind(Exception):
    """The settings would let strangers in."""


def check_binding(settings: GatewaySettings) -> None:
    """Raises CannotBind."""
    has_keys = bool(settings.client_keys) or settings.require_keys
    if not has_keys and not is_loopback(settings.host):
        raise CannotBind(
            f"HEED_HOST is {settings.host}, which other machines can reach, and no client keys are set. "
            "Set HEED_CLIENT_KEYS, or bind to 127.0.0.1, or set HEED_REQUIRE_KEYS=true and make keys with `heed keys "
            "create`."
        )
    if not has_keys and "*" in settings.cors_origins:
        raise CannotBind(
            "HEED_CORS_ORIGINS is * and no client keys are set, so any web page that somebody on this machine opens "
            "could chat and vote. Name the origins of your pages, or set HEED_CLIENT_KEYS or HEED_REQUIRE_KEYS=true."
        )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Standing:
    """Who may vote, and on what: with a key as whom they will on any answer, with a vote token as one voter on one."""

    client: str
    completion_id: str | None = None
    voter: str | None = None

    def voter_of(self, completion_id: str, named: str | None) -> str:
        """Raises Refused (403)."""
        if self.completion_id not in (None, completion_id):
            raise Refused(
                403,
                "vote_token_mismatch",
                f"the vote token is for {self.completion_id}; send the one that came with {completion_id[:80]!r}",
                "completion_id",
            )
        if self.voter is not None and named not in (None, self.voter):
            raise Refused(
                403,
                "vote_token_mismatch",
                "the vote token is another voter's; leave voter away or send a key",
                "voter",
            )
        return self.voter or named or self.client

    @property
    def caller(self) -> str:
        """Whose Idempotency-Keys and rights these are."""
        return self.client if self.completion_id is None else f"{self.completion_id} {self.voter}"


def _bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


async def _holder(request: Request) -> Caller | None:
    """Whose key came, if it is anybody's."""
    key = _bearer(request)
    if not key:
        return None
    keyring: Keyring = request.app.state.keyring
    found = keyring.identify(key)
    if found is None and credentials.id_of(key):  # made by another gateway a moment ago, perhaps
        accord: Accord = request.app.state.gateway.accord
        await accord.look()
        found = keyring.identify(key)
    if found is not None:
        request.state.caller = found.name
    return found


async def caller(request: Request) -> Caller:
    """Raises Refused (401)."""
    if found := await _holder(request):
        return found
    keyring: Keyring = request.app.state.keyring
    key = _bearer(request)
    if keyring.is_open and not credentials.id_of(key):  # one of ours that is not known was revoked
        return NOBODY
    if not key:
        raise Refused(
            401, "missing_api_key", "no key came with the request; send Authorization: Bearer KEY", None, BEARER
        )
    raise Refused(
        401,
        "invalid_api_key",
        "the key is not known here, or was revoked; ask the operator for one",
        None,
        BEARER,
    )


async def client(request: Request) -> str:
    """A name for whoever asks: the default voter. Raises Refused (401)."""
    return (await caller(request)).name


async def standing(request: Request) -> Standing:
    """Who may vote: a key counts before a token. Raises Refused (401)."""
    token = request.headers.get(HEADER)
    if token is None or _bearer(request):
        return Standing(await client(request))
    tokens: VoteTokens = request.app.state.gateway.tokens
    ballot = tokens.read(token)
    request.state.caller = "vote-token"
    return Standing(ballot.client, ballot.completion_id, ballot.voter)


async def reader(request: Request) -> str | None:
    """Whose stored answers may be read: those of this key only, or None for everybody's. Raises Refused (401)."""
    keyring: Keyring = request.app.state.keyring
    found = await caller(request)
    return None if keyring.is_open or found.reads_all else found.name


async def owner(request: Request) -> str | None:
    """Whose stored answers may be changed: as `reader`, but an annotator's own only. Raises Refused (401)."""
    keyring: Keyring = request.app.state.keyring
    found = await caller(request)
    return None if keyring.is_open or found.is_operator else found.name


async def reader_of_all(request: Request) -> None:
    """Raises Refused (401, 403)."""
    if await reader(request) is not None:
        raise Refused(
            403,
            "operator_key_required",
            "a client's key reads by id; a list of everybody's needs a key of an annotator or the operator",
        )


async def operator(request: Request) -> str:
    """Raises Refused (401, 403)."""
    found = await _keyed(request)
    if found.is_operator:
        return "operator"
    raise Refused(
        403,
        "operator_key_required",
        f"a key of role {found.role} came, and this call needs the operator's; it is in var/operator.key of the "
        "gateway's machine",
    )


async def _keyed(request: Request) -> Caller:
    """Raises Refused (401)."""
    if found := await _holder(request):
        return found
    where = "it is in var/operator.key of the gateway's machine"
    if not _bearer(request):
        raise Refused(401, "missing_api_key", f"this call needs the operator's key; {where}", None, BEARER)
    raise Refused(401, "invalid_api_key", f"the key is not the operator's; {where}", None, BEARER)


def key_of(client: str) -> str | None:
    """The key that votes are counted under; whoever needs none has none."""
    return None if client == ANONYMOUS else client


async def sees_all(request: Request) -> bool:
    """Whether an operator asks, of a call that clients may make as well."""
    found = await _holder(request)
    return found is not None and found.is_operator


Asker = Annotated[Caller, Depends(caller)]
Client = Annotated[str, Depends(client)]
Voting = Annotated[Standing, Depends(standing)]
Reader = Annotated[str | None, Depends(reader)]
Owner = Annotated[str | None, Depends(owner)]
ReaderOfAll = Annotated[None, Depends(reader_of_all)]
Operator = Annotated[str, Depends(operator)]
SeesAll = Annotated[bool, Depends(sees_all)]
