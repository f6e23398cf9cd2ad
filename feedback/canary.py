"""A canary: an adapter that answers a share of the people while votes and failures say whether it may answer all.

A served model has one at most. It is compared with what was live when its trial began; when that moves, the trial is
void, whoever moved it. A trial is a time with one share: another share begins another, for answers from before and
after would be mixed in other proportions on the two sides (Simpson's paradox), while people stay on their side, for
that is decided by a hash with the canary's own salt, and a greater share keeps those of a smaller one.
"""

import hashlib
import json
import secrets
from typing import Literal, NamedTuple

from pydantic import Field

from feedback import adapters
from feedback.adapters import base_name
from feedback.connection import Ledger
from feedback.errors import (
    AdapterIsLive,
    AdapterNotServable,
    CanaryRunning,
    CanaryUnknown,
    RecordConflict,
)
from feedback.records import AdapterState, Record, StateChange, new_id

Arm = Literal["control", "canary"]
ARMS: tuple[Arm, Arm] = ("control", "canary")

KEPT_S = 30 * 86_400
"""What was counted in a trial stays readable as long as answers do by default."""

# KEYS: canary, adapter, its history, serving. ARGV: adapter, trial, record, history entry, base, and as they were read:
# trial ('' for none), live. Refused when somebody rejected it, wants it live, or moved one of these meanwhile.
START = """
local state, live = redis.call('HGET', KEYS[2], 'state'), redis.call('HGET', KEYS[4], 'live') or ARGV[5]
if state == 'rejected' or redis.call('HGET', KEYS[4], 'wanted') == ARGV[1] then return 0 end
if (redis.call('HGET', KEYS[1], 'trial') or '') ~= ARGV[6] or live ~= ARGV[7] then return 0 end
redis.call('HSET', KEYS[1], 'trial', ARGV[2], 'record', ARGV[3])
redis.call('HDEL', KEYS[1], 'asked')
redis.call('HSET', KEYS[2], 'state', 'canary')
redis.call('RPUSH', KEYS[3], ARGV[4])
return 1
"""

# Several gateways may come to the same end; the first one writes it down.
# KEYS: canary, canary:last, adapter, its history, then counts, seen and voters of the trial. ARGV: trial, state that
# the adapter gets if it is still a canary, history entry, record, lifetime of the counts in seconds.
END = """
if redis.call('HGET', KEYS[1], 'trial') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[4])
redis.call('DEL', KEYS[1], KEYS[6], KEYS[7])
redis.call('EXPIRE', KEYS[5], ARGV[5])
if redis.call('HGET', KEYS[3], 'state') == 'canary' then
  redis.call('HSET', KEYS[3], 'state', ARGV[2])
  redis.call('RPUSH', KEYS[4], ARGV[3])
end
return 1
"""

# Asked once, and only while nobody wants something else. It stays the canary until the hot swap has moved the pointer.
# KEYS: canary, serving. ARGV: trial, adapter, against, base, reason.
PROMOTE = """
if redis.call('HGET', KEYS[1], 'trial') ~= ARGV[1] or redis.call('HEXISTS', KEYS[1], 'asked') == 1 then return 0 end
local live = redis.call('HGET', KEYS[2], 'live') or ARGV[4]
if live ~= ARGV[3] or (redis.call('HGET', KEYS[2], 'wanted') or ARGV[4]) ~= live then return 0 end
redis.call('HSET', KEYS[1], 'asked', ARGV[5])
redis.call('HSET', KEYS[2], 'wanted', ARGV[2], 'back', '0', 'reason', ARGV[5])
return 1
"""


class Canary(Record):
    trial: str
    adapter: str
    percent: float = Field(gt=0, le=100, description="Share of users and conversations that it answers.")
    auto: bool = Field(False, description="That it goes live or back by itself.")
    since: float = Field(description="When this trial began.")
    reason: str = ""
    salt: str
    against: str = Field(description="What was live when it began, and answers all others.")
    asked: str | None = Field(None, description="Why it was asked to go live; it does when the hot swap is done.")
    ended: float | None = None
    outcome: str | None = Field(None, description="Why it ended.")


class Mark(NamedTuple):
    """Whose answer it is: the trial, the side, and the user or the conversation as a salted hash."""

    trial: str
    arm: Arm
    unit: str

    def __str__(self) -> str:
        return " ".join(self)

    @classmethod
    def read(cls, text: str) -> "Mark":
        """Raises ValueError."""
        trial, said, unit = text.split(" ")
        arm = next((arm for arm in ARMS if arm == said), None)
        if arm is None:
            raise ValueError(f"a canary's side is control or canary; got {said!r}")
        return cls(trial, arm, unit)


def mark(canary: Canary, who: bytes) -> Mark:
    """The side of a user or a conversation; the same for as long as the canary runs, or its share grows."""
    hashed = hashlib.blake2b(who, digest_size=16, key=canary.salt.encode()).digest()
    arm: Arm = "canary" if int.from_bytes(hashed[:8]) < canary.percent / 100 * 2**64 else "control"
    return Mark(canary.trial, arm, hashed[8:].hex())


async def start(ledger: Ledger, adapter_id: str, percent: float, *, auto: bool = False, reason: str = "") -> Canary:
    """Let it answer a share, or change the share of the one that does; the same again changes nothing.

    Raises AdapterUnknown, AdapterNotServable, AdapterIsLive, CanaryRunning, RecordConflict.
    """
    before, live = await tidied(ledger)
    if adapter_id in (live, base_name(ledger.model)):
        raise AdapterIsLive(f"{adapter_id} is live or the base, which has no adapter; try an adapter that is not live")
    adapter = await adapters.get(ledger, adapter_id)
    if adapter.state == "rejected":
        raise AdapterNotServable(f"{adapter_id} was rejected ({adapter.history[-1].reason}); try one that passed")
    if before and before.adapter != adapter_id:
        raise CanaryRunning(
            f"{before.adapter} is the canary and {adapter_id} cannot be another; end it first: heed canary --stop"
        )
    why = reason or "asked for by the operator"
    new = Canary(
        trial=new_id("trial"),
        adapter=adapter_id,
        percent=percent,
        auto=auto,
        since=ledger.clock(),
        reason=why,
        salt=before.salt if before else secrets.token_hex(16),
        against=live,
    )
    if before and before.percent == percent:
        new = before.model_copy(update={"auto": auto, "reason": reason or before.reason, "asked": None})
        if new == before:
            return before
    share = f"{percent:g} % of users and conversations{', by itself from there' if auto else ''}"
    entry = _entry(ledger, "canary", f"answers {share}: {new.reason}")
    keys = [ledger.keys.canary, *_adapter(ledger, adapter_id), ledger.keys.serving]
    args = [adapter_id, new.trial, _text(new), entry, base_name(ledger.model), before.trial if before else "", live]
    if not await ledger.run(START, keys, args):
        raise RecordConflict(f"what is live, the canary, or {adapter_id} was changed meanwhile; look and send it again")
    if before and before.trial != new.trial:
        await _forget(ledger, before.trial)
    return new


async def running(ledger: Ledger) -> Canary | None:
    found = await ledger.reply(ledger.redis.hgetall(ledger.keys.canary))
    if not found:
        return None
    return Canary.model_validate({**json.loads(found["record"]), "asked": found.get("asked")})


async def last(ledger: Ledger) -> Canary | None:
    """The one that ended last."""
    text = await ledger.reply(ledger.redis.get(ledger.keys.canary_last))
    return Canary.model_validate_json(text) if text else None


async def stop(ledger: Ledger, reason: str, adapter_id: str | None = None, state: AdapterState = "candidate") -> Canary:
    """End it by hand. With `adapter_id`, only if that is the canary. Raises CanaryUnknown."""
    found = await running(ledger)
    if found is None or adapter_id not in (None, found.adapter):
        there = f"{found.adapter} is" if found else "none runs"
        raise CanaryUnknown(f"{adapter_id or 'a canary'} cannot be ended as a canary of {ledger.model}: {there}")
    await end(ledger, found, state, reason)
    return found.model_copy(update={"ended": ledger.clock(), "outcome": reason})


async def end(ledger: Ledger, canary: Canary, state: AdapterState, reason: str) -> bool:
    """Whether this call ended it: among many that come to it, one does."""
    ended = canary.model_copy(update={"ended": ledger.clock(), "outcome": reason})
    keys = [
        ledger.keys.canary,
        ledger.keys.canary_last,
        *_adapter(ledger, canary.adapter),
        ledger.keys.canary_counts(canary.trial),
        ledger.keys.canary_seen(canary.trial),
        ledger.keys.canary_voters(canary.trial),
    ]
    args: list[str | int] = [canary.trial, state, _entry(ledger, state, reason), _text(ended), KEPT_S]
    return bool(await ledger.run(END, keys, args))


async def promote(ledger: Ledger, canary: Canary, reason: str) -> bool:
    """Whether this call asked for it to go live: once, and not against what an operator wants."""
    keys = [ledger.keys.canary, ledger.keys.serving]
    args = [canary.trial, canary.adapter, canary.against, base_name(ledger.model), reason]
    return bool(await ledger.run(PROMOTE, keys, args))


async def tidied(ledger: Ledger) -> tuple[Canary | None, str]:
    """The canary, ended first if its trial is void, and what is live."""
    found, live = await running(ledger), (await adapters.serving(ledger)).live
    if found is None:
        return None, live
    adapter = await adapters.get(ledger, found.adapter)
    if live == found.adapter:
        await end(ledger, found, "live", f"went live: {found.asked or 'promoted by hand'}")
    elif live != found.against:
        reason = f"no longer a canary: {live} is live now, and it was compared with {found.against}"
        await end(ledger, found, "candidate", reason)
    elif adapter.state != "canary":
        await end(ledger, found, adapter.state, adapter.history[-1].reason)
    else:
        return found, live
    return None, live


async def _forget(ledger: Ledger, trial: str) -> None:
    """An earlier share's counts, as `END` leaves them; answers of it that still come are not counted."""
    pipe = ledger.redis.pipeline(transaction=True)
    pipe.delete(ledger.keys.canary_seen(trial), ledger.keys.canary_voters(trial))
    pipe.expire(ledger.keys.canary_counts(trial), KEPT_S)
    await ledger.reply(pipe.execute())


def _adapter(ledger: Ledger, adapter_id: str) -> list[str]:
    return [ledger.keys.adapter(adapter_id), ledger.keys.adapter_history(adapter_id)]


def _entry(ledger: Ledger, state: AdapterState, reason: str) -> str:
    return StateChange(state=state, at=ledger.clock(), reason=reason).model_dump_json()


def _text(canary: Canary) -> str:
    return canary.model_dump_json(exclude={"asked"}, exclude_none=True)
