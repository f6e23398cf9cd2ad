"""Idempotency keys: a request that is sent twice because its answer got lost is acted on once.

A key stands for one body of one caller on one route. Kept are digests of key and body, and the answer without what the
caller had sent themselves (serve/idempotency.py puts that back), so nobody's words outlive their vote here.
Refused answers are kept as given ones are; one that invites another try is not, and frees its key.
"""

import secrets
from dataclasses import dataclass

from feedback.connection import Ledger
from feedback.errors import IdempotencyConflict, IdempotencyInProgress
from feedback.records import digest

CLAIM_S = 60
"""A key whose request neither answered nor failed, for its gateway was killed, is free again after this. Many times
longer than any act on the ledger is waited for, so no two are at work on one key."""

# Of two requests that come at the same moment one claims the key. KEYS: key. ARGV: claim, its lifetime in seconds.
CLAIM = """
local held = redis.call('GET', KEYS[1])
if held then return held end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return ''
"""

# Only whoever holds the claim may end it. KEYS: key. ARGV: claim, answer or '' to free the key, lifetime in seconds.
END = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2], 'EX', ARGV[3])
return 1
"""


@dataclass(frozen=True)
class Claim:
    """The right to act on a key, or the answer that was given under it."""

    key: str
    text: str
    answer: str | None = None


async def claim(ledger: Ledger, *, caller: str, route: str, key: str, body: str) -> Claim:
    """`body` is the digest of the request's body.

    Raises IdempotencyConflict, IdempotencyInProgress.
    """
    name = ledger.keys.idempotency(digest(caller, route, key))
    text = f"{body} {secrets.token_hex(8)} "
    held = str(await ledger.run(CLAIM, [name], [text, CLAIM_S]))
    if not held:
        return Claim(name, text)
    body_before, _, answer = held.split(" ", 2)
    if body_before != body:
        raise IdempotencyConflict(
            "this Idempotency-Key came before with another body; send a new key with a new request"
        )
    if not answer:
        raise IdempotencyInProgress(
            "a request with this Idempotency-Key is being answered; send it again in a moment for the same answer"
        )
    return Claim(name, text, answer)


async def keep(ledger: Ledger, claim: Claim, answer: str) -> None:
    lifetime_s = int(ledger.settings.idempotency_hours * 3600)
    await ledger.run(END, [claim.key], [claim.text, answer, max(lifetime_s, 1)])


async def free(ledger: Ledger, claim: Claim) -> None:
    await ledger.run(END, [claim.key], [claim.text, "", 0])
