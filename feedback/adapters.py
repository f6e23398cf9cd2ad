"""Adapters: what was trained, what is wanted live, what is live.

`wanted` is intent and anyone with the operator's right may set it; `live` changes in one step, made by the hot swap
when every replica really holds what is wanted. What was live before is remembered in order, so rolling back twice
goes back two versions. Of several gateway processes one swaps at a time: what it changes here it changes with the
token of its lease (feedback/gateways.py), and with an older one than the last that was given nothing is changed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from feedback import completions
from feedback.connection import Ledger
from feedback.errors import AdapterNotServable, AdapterUnknown, LeadLost, NothingToRollBackTo, RecordConflict
from feedback.records import Adapter, AdapterState, Serving, StateChange

# KEYS: adapter, its history, all adapters. ARGV: id, version, record, state, history entry.
REGISTER = """
if redis.call('HSETNX', KEYS[1], 'record', ARGV[3]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[4])
redis.call('RPUSH', KEYS[2], ARGV[5])
redis.call('ZADD', KEYS[3], ARGV[2], ARGV[1])
return 1
"""

# KEYS: adapter, its history. ARGV: state, history entry.
ENTER = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if redis.call('HGET', KEYS[1], 'state') == ARGV[1] then return 1 end
redis.call('HSET', KEYS[1], 'state', ARGV[1])
redis.call('RPUSH', KEYS[2], ARGV[2])
return 1
"""

# The hot swap found everything in place. Refused when somebody wanted something else meanwhile, or another led since.
# KEYS: serving, past, then adapter and history of the new one, then of the old one, the last token.
# ARGV: new, old, base, history entry of the new, of the old, token.
FLIP = """
if (redis.call('GET', KEYS[7]) or '0') ~= ARGV[6] then return -1 end
local wanted = redis.call('HGET', KEYS[1], 'wanted') or ARGV[3]
local live = redis.call('HGET', KEYS[1], 'live') or ARGV[3]
if wanted ~= ARGV[1] or live ~= ARGV[2] then return 0 end
if redis.call('HGET', KEYS[1], 'back') == '1' then
  redis.call('LPOP', KEYS[2])
else
  redis.call('LPUSH', KEYS[2], live)
end
redis.call('HSET', KEYS[1], 'live', ARGV[1], 'back', '0')
redis.call('HINCRBY', KEYS[1], 'generation', 1)
if ARGV[1] ~= ARGV[3] then
  redis.call('HSET', KEYS[3], 'state', 'live')
  redis.call('RPUSH', KEYS[4], ARGV[4])
end
if ARGV[2] ~= ARGV[3] then
  redis.call('HSET', KEYS[5], 'state', 'retired')
  redis.call('RPUSH', KEYS[6], ARGV[5])
end
return 1
"""

# KEYS: serving, past. ARGV: reason.
ROLL_BACK = """
local before = redis.call('LINDEX', KEYS[2], 0)
if not before then return false end
redis.call('HSET', KEYS[1], 'wanted', before, 'back', '1', 'reason', ARGV[1])
return before
"""

# An intent that cannot be met is given up.
# KEYS: adapter, its history, serving, the last token. ARGV: id, base, reason, history entry, token.
REJECT = """
if (redis.call('GET', KEYS[4]) or '0') ~= ARGV[5] then return -1 end
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if redis.call('HGET', KEYS[1], 'state') ~= 'rejected' then
  redis.call('HSET', KEYS[1], 'state', 'rejected')
  redis.call('RPUSH', KEYS[2], ARGV[4])
end
if (redis.call('HGET', KEYS[3], 'wanted') or ARGV[2]) == ARGV[1] then
  redis.call('HSET', KEYS[3], 'wanted', redis.call('HGET', KEYS[3], 'live') or ARGV[2], 'back', '0', 'reason', ARGV[3])
end
return 1
"""


def base_name(model: str) -> str:
    """The concrete name of the base model: no adapter."""
    return f"{model}-base"


def digest_of(directory: Path) -> str:
    """sha256 over the names and bytes of an adapter's files, in order of name. Raises OSError."""
    whole = hashlib.sha256()
    for path in sorted(p for p in directory.iterdir() if p.is_file()):
        whole.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


async def register(ledger: Ledger, adapter: Adapter, reason: str) -> None:
    """Make the adapter known. Registering it again (a job taken up again) changes nothing."""
    entry = _entry(ledger, adapter.state, reason)
    text = adapter.model_dump_json(exclude={"state", "history"}, exclude_none=True)
    keys = [*_keys(ledger, adapter.id), ledger.keys.adapters]
    await ledger.run(REGISTER, keys, [adapter.id, adapter.version, text, adapter.state, entry])


async def get(ledger: Ledger, adapter_id: str) -> Adapter:
    """Raises AdapterUnknown."""
    key, history_key = _keys(ledger, adapter_id)
    fields = await ledger.reply(ledger.redis.hgetall(key))
    if not fields:
        raise AdapterUnknown(f"no adapter {adapter_id!r}; list them at /v1/adapters")
    history = await ledger.reply(ledger.redis.lrange(history_key, 0, -1))
    changes = [StateChange.model_validate_json(entry) for entry in history]
    return Adapter.model_validate({**json.loads(fields["record"]), "state": fields["state"], "history": changes})


async def exists(ledger: Ledger, adapter_id: str) -> bool:
    return bool(await ledger.reply(ledger.redis.exists(ledger.keys.adapter(adapter_id))))


async def page(ledger: Ledger, after: str | None = None, limit: int = 100) -> tuple[list[Adapter], bool]:
    """Newest version first, and whether more follow."""
    ids, has_more = await completions.page_of(ledger, ledger.keys.adapters, after, limit, newest_first=True)
    return [await get(ledger, i) for i in ids], has_more


async def enter(ledger: Ledger, adapter_id: str, state: AdapterState, reason: str) -> None:
    """Raises AdapterUnknown."""
    if not await ledger.run(ENTER, _keys(ledger, adapter_id), [state, _entry(ledger, state, reason)]):
        raise AdapterUnknown(f"no adapter {adapter_id!r}; list them at /v1/adapters")


async def serving(ledger: Ledger) -> Serving:
    pipe = ledger.redis.pipeline(transaction=True)
    pipe.hgetall(ledger.keys.serving)
    pipe.lindex(ledger.keys.serving_past, 0)
    fields, previous = await ledger.reply(pipe.execute())
    return serving_of(ledger, fields, previous)


def serving_of(ledger: Ledger, fields: Mapping[str, str], previous: str | None) -> Serving:
    base = base_name(ledger.model)
    return Serving.model_validate({"wanted": base, "live": base, **fields, "previous": previous})


async def want(ledger: Ledger, adapter_id: str, reason: str) -> Serving:
    """Ask for an adapter, or for the base by its name, to go live. Raises AdapterUnknown, AdapterNotServable."""
    if adapter_id != base_name(ledger.model):
        adapter = await get(ledger, adapter_id)
        if adapter.state == "rejected":
            why = adapter.history[-1].reason if adapter.history else "its gate said no"
            raise AdapterNotServable(f"{adapter_id} was rejected ({why}); train another, or promote one that passed")
    wanted = ["wanted", adapter_id, "back", "0", "reason", reason]
    await ledger.reply(ledger.redis.hset(ledger.keys.serving, items=wanted))
    return await serving(ledger)


async def roll_back(ledger: Ledger, reason: str) -> Serving:
    """Ask for what was live before. Raises NothingToRollBackTo."""
    keys = [ledger.keys.serving, ledger.keys.serving_past]
    if not await ledger.run(ROLL_BACK, keys, [reason]):
        raise NothingToRollBackTo(f"nothing was live before {base_name(ledger.model)}; promote an adapter instead")
    return await serving(ledger)


async def flip(ledger: Ledger, new: str, old: str, reason: str, token: int = 0) -> Serving:
    """`new` answers from now on; every replica must hold it. `token` is 0 where no gateway has led yet.

    Raises RecordConflict if it is no longer wanted, LeadLost.
    """
    keys = [ledger.keys.serving, ledger.keys.serving_past, *_keys(ledger, new), *_keys(ledger, old)]
    entries = [_entry(ledger, "live", reason), _entry(ledger, "retired", f"{new} went live: {reason}")]
    args: list[str | int] = [new, old, base_name(ledger.model), *entries, token]
    done = await ledger.run(FLIP, [*keys, ledger.keys.gateways_tokens], args)
    if done < 0:
        raise LeadLost(f"{new} did not go live: another gateway process leads the swaps of {ledger.model} by now")
    if not done:
        raise RecordConflict(f"{new} is no longer wanted, or {old} is no longer live")
    return await serving(ledger)


async def reject(ledger: Ledger, adapter_id: str, reason: str, token: int = 0) -> None:
    """It cannot be served: say why, and stop wanting it. Raises AdapterUnknown, LeadLost."""
    keys = [*_keys(ledger, adapter_id), ledger.keys.serving, ledger.keys.gateways_tokens]
    entry = _entry(ledger, "rejected", reason)
    args: list[str | int] = [adapter_id, base_name(ledger.model), reason, entry, token]
    done = await ledger.run(REJECT, keys, args)
    if done < 0:
        raise LeadLost(f"{adapter_id} was not rejected: another gateway process leads the swaps by now")
    if not done:
        raise AdapterUnknown(f"no adapter {adapter_id!r}; list them at /v1/adapters")


def _keys(ledger: Ledger, adapter_id: str) -> list[str]:
    return [ledger.keys.adapter(adapter_id), ledger.keys.adapter_history(adapter_id)]


def _entry(ledger: Ledger, state: AdapterState, reason: str) -> str:
    return StateChange(state=state, at=ledger.clock(), reason=reason).model_dump_json()
