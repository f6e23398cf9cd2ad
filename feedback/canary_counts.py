"""What is counted of a canary: answers and votes, on its side and on that of what is live.

The unit is what was put on a side by the hash: a user, or a conversation. Each counts once for the test, by its first
answer and by its first vote, for a unit's answers are alike and a hundred of them are not a hundred; all answers are
counted beside that, for the eye. Of a named voter not more than HEED_CANARY_VOTES_PER_VOTER votes count on a side, and
of those whose votes are not heard none. A vote counts as it stands when it is first seen: what was looked at is not
changed afterwards, or no sequential test would hold.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from feedback.canary import ARMS, Arm, Canary, Mark
from feedback.confidence import Sample
from feedback.connection import Ledger

Outcome = Literal["answered", "failed"]

BATCH = 200
"""Votes counted in one script; nobody else is served by Redis meanwhile."""

LATE_S = 10
"""A vote has the time of the gateway that took it, and may be in the ledger later than one with a later time: by a
trip of the longest patience (HEED_LEDGER_TIMEOUT_S), and by what clocks differ."""

MOST_UNITS = 100_000
"""Units remembered in one trial, some 10 MB; a question that is open after so many is answered by neither."""

# KEYS: canary, counts, seen. ARGV: trial, most units, then for each answer side, unit, outcome, refused (0, 1), length.
ANSWERS = """
if redis.call('HGET', KEYS[1], 'trial') ~= ARGV[1] then return 0 end
local function add(arm, what) redis.call('HINCRBY', KEYS[2], arm .. ' ' .. what, 1) end
local is_full = redis.call('SCARD', KEYS[3]) >= tonumber(ARGV[2])
for i = 3, #ARGV, 5 do
  local arm, outcome = ARGV[i], ARGV[i + 2]
  add(arm, 'all ' .. outcome)
  if not is_full and redis.call('SADD', KEYS[3], 'answer ' .. arm .. ' ' .. ARGV[i + 1]) == 1 then
    add(arm, outcome)
    if outcome == 'answered' then
      if ARGV[i + 3] == '1' then add(arm, 'refused') end
      redis.call('HINCRBYFLOAT', KEYS[2], arm .. ' length', ARGV[i + 4])
    end
  end
end
return 1
"""

# What it needs of each vote is in three places, and reading them from here took 120 us a vote, all of it this side's.
# KEYS: canary, counts, seen, voters, states of voters. ARGV: trial, votes that count of a voter, time up to which was
# read, what stands before the id in the names of votes and of completions (the tag puts those on the same node), then
# the ids of votes. A completion in the form of the version before is no hash, and of before this trial.
VOTES = """
if redis.call('HGET', KEYS[1], 'trial') ~= ARGV[1] then return 0 end
for i = 6, #ARGV do
  local text = redis.call('GET', ARGV[4] .. ARGV[i])
  local vote = text and cjson.decode(text)
  local head = vote and redis.pcall('HMGET', ARGV[5] .. vote.completion_id, 'trial', 'client')
  local mark = head and not head.err and head[1] or ''
  local trial, arm, unit = string.match(mark, '^(%S+) (%S+) (%S+)$')
  if trial == ARGV[1] then
    local state = redis.call('HGET', KEYS[5], vote.voter)
    -- A key that votes without a voter's name votes for whoever is behind it.
    local voter = vote.voter ~= head[2] and arm .. ' ' .. redis.sha1hex(vote.voter)
    local has_room = not voter or tonumber(redis.call('HGET', KEYS[4], voter) or '0') < tonumber(ARGV[2])
    local is_heard = state ~= 'quarantined' and state ~= 'banned'
    if is_heard and has_room and redis.call('SADD', KEYS[3], 'vote ' .. arm .. ' ' .. unit) == 1 then
      redis.call('HINCRBY', KEYS[2], arm .. ' ' .. vote.rating, 1)
      if voter then redis.call('HINCRBY', KEYS[4], voter, 1) end
    end
  end
end
redis.call('HSET', KEYS[2], 'read', ARGV[3])
return 1
"""


class Seen(NamedTuple):
    """One answer of a trial."""

    mark: Mark
    outcome: Outcome
    is_refusal: bool = False
    tokens: int = 0


@dataclass(frozen=True)
class Side:
    """Units by what came of them; `all_` are answers."""

    answered: int = 0
    failed: int = 0
    refused: int = 0
    length: float = 0.0
    up: int = 0
    down: int = 0
    all_answered: int = 0
    all_failed: int = 0

    @property
    def units(self) -> int:
        return self.answered + self.failed

    @property
    def votes(self) -> Sample:
        return Sample(self.up + self.down, self.up)

    @property
    def errors(self) -> Sample:
        return Sample(self.units, self.failed)

    @property
    def refusals(self) -> Sample:
        return Sample(self.answered, self.refused)

    @property
    def lengths(self) -> Sample:
        """In shares of HEED_CANARY_LENGTH_TOKENS."""
        return Sample(self.answered, min(self.length, self.answered))


@dataclass(frozen=True)
class Counts:
    control: Side = field(default_factory=Side)
    canary: Side = field(default_factory=Side)


async def read(ledger: Ledger, trial: str) -> Counts:
    found = await ledger.reply(ledger.redis.hgetall(ledger.keys.canary_counts(trial)))
    control, canary = (_side(found, arm) for arm in ARMS)
    return Counts(control, canary)


async def miscounted(ledger: Ledger, trial: str) -> str | None:
    """What is wrong, where the sums are not those of the units that were seen; looked at in one step."""
    pipe = ledger.redis.pipeline(transaction=True)
    pipe.hget(ledger.keys.canary, "trial")
    pipe.hgetall(ledger.keys.canary_counts(trial))
    pipe.smembers(ledger.keys.canary_seen(trial))
    running, found, seen = await ledger.reply(pipe.execute())
    sides = [_side(found, arm) for arm in ARMS]
    counted = sum(side.units for side in sides), sum(side.votes.n for side in sides)
    kinds = Counter(unit.split(" ")[0] for unit in seen)
    if running != trial or counted == (kinds["answer"], kinds["vote"]):
        return None
    return (
        f"{trial} has counted {counted[0]} units by their answers and {counted[1]} by their votes, and has seen "
        f"{kinds['answer']} and {kinds['vote']}"
    )


async def add(ledger: Ledger, trial: str, answers: Iterable[Seen]) -> None:
    """Those of a trial that has ended are dropped."""
    args: list[str | int | float] = [trial, MOST_UNITS]
    longest = ledger.settings.canary_length_tokens
    for one in answers:
        length = min(one.tokens, longest) / longest
        args += [one.mark.arm, one.mark.unit, one.outcome, int(one.is_refusal), repr(length)]
    await ledger.run(ANSWERS, _keys(ledger, trial), args)


async def look(ledger: Ledger, canary: Canary, known: set[str]) -> bool:
    """Count the votes that came in, if no other gateway has just done so; whether this call did."""
    ms = max(1, int(ledger.settings.canary_look_s * 1000))
    mine = await ledger.reply(ledger.redis.set(ledger.keys.canary_looking, canary.trial, nx=True, px=ms))
    if mine:
        await count_votes(ledger, canary, known)
    return bool(mine)


async def count_votes(ledger: Ledger, canary: Canary, known: set[str]) -> None:
    """`known` are votes that this caller has had counted and need not send again; it is kept for the next call."""
    keys, found = ledger.keys, set[str]()
    read_to = await ledger.reply(ledger.redis.hget(keys.canary_counts(canary.trial), "read"))
    at, place = max(canary.since, float(read_to or 0) - LATE_S), 0
    own = [*_keys(ledger, canary.trial), keys.canary_voters(canary.trial), keys.voter_states]
    while True:
        page = ledger.redis.zrangebyscore(keys.votes, at, "+inf", start=place, num=BATCH, withscores=True)
        some = await ledger.reply(page)
        thumbs = [i for i, _ in some if i.startswith("vote-")]
        new = [i for i in thumbs if i not in known]
        found.update(thumbs)
        if new:
            args: list[str | int] = [canary.trial, ledger.settings.canary_votes_per_voter, repr(some[-1][1])]
            await ledger.run(VOTES, own, [*args, keys.vote(""), keys.completion(""), *new])
        if len(some) < BATCH:
            break
        place += BATCH
    known.clear()
    known.update(found)


def _side(found: dict[str, str], arm: Arm) -> Side:
    def count(what: str) -> int:
        return int(found.get(f"{arm} {what}", 0))

    return Side(
        answered=count("answered"),
        failed=count("failed"),
        refused=count("refused"),
        length=float(found.get(f"{arm} length", 0)),
        up=count("up"),
        down=count("down"),
        all_answered=count("all answered"),
        all_failed=count("all failed"),
    )


def _keys(ledger: Ledger, trial: str) -> list[str]:
    return [ledger.keys.canary, ledger.keys.canary_counts(trial), ledger.keys.canary_seen(trial)]
