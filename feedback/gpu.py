"""One GPU for answers and lessons: what gateways tell of their traffic, and when engines shall sleep.

The gateways and the workshop meet here and nowhere else. A worker that trains listens, and only then gateways tell
what came lately and how long first tokens took. Under `sleep` it wishes for the engines' memory, a gateway grants it,
and takes it back when the wish ends, or at its own deadline. All records end by themselves a few seconds after whoever
wrote them died, but for the grant, which lasts as long as the engines may sleep. Wishes are the first served model's.
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from feedback.connection import Ledger
from feedback.records import Record

Policy = Literal["dedicated", "shared", "idle", "sleep"]

POLICY = (
    "How training shares what answers are computed on (docs/gpu.md). shared: beside the engine, each with its part of "
    "the memory, and it pauses while first tokens are late; idle: also while there is traffic; sleep: the engine gives "
    "its memory up for slices of training; dedicated: nothing is shared. shared is right on a CPU, too."
)
STALL = (
    "Under sleep, how long the engine is away at most, in which the stage of a job that cannot be interrupted has to "
    "end, too. Less than HEED_ENGINE_WAIT_S by the 15 s that falling asleep, waking and the check may take: a request "
    "that comes meanwhile is answered late and not refused."
)
STALL_S = 45.0

LASTS_MS = 5000
"""Of a word that is said again every second."""

WINDOW_S = 15
"""What "lately" is: long enough for a p95 of little traffic, and so long a pause lasts at least."""

FEWEST = 5
"""First tokens within the window from which there is a p95: fewer are bad luck."""

RATIO = 1.1
"""Between the edges of two buckets of first-token times: a p95 is right to five percent."""

SHORTEST_S = 0.001

# A dead process's word is nobody's. KEYS: traffic, whether anybody listens. ARGV: name, text, how long it lasts.
TELL = """
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local told = redis.call('HGETALL', KEYS[1])
for i = 1, #told, 2 do
  if tonumber(string.match(told[i + 1], '^%d+')) <= now then redis.call('HDEL', KEYS[1], told[i]) end
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f ', now + ARGV[3]) .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""

# KEYS and the last ARGV as above.
HEAR = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[2], '1', 'PX', ARGV[1])
local heard = {}
for _, text in ipairs(redis.call('HVALS', KEYS[1])) do
  local until_ms, rest = string.match(text, '^(%d+) (.*)$')
  if tonumber(until_ms) > now then heard[#heard + 1] = rest end
end
return heard
"""

# One at a time. KEYS: wish. ARGV: token, how long it lasts.
WISH = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# KEYS: wish. ARGV: token.
END = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class Traffic(Record):
    """Of one served model within the last WINDOW_S, through one gateway process or all of them."""

    requests: int = 0
    first_tokens: dict[int, int] = Field(
        default_factory=dict, description="How many streams had waited how long for theirs, by bucket."
    )

    @property
    def per_minute(self) -> float:
        return self.requests * 60 / WINDOW_S

    def p95_s(self) -> float | None:
        """Of the time to first token; None where too few streams tell."""
        total = sum(self.first_tokens.values())
        if total < FEWEST:
            return None
        rank = math.ceil(0.95 * total)
        for bucket, count in sorted(self.first_tokens.items()):
            rank -= count
            if rank <= 0:
                return SHORTEST_S * float(RATIO ** (bucket + 0.5))
        raise AssertionError("the ranks are as many as the counts")


class Grant(Record):
    """The engines' answer to a wish: they sleep until the deadline (by the gateway's clock), or will not."""

    token: str
    until: float = 0
    refusal: str | None = None


def bucket_of(seconds: float) -> int:
    return math.floor(math.log(max(seconds, SHORTEST_S) / SHORTEST_S, RATIO))


def together(parts: Iterable[Traffic]) -> Traffic:
    requests, first_tokens = 0, Counter[int]()
    for part in parts:
        requests += part.requests
        first_tokens.update(part.first_tokens)
    return Traffic(requests=requests, first_tokens=dict(first_tokens))


async def tell(ledger: Ledger, process: str, traffic: Traffic) -> bool:
    """Whether anybody listens; if not, nothing is written."""
    keys = [ledger.keys.gpu_traffic, ledger.keys.gpu_listening]
    return bool(await ledger.run(TELL, keys, [process, traffic.model_dump_json(), LASTS_MS]))


async def hear(ledger: Ledger) -> Traffic:
    """Of all processes. None says anything where there is no traffic, or until a second after somebody listens."""
    keys = [ledger.keys.gpu_traffic, ledger.keys.gpu_listening]
    return together(Traffic.model_validate_json(text) for text in await ledger.run(HEAR, keys, [LASTS_MS]))


async def wish(ledger: Ledger, token: str) -> bool:
    """Wish, or go on wishing, that the engines sleep; whether no other wishes that."""
    return bool(await ledger.run(WISH, [ledger.keys.gpu_wish], [token, LASTS_MS]))


async def end(ledger: Ledger, token: str) -> None:
    await ledger.run(END, [ledger.keys.gpu_wish], [token])


async def wished(ledger: Ledger) -> str | None:
    """The token of whoever wishes that the engines sleep."""
    token: str | None = await ledger.reply(ledger.redis.get(ledger.keys.gpu_wish))
    return token


async def grant(ledger: Ledger, granted: Grant, for_s: float) -> None:
    text = granted.model_dump_json()
    await ledger.reply(ledger.redis.set(ledger.keys.gpu_grant, text, px=int(for_s * 1000)))


async def granted(ledger: Ledger) -> Grant | None:
    text = await ledger.reply(ledger.redis.get(ledger.keys.gpu_grant))
    return Grant.model_validate_json(text) if text else None


async def take_back(ledger: Ledger) -> None:
    """The engines are awake, and were looked at."""
    await ledger.reply(ledger.redis.delete(ledger.keys.gpu_grant))
