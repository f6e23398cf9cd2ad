"""API keys: made, recognised and revoked, and what all gateways must agree on about them.

A key is `heed-ID-SECRET`, shown once; kept is its sha256. Every change raises a version, by which gateways, which ask
for it a few times a second, see that they must read the keys anew. In the same trip they exchange what each key has
taken of its limits, and get the secret that vote tokens are signed with. So no request waits for the ledger.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from feedback.connection import Ledger
from feedback.errors import CredentialUnknown
from feedback.records import Credential, Role

SHAPE = re.compile(r"heed-([0-9a-f]{8})-[\w-]{43}", re.ASCII)

# KEYS: credentials, version. ARGV: id, record. Two keys of one id do not come to be: 0.
CREATE = """
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('INCR', KEYS[2])
return 1
"""

# Only what the caller has read may be replaced. KEYS: credentials, version. ARGV: id, record as read, record.
REPLACE = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('INCR', KEYS[2])
return 1
"""

# What is taken fills a leaky bucket of a minute, as votes do (feedback/voters.py). The time is Redis's, and answered is
# how much longer than now the bucket takes to run empty, so that gateways' clocks may differ. Nothing is written where
# nothing was taken. KEYS: version, secret, used, a bucket for each part. ARGV: a secret for when there is none, how
# many ids follow, ids of keys used, then for each bucket what was taken of it in milliseconds of its minute.
AGREE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local secret = redis.call('GET', KEYS[2])
if not secret then
  secret = ARGV[1]
  redis.call('SET', KEYS[2], secret)
end
local ids = tonumber(ARGV[2])
for nth = 1, ids do redis.call('HSET', KEYS[3], ARGV[2 + nth], time[1]) end
local reply = {redis.call('GET', KEYS[1]) or '0', secret}
for nth = 4, #KEYS do
  local taken = tonumber(ARGV[2 + ids + nth - 3])
  local at = math.max(tonumber(redis.call('GET', KEYS[nth]) or '0'), now) + taken
  if taken ~= 0 then
    if at > now then
      redis.call('SET', KEYS[nth], string.format('%.3f', at), 'PX', math.ceil(at - now))
    else
      redis.call('DEL', KEYS[nth])
    end
  end
  reply[#reply + 1] = string.format('%.3f', math.max(at - now, 0))
end
return reply
"""


@dataclass(frozen=True)
class Agreed:
    """What the ledger knows of all gateways together."""

    version: str
    secret: bytes
    filled_ms: dict[str, float]
    """Of each bucket: how long it takes to run empty."""


async def create(
    ledger: Ledger,
    name: str,
    role: Role,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
) -> tuple[Credential, str]:
    """The record and the key itself, which nobody can tell afterwards."""
    while True:
        number = secrets.token_hex(4)
        key = f"heed-{number}-{secrets.token_urlsafe(32)}"
        made = Credential(
            id=f"key-{number}",
            role=role,
            name=name,
            digest=digest_of(key),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            created=ledger.clock(),
        )
        keys = [ledger.keys.credentials, ledger.keys.credentials_version]
        if await ledger.keep(CREATE, keys, [made.id, made.model_dump_json()]):
            return made, key


async def limit(
    ledger: Ledger, credential_id: str, requests_per_minute: int | None, tokens_per_minute: int | None
) -> Credential:
    """Raises CredentialUnknown."""
    change = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    return await _change(ledger, credential_id, change)


async def revoke(ledger: Ledger, credential_id: str) -> Credential:
    """It stays in the list, so that what was done with it keeps its name. Again changes nothing.

    Raises CredentialUnknown.
    """
    return await _change(ledger, credential_id, {"revoked": ledger.clock()})


async def _change(ledger: Ledger, credential_id: str, change: Mapping[str, float | None]) -> Credential:
    while True:
        text = await ledger.reply(ledger.redis.hget(ledger.keys.credentials, credential_id))
        if text is None:
            raise CredentialUnknown(f"no key has the id {credential_id[:40]!r}; GET /v1/keys lists those there are")
        found = Credential.model_validate_json(text)
        # Written again as it is, for the first time may have been refused an answer, as replicas did not have it.
        changed = found if found.revoked is not None else found.model_copy(update=dict(change))
        keys = [ledger.keys.credentials, ledger.keys.credentials_version]
        if await ledger.keep(REPLACE, keys, [credential_id, text, changed.model_dump_json()]):
            return changed


async def everyone(ledger: Ledger) -> dict[str, Credential]:
    """All of them by id; there are as many as an operator has made."""
    kept = await ledger.reply(ledger.redis.hgetall(ledger.keys.credentials))
    return {key_id: Credential.model_validate_json(text) for key_id, text in kept.items()}


async def get(ledger: Ledger, credential_id: str) -> tuple[Credential, float | None]:
    """And when it was last used, to the minute. Raises CredentialUnknown."""
    for credential, used in await listed(ledger):
        if credential.id == credential_id:
            return credential, used
    raise CredentialUnknown(f"no key has the id {credential_id[:40]!r}; GET /v1/keys lists those there are")


async def listed(ledger: Ledger) -> list[tuple[Credential, float | None]]:
    """Newest first, and when each was last used, to the minute."""
    pipe = ledger.redis.pipeline(transaction=False)
    pipe.hgetall(ledger.keys.credentials)
    pipe.hgetall(ledger.keys.credentials_used)
    kept, used = await ledger.reply(pipe.execute())
    found = [Credential.model_validate_json(text) for text in kept.values()]
    found.sort(key=lambda credential: (credential.created, credential.id), reverse=True)
    return [(each, float(used[each.id]) if each.id in used else None) for each in found]


async def agree(ledger: Ledger, used: Collection[str], taken_ms: Mapping[str, float]) -> Agreed:
    """Tell what this gateway's requests used and took, and hear what those of all have."""
    keys = [ledger.keys.credentials_version, ledger.keys.credentials_secret, ledger.keys.credentials_used]
    keys += [ledger.keys.credentials_taken(name) for name in taken_ms]
    version, secret, *filled = await ledger.run(
        AGREE, keys, [secrets.token_hex(32), len(used), *used, *(f"{taken:.3f}" for taken in taken_ms.values())]
    )
    return Agreed(version, bytes.fromhex(secret), dict(zip(taken_ms, map(float, filled), strict=True)))


def id_of(key: str) -> str | None:
    """Of a key as `create` makes them; None for any other text."""
    shape = SHAPE.fullmatch(key)
    return f"key-{shape[1]}" if shape else None


def is_key_of(credential: Credential, key: str) -> bool:
    """Compared in constant time; whether it is revoked is not looked at."""
    return hmac.compare_digest(digest_of(key), credential.digest)


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
