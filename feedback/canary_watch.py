"""Looking at a canary: count, judge, and act on it where it may act by itself."""

from pydantic import BaseModel

from feedback import canary, canary_counts, canary_verdict
from feedback.canary import Canary
from feedback.canary_counts import Counts
from feedback.canary_verdict import Verdict
from feedback.connection import Ledger


class Standing(BaseModel):
    """A canary with all that is known of it."""

    canary: Canary
    counts: Counts
    verdict: Verdict


async def standing(ledger: Ledger, trial: Canary) -> Standing:
    """As it is now; as it was then for one that has ended."""
    counts = await canary_counts.read(ledger, trial.trial)
    now = trial.ended or ledger.clock()
    return Standing(canary=trial, counts=counts, verdict=canary_verdict.judge(trial, counts, ledger.settings, now))


async def look(ledger: Ledger, known: set[str]) -> str | None:
    """Take in the votes and act on the verdict; what was done, in words. `known` as in canary_counts.look.

    Every gateway may look as often as it likes: one at a time counts, and what is done is done once.
    """
    trial, _ = await canary.tidied(ledger)
    if trial is None or not await canary_counts.look(ledger, trial, known) or not trial.auto or trial.asked:
        return None
    verdict = (await standing(ledger, trial)).verdict
    if verdict.decision == "promote":
        done = await canary.promote(ledger, trial, f"canary: {verdict.reason}")
    elif verdict.decision == "roll_back":
        done = await canary.end(ledger, trial, "retired", f"rolled back: {verdict.reason}")
    elif verdict.decision == "undecided" and ledger.settings.canary_undecided == "stop":
        done = await canary.end(ledger, trial, "candidate", verdict.reason)
    else:
        return None
    return f"{trial.adapter}: {verdict.decision}: {verdict.reason}" if done else None
