"""The report's counters: sums over prompts, kept as prompts are settled.

What a prompt adds to each counter is a function of its opinions, and is kept beside it; settling it again replaces
that, in the same step that replaces its pairs. So the counters are always the sum over the prompts' parts, and
counting everything afresh (`recount`, `heed check`) gives the same numbers.

Counters, besides those of voters:
    votes NAME, ups NAME        thumbs on answers of an adapter
    picked NAME, picked_ups NAME    thumbs on answers that a reward model picked among several of it: another policy
    beat WINNER LOSER           choices between answers of two adapters
    tied ONE OTHER              ties of comparisons, names in order; a refusal of both is one too
    side a, side b              sides taken in comparisons
    neither tie, neither both_bad
    met, agreed                 pairs of voters who answered one question, and of these who answered alike
    liked, disliked             answers decided by the votes (feedback/ballots.py)
    longer, shorter             pairs of given answers by which one was chosen
    answered DAY                answers of a day (days since 1970) that were voted on
    unheard                     opinions of quarantined and banned voters, which count nowhere else
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb

from feedback import ballots, scores, votes
from feedback.ballots import DECISIVE, Ballot, Opinion
from feedback.connection import Ledger
from feedback.records import (
    IMPORTED,
    Comparison,
    ComparisonVote,
    Completion,
    Message,
    Pair,
    Preference,
    Vote,
    canonical,
)
from feedback.scores import Score

DAY_S = 86_400


@dataclass(frozen=True)
class Part:
    """What one prompt adds: to the counters by name, to the scores by voter."""

    counts: dict[str, int]
    scores: dict[str, list[int]]

    @property
    def text(self) -> str:
        return canonical({"counts": self.counts, "scores": self.scores})


NOTHING = Part({}, {}).text

# A function for the script that settles a prompt: its new part replaces the old one in the sums.
REPLACE = (
    f"local NOTHING = '{NOTHING}'"
    + """
local function replace(part, counters, voters, text)
  local old = redis.call('GET', part) or NOTHING
  local function add(sign, one)
    for name, by in pairs(one.counts) do
      if redis.call('HINCRBY', counters, name, sign * by) == 0 then redis.call('HDEL', counters, name) end
    end
    for voter, by in pairs(one.scores) do
      local sums, is_zero = cjson.decode(redis.call('HGET', voters, voter) or '[]'), true
      for i, n in ipairs(by) do
        sums[i] = (sums[i] or 0) + sign * n -- a score of before may count less
        is_zero = is_zero and sums[i] == 0
      end
      if is_zero then redis.call('HDEL', voters, voter) else redis.call('HSET', voters, voter, cjson.encode(sums)) end
    end
  end
  if old == text then return end
  add(1, cjson.decode(text))
  add(-1, cjson.decode(old))
  if text == NOTHING then redis.call('DEL', part) else redis.call('SET', part, text) end
end
"""
)


def part(
    opinions: Sequence[Opinion],
    asked: Mapping[str, Completion],
    pairs: Iterable[Pair],
    silenced: Iterable[str] = (),
    comparisons: Mapping[str, Comparison] | None = None,
) -> Part:
    """What the opinions of one prompt, and the pairs derived from them, add to the report."""
    unheard = frozenset(silenced)
    heard = [opinion for opinion in opinions if opinion.voter not in unheard]
    sides = ballots.cast(opinions, comparisons or {})
    counts = Counter[str](unheard=len(opinions) - len(heard))
    for opinion in heard:
        if not is_honeypot(opinion, asked, comparisons or {}):
            counts.update(_names(opinion, asked))
    counts.update(_questions([ballot for ballot in sides if ballot.voter not in unheard]))
    counts.update(_lengths(pairs))
    counts.update(
        f"answered {int(asked[i].created // DAY_S)}"
        for i in {ref.completion_id for opinion in heard for ref in votes.refs(opinion)}
        if i in asked
    )
    given = Counter(opinion.voter for opinion in opinions if not opinion.voter.startswith(IMPORTED))
    measured = scores.of((t for t in ballots.trials(sides, unheard) if t.ballot.voter in given), given)
    return Part(
        {name: n for name, n in counts.items() if n}, {voter: score.counts for voter, score in measured.items()}
    )


async def counters(ledger: Ledger) -> dict[str, int]:
    counts = await ledger.reply(ledger.redis.hgetall(ledger.keys.report))
    return {name: int(n) for name, n in counts.items()}


async def kept(ledger: Ledger) -> Part:
    """The sums as they stand."""
    by_voter = await ledger.reply(ledger.redis.hgetall(ledger.keys.voter_scores))
    return Part(await counters(ledger), {voter: json.loads(given) for voter, given in by_voter.items()})


def total(parts: Iterable[Part]) -> Part:
    """What the counters must be: the full recount that `heed check` compares them with."""
    counts: Counter[str] = Counter()
    by_voter: dict[str, list[int]] = defaultdict(lambda: Score().counts)
    for one in parts:
        counts.update(one.counts)
        for voter, given in one.scores.items():
            by_voter[voter] = [sum(both) for both in zip(by_voter[voter], given, strict=True)]
    return Part(dict(counts), dict(by_voter))


def _names(opinion: Opinion, asked: Mapping[str, Completion]) -> list[str]:
    """The counters that an opinion moves by one."""
    if isinstance(opinion, Vote):
        answered = asked.get(opinion.completion_id)
        of, ups = ("picked", "picked_ups") if answered and _is_picked(answered) else ("votes", "ups")
        return [f"{of} {opinion.model}"] + [f"{ups} {opinion.model}"] * (opinion.rating == "up")
    if isinstance(opinion, Preference):
        both = [asked.get(ref.completion_id) for ref in (opinion.chosen, opinion.rejected)]
        winner, loser = both
        if not winner or not loser or _is_picked(winner) or _is_picked(loser):
            return []
        return [_beat(winner.adapter, loser.adapter)]
    models = opinion.model_a, opinion.model_b
    if opinion.preferred in ("tie", "both_bad"):
        return [f"neither {opinion.preferred}", "tied " + " ".join(sorted(models))]
    winner_model, loser_model = models if opinion.preferred == "a" else models[::-1]
    return [f"side {opinion.preferred}", _beat(winner_model, loser_model)]


def _is_picked(answered: Completion) -> bool:
    return answered.best_of is not None and answered.best_of.compared > 1


def is_honeypot(opinion: Opinion, asked: Mapping[str, Completion], comparisons: Mapping[str, Comparison]) -> bool:
    """Whether it is about answers that an operator wrote: then it says nothing of adapters, and teaches nothing."""
    shown = comparisons.get(opinion.comparison_id) if isinstance(opinion, ComparisonVote) else None
    about = [asked[ref.completion_id] for ref in votes.refs(opinion) if ref.completion_id in asked]
    return (shown is not None and shown.expected is not None) or any(one.is_honeypot for one in about)


def _beat(winner: str, loser: str) -> str:
    return f"beat {winner} {loser}"


def _questions(heard: Sequence[Ballot]) -> Counter[str]:
    counts: Counter[str] = Counter()
    questions: dict[str, list[Ballot]] = defaultdict(list)
    for ballot in heard:
        questions[ballot.question].append(ballot)
    for answers in questions.values():
        ahead, n = ballots.net(answers), len(answers)
        counts["met"] += comb(n, 2)
        counts["agreed"] += comb((n + ahead) // 2, 2) + comb((n - ahead) // 2, 2)
        if answers[0].kind == "thumb" and abs(ahead) >= DECISIVE:
            counts["liked" if ahead > 0 else "disliked"] += 1
    return counts


def _lengths(pairs: Iterable[Pair]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for pair in pairs:
        longer = _length(pair.chosen) - _length(pair.rejected)
        if longer and pair.source != "correction":  # what a person wrote says nothing of answers
            counts["longer" if longer > 0 else "shorter"] += 1
    return counts


def _length(message: Message) -> int:
    content = message.get("content")
    return len(content) if isinstance(content, str) else 0
