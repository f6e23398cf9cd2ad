"""Voters: who may vote, how fast, and whose votes are heard.

A voter is active until the score says outlier (feedback/scores.py) or an operator says otherwise. The votes of who is
quarantined or banned are kept and train nothing; a release stands against the score; a ban also refuses further votes.
Each change marks the voter's prompts as unsettled, so their pairs go and come back.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NoReturn

from feedback import scores
from feedback.connection import Ledger
from feedback.errors import VoterBanned, VoterUnknown, VotesTooFast
from feedback.records import VoterChange, VoterState
from feedback.scores import Crowd, Score, Verdict

MINUTE_MS = 60_000

SILENT: tuple[VoterState, ...] = ("quarantined", "banned")

# A function for scripts that take votes, so that being admitted costs no call of its own: a leaky bucket of one minute
# (the generic cell rate algorithm, ITU-T I.371). Each vote fills the buckets of its voter and of its key by a part; one
# that would overflow either is refused with the wait in ms; half a part is left to rounding. A part of 0 is no limit.
# Returns the refusal, or nil and a function that fills both: the caller writes first what Redis is to have memory for.
ADMIT = """
local function admit(states, voter, now, voter_pace, voter_part, key_pace, key_part)
  if redis.call('HGET', states, voter) == 'banned' then return 'banned' end
  now, voter_part, key_part = tonumber(now), tonumber(voter_part), tonumber(key_part)
  local function filled(pace, part)
    return part > 0 and math.max(tonumber(redis.call('GET', pace) or '0'), now) + part or now
  end
  local function over(at, part)
    local wait = at - now - 60000
    return wait > part / 2 and wait or 0
  end
  local function keep(pace, part, at)
    if part > 0 then redis.call('SET', pace, string.format('%.3f', at), 'PX', math.ceil(at - now)) end
  end
  local voter_at, key_at = filled(voter_pace, voter_part), filled(key_pace, key_part)
  local wait = math.max(over(voter_at, voter_part), over(key_at, key_part))
  if wait > 0 then return 'wait ' .. math.ceil(wait) end
  return nil, function()
    keep(voter_pace, voter_part, voter_at)
    keep(key_pace, key_part, key_at)
  end
end
"""

# KEYS: states, the voter's history, the voter's prompts, unsettled. ARGV: voter, state, entry, and the state it must
# have for it, or ''. A prompt being settled now is marked too, so what was derived with the voter's old state is not
# kept (see pairs.SETTLE). No prompt is missed: a vote marks its own.
ENTER = """
local state = redis.call('HGET', KEYS[1], ARGV[1]) or 'active'
if state == ARGV[2] or (ARGV[4] ~= '' and state ~= ARGV[4]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('RPUSH', KEYS[2], ARGV[3])
for _, prompt in ipairs(redis.call('SMEMBERS', KEYS[3])) do redis.call('HINCRBY', KEYS[4], prompt, 1) end
return 1
"""


# What is known of a voter who is erased, unless a vote came in meanwhile. A ban stays: being erased is no way out of
# it. The score went with the votes. KEYS: the voter's opinions, prompts, history, pace, drawn; states. ARGV: voter.
FORGET = """
if redis.call('SCARD', KEYS[1]) > 0 then return 0 end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
if redis.call('HGET', KEYS[6], ARGV[1]) ~= 'banned' then redis.call('HDEL', KEYS[6], ARGV[1]) end
return 1
"""


@dataclass(frozen=True)
class Voter:
    name: str
    state: VoterState
    score: Score
    verdict: Verdict


def admission(ledger: Ledger, voter: str, key: str | None, *, is_paced: bool) -> tuple[list[str], list[str | float]]:
    """Keys and arguments of `admit` in its order, but for the names of keys: states, voter's pace, key's pace."""
    settings = ledger.settings
    pace = (settings.voter_votes_per_minute, settings.key_votes_per_minute if key else 0) if is_paced else (0, 0)
    keys = [ledger.keys.voter_states, ledger.keys.voter_pace(voter), ledger.keys.key_pace(key or "")]
    return keys, [voter, ledger.clock() * 1000, *(MINUTE_MS / votes if votes else 0 for votes in pace)]


def refuse(outcome: str) -> NoReturn:
    """Raises what `admit` answered: VoterBanned, VotesTooFast."""
    if outcome == "banned":
        raise VoterBanned(
            "an operator has banned this voter and the vote was not taken; ask the operator for a release"
        )
    wait_s = int(outcome.removeprefix("wait ")) / 1000
    raise VotesTooFast(f"more votes came in a minute than are taken; send this one again in {wait_s:.1f} s", wait_s)


async def silenced(ledger: Ledger, among: Iterable[str]) -> frozenset[str]:
    """Those whose votes are not trained on."""
    names = list(among)
    states = await ledger.reply(ledger.redis.hmget(ledger.keys.voter_states, names)) if names else []
    return frozenset(name for name, state in zip(names, states, strict=True) if state in SILENT)


async def page(
    ledger: Ledger, state: VoterState | None = None, after: str | None = None, limit: int = 20
) -> tuple[list[Voter], bool]:
    """In order of name, and whether more follow."""
    everybody = await _everybody(ledger)
    found = [
        voter
        for name, voter in sorted(everybody.items())
        if (after is None or name > after) and state in (None, voter.state)
    ]
    return found[:limit], len(found) > limit


async def get(ledger: Ledger, voter: str) -> Voter:
    """Raises VoterUnknown."""
    found = (await _everybody(ledger)).get(voter)
    if found is None:
        await _expect_known(ledger, voter)
        return Voter(voter, "active", Score(), scores.judge(Score(), Crowd(0.5, None), 0))
    return found


async def history(ledger: Ledger, voter: str) -> list[VoterChange]:
    """Oldest first."""
    told = await ledger.reply(ledger.redis.lrange(ledger.keys.voter_history(voter), 0, -1))
    return [VoterChange.model_validate_json(entry) for entry in told]


async def enter(ledger: Ledger, voter: str, state: VoterState, reason: str) -> None:
    """An operator's word; saying it twice changes nothing. Raises VoterUnknown."""
    await _expect_known(ledger, voter)
    await _enter(ledger, voter, state, "operator", reason)


async def quarantine_worst(ledger: Ledger) -> str | None:
    """Quarantine the active voter who is surest to be an outlier; returns who, or None when there is none.

    Settle and ask again: without that voter's votes others may look different.
    """
    everybody = await _everybody(ledger)
    name = scores.worst({name: voter.verdict for name, voter in everybody.items() if voter.state == "active"})
    if name is None:
        return None
    score, verdict = everybody[name].score, everybody[name].verdict
    assert verdict.asked is not None, "an outlier was measured against something"
    reason = (
        f"agreed with others in {score.agreed} of {score.measured} ballots; an attentive voter does in at least "
        f"{verdict.asked:.0%}, and so rarely with a chance of {verdict.chance:.1g}"
    )
    await _enter(ledger, name, "quarantined", "score", reason)
    return name


async def count(ledger: Ledger) -> dict[VoterState, int]:
    pipe = ledger.redis.pipeline(transaction=False)
    pipe.hkeys(ledger.keys.voter_scores)
    pipe.hgetall(ledger.keys.voter_states)
    names, states = await ledger.reply(pipe.execute())
    found: dict[VoterState, int] = {"active": 0, "quarantined": 0, "released": 0, "banned": 0}
    for name in {*names, *states}:
        found[states.get(name, "active")] += 1
    return found


async def forget(ledger: Ledger, voter: str) -> None:
    """For erasure, after the voter's opinions were withdrawn and their prompts settled."""
    keys = ledger.keys
    own = [keys.voter_opinions(voter), keys.voter_prompts(voter), keys.voter_history(voter), keys.voter_pace(voter)]
    await ledger.keep(FORGET, [*own, keys.voter_drawn(voter), keys.voter_states], [voter])


async def _everybody(ledger: Ledger) -> dict[str, Voter]:
    pipe = ledger.redis.pipeline(transaction=False)
    pipe.hgetall(ledger.keys.voter_scores)
    pipe.hgetall(ledger.keys.voter_states)
    pipe.hmget(ledger.keys.report, "liked", "disliked")
    kept, states, (liked, disliked) = await ledger.reply(pipe.execute())
    found = {name: Score(*json.loads(counts)) for name, counts in kept.items()}
    crowd = scores.crowd(
        (score for name, score in found.items() if states.get(name) not in SILENT), int(liked or 0), int(disliked or 0)
    )
    level = ledger.settings.outlier_level
    return {
        name: Voter(name, states.get(name, "active"), score, scores.judge(score, crowd, level))
        for name in {*found, *states}
        for score in [found.get(name, Score())]
    }


async def _enter(ledger: Ledger, voter: str, state: VoterState, by: Literal["score", "operator"], reason: str) -> None:
    entry = VoterChange(state=state, at=ledger.clock(), by=by, reason=reason).model_dump_json()
    keys = [
        ledger.keys.voter_states,
        ledger.keys.voter_history(voter),
        ledger.keys.voter_prompts(voter),
        ledger.keys.unsettled,
    ]
    await ledger.run(ENTER, keys, [voter, state, entry, "active" if by == "score" else ""])


async def _expect_known(ledger: Ledger, voter: str) -> None:
    """Raises VoterUnknown."""
    pipe = ledger.redis.pipeline(transaction=False)
    pipe.exists(ledger.keys.voter_prompts(voter))
    pipe.hexists(ledger.keys.voter_states, voter)
    if not any(await ledger.reply(pipe.execute())):
        raise VoterUnknown("nobody of this name has voted; see /v1/voters for those who have")
