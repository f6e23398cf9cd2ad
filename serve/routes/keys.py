"""API keys: made, limited and revoked. For operators."""

from typing import Any

from fastapi import APIRouter

from feedback import credentials
from feedback.records import Credential
from serve.auth import Operator
from serve.gateway import Here, page
from serve.protocol import KeyLimits, KeyRequest

router = APIRouter(prefix="/v1/keys", tags=["keys"])

Json = dict[str, Any]


@router.post("")
async def create(body: KeyRequest, here: Here, _: Operator) -> Json:
    """The answer holds the key itself, which is shown this once and kept nowhere."""
    limits = (body.requests_per_minute, body.tokens_per_minute)
    made, key = await credentials.create(here.ledger(), body.name, body.role, *limits)
    return {**_shown(made, None), "key": key}


@router.get("")
async def list_keys(here: Here, _: Operator) -> Json:
    """Newest first, revoked ones too."""
    found = await credentials.listed(here.ledger())
    return page([_shown(credential, used) for credential, used in found], has_more=False)


@router.get("/{key_id}")
async def retrieve(key_id: str, here: Here, _: Operator) -> Json:
    return _shown(*await credentials.get(here.ledger(), key_id))


@router.post("/{key_id}")
async def limit(key_id: str, body: KeyLimits, here: Here, _: Operator) -> Json:
    """What is left out is the gateway's default again."""
    await credentials.limit(here.ledger(), key_id, body.requests_per_minute, body.tokens_per_minute)
    return _shown(*await credentials.get(here.ledger(), key_id))


@router.delete("/{key_id}")
async def revoke(key_id: str, here: Here, _: Operator) -> Json:
    """Refused from now on by this gateway, and within a second by the others."""
    await credentials.revoke(here.ledger(), key_id)
    await here.accord.look()
    return {"id": key_id, "object": "api_key.deleted", "deleted": True}


def _shown(credential: Credential, used: float | None) -> Json:
    return {
        "id": credential.id,
        "object": "api_key",
        "prefix": credential.prefix,
        "role": credential.role,
        "name": credential.name,
        "created": int(credential.created),
        "last_used": used and int(used),
        "requests_per_minute": credential.requests_per_minute,
        "tokens_per_minute": credential.tokens_per_minute,
        "revoked": credential.revoked and int(credential.revoked),
    }
