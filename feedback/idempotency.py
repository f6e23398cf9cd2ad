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

CLAIM_TIMEOUTS = 3
"""A key whose request neither answered nor failed, for its gateway was killed, is free again after so many times the
ledger's timeout: a vote makes three trips to the ledger at most, so hardly ever are two at work on one key. They do no
harm: a vote that is cast twice counts once."""

_PROCESS = secrets.token_hex(4)
_acting: set[str] = set()
"""This process's claims, told from others' by its name. One that is held and not among these is of a request that has
ended, and the ledger was not there to be told so; the key is then free for the retry that the answer invited."""

# Of two requests that come at the same moment one claims the key. KEYS: key. ARGV: claim, its lifetime in seconds, a
# claim that it may take the place of, or ''.
CLAIM = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[3] then return held end
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
    text = f"{body} {_PROCESS}{secrets.token_hex(8)} "
    _acting.add(text)
    held = text
    try:
        held = await _claim(ledger, name, text)
    finally:
        if held:
            _acting.discard(text)
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


async def _claim(ledger: Ledger, name: str, text: str) -> str:
    """Empty, or what holds the key."""
    lifetime_s = max(round(CLAIM_TIMEOUTS * ledger.settings.ledger_timeout_s), 1)
    held = str(await ledger.run(CLAIM, [name], [text, lifetime_s, ""]))
    if held and _is_left_over(held, text):
        held = str(await ledger.run(CLAIM, [name], [text, lifetime_s, held]))
    return held


def _is_left_over(held: str, text: str) -> bool:
    body, owner, answer = held.split(" ", 2)
    is_own = owner.startswith(_PROCESS) and held not in _acting
    return is_own and not answer and text.startswith(f"{body} ")


async def keep(ledger: Ledger, claim: Claim, answer: str) -> None:
    lifetime_s = int(ledger.settings.idempotency_hours * 3600)
    await _end(ledger, claim, answer, max(lifetime_s, 1))


async def free(ledger: Ledger, claim: Claim) -> None:
    await _end(ledger, claim, "", 0)


async def _end(ledger: Ledger, claim: Claim, answer: str, lifetime_s: int) -> None:
    try:
        await ledger.run(END, [claim.key], [claim.text, answer, lifetime_s])
    finally:
        _acting.discard(claim.text)
