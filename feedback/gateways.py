"""The gateway processes of one served model: who is there, who leads its swaps, and what the engines hold.

Each tells, some times a second, what it has seen and what it is answering with, and hears in the same trip what is live
and what the others told. One holds a lease and loads, probes, flips and unloads; each lease has a token, greater than
all before, and what is written with an older one is refused, so a process that slept through the end of its lease
changes nothing. What the leader found fit at each engine is on the board, by which the others send requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from feedback import adapters
from feedback.connection import Ledger
from feedback.errors import LeadLost
from feedback.records import Record, Serving

RENEWED = 2 / 3
"""Share of its time below which a lease or a presence is prolonged: each is a write to disk, and most beats write
nothing. So whoever was just told that they lead do so for this share at least."""

# The time is Redis's, so that hosts' clocks may differ. Who has said nothing for `patience` is no more, and what it was
# answering with goes with it. KEYS: gateways, told, lease, tokens, board, its version, serving, past.
# ARGV: name, what it tells, patience in ms, ms below which that is renewed, 1 to lead if nobody does and 0 to leave the
# lead to others, the version of the board it knows. It writes little, and lets it through where memory is at its limit.
BEAT = """#!lua flags=allow-oom
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  redis.call('ZREM', KEYS[1], gone)
  redis.call('HDEL', KEYS[2], gone)
end
local until_ms = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '0')
if until_ms - now < tonumber(ARGV[4]) then redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1]) end
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) end
local leader = redis.call('GET', KEYS[3])
if leader == ARGV[1] and ARGV[5] == '0' then
  redis.call('DEL', KEYS[3])
  leader = false
elseif leader == ARGV[1] then
  if redis.call('PTTL', KEYS[3]) < tonumber(ARGV[4]) then redis.call('PEXPIRE', KEYS[3], ARGV[3]) end
elseif not leader and ARGV[5] == '1' then
  redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[3])
  redis.call('INCR', KEYS[4])
  leader = ARGV[1]
end
local version = redis.call('GET', KEYS[6]) or '0'
return {
  leader == ARGV[1] and redis.call('GET', KEYS[4]) or '0',
  redis.call('HGETALL', KEYS[2]),
  version,
  version ~= ARGV[6] and redis.call('GET', KEYS[5]) or '',
  redis.call('HGETALL', KEYS[7]),
  redis.call('LINDEX', KEYS[8], 0),
}
"""

# KEYS: tokens, board, its version. ARGV: token, board.
PUBLISH = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
return redis.call('INCR', KEYS[3])
"""

# KEYS: gateways, told, lease. ARGV: name.
LEAVE = """
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
if redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
"""


class Telling(Record):
    """What one gateway process says of itself.

    Adapters by name and not by number of requests: whether there is one is what is asked, and under steady load this
    text stays the same, so that nothing is written.
    """

    generation: int = Field(-1, description="The last flip that it has seen; requests go by it from there on.")
    board: int = Field(0, description="The version of the board that it has seen.")
    in_flight: list[str] = Field(default_factory=list, description="Adapters that it is answering with.")
    waiting: list[str] = Field(default_factory=list, description="Adapters that its requests wait for.")


class Board(Record):
    """What the leader found: each engine by its address, and the adapters loaded, verified and probed there."""

    engines: dict[str, list[str]] = Field(default_factory=dict)
    digests: dict[str, str] = Field(default_factory=dict, description="Of the adapters' files.")
    refused: dict[str, str] = Field(default_factory=dict, description="Adapters that clients name in vain, and why.")
    trouble: dict[str, str] = Field(default_factory=dict, description="Adapters that are not as they should be, why.")


@dataclass(frozen=True)
class Heard:
    token: int | None
    """Of whoever asks, if they lead."""
    told: dict[str, Telling]
    """Of each that is there, whoever asks among them."""
    version: int
    board: Board | None
    """None where it is the version that was known."""
    serving: Serving


async def beat(
    ledger: Ledger, name: str, telling: Telling, patience_s: float, version: int, *, would_lead: bool
) -> Heard:
    """Say that one is there, and hear what is so. Without `would_lead` a lease is given back."""
    patience_ms = int(patience_s * 1000)
    keys = ledger.keys
    token, told, current, board, serving, previous = await ledger.run(
        BEAT,
        [
            keys.gateways,
            keys.gateways_told,
            keys.gateways_lease,
            keys.gateways_tokens,
            keys.gateways_board,
            keys.gateways_board_version,
            keys.serving,
            keys.serving_past,
        ],
        [name, telling.model_dump_json(), patience_ms, int(patience_ms * RENEWED), int(would_lead), version],
    )
    return Heard(
        int(token) or None,
        {who: Telling.model_validate_json(text) for who, text in _pairs(told).items()},
        int(current),
        Board.model_validate_json(board) if board else None,
        adapters.serving_of(ledger, _pairs(serving), previous),
    )


async def publish(ledger: Ledger, token: int, board: Board) -> int:
    """The version it is now. Raises LeadLost."""
    keys = [ledger.keys.gateways_tokens, ledger.keys.gateways_board, ledger.keys.gateways_board_version]
    version = await ledger.run(PUBLISH, keys, [token, board.model_dump_json()])
    if not version:
        raise LeadLost(f"another gateway process leads the swaps of {ledger.model} by now")
    return int(version)


async def leave(ledger: Ledger, name: str) -> None:
    """At once, instead of after the others' patience."""
    await ledger.run(LEAVE, [ledger.keys.gateways, ledger.keys.gateways_told, ledger.keys.gateways_lease], [name])


def _pairs(flat: list[str]) -> Mapping[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
