"""Who votes, and whose votes are heard. For operators."""

from typing import Any

from fastapi import APIRouter

from feedback import voters
from feedback.connection import Ledger
from feedback.records import VoterState
from feedback.voters import Voter
from serve.auth import Operator
from serve.gateway import After, Here, Limit, Model, page
from serve.protocol import VoterRequest

router = APIRouter(prefix="/v1/voters", tags=["voters"])

Json = dict[str, Any]


@router.get("")
async def list_voters(
    here: Here,
    _: Operator,
    state: VoterState | None = None,
    model: Model = None,
    after: After = None,
    limit: Limit = 20,
) -> Json:
    """In order of name."""
    found, has_more = await voters.page(here.ledger(model), state, after, limit)
    return page([_shown(voter) for voter in found], has_more)


@router.get("/{voter:path}")
async def retrieve(voter: str, here: Here, _: Operator, model: Model = None) -> Json:
    return await _whole(here.ledger(model), voter)


@router.post("/{voter:path}/quarantine")
async def quarantine(voter: str, body: VoterRequest, here: Here, _: Operator) -> Json:
    """Their votes are kept and train nothing."""
    return await _entered(here.ledger(body.model), voter, "quarantined", body.reason)


@router.post("/{voter:path}/release")
async def release(voter: str, body: VoterRequest, here: Here, _: Operator) -> Json:
    """Their votes are heard again, whatever their score says."""
    return await _entered(here.ledger(body.model), voter, "released", body.reason)


@router.post("/{voter:path}/ban")
async def ban(voter: str, body: VoterRequest, here: Here, _: Operator) -> Json:
    """Their votes train nothing and no more are taken."""
    return await _entered(here.ledger(body.model), voter, "banned", body.reason)


async def _entered(ledger: Ledger, voter: str, state: VoterState, reason: str) -> Json:
    await voters.enter(ledger, voter, state, reason)
    return await _whole(ledger, voter)


async def _whole(ledger: Ledger, voter: str) -> Json:
    history = [change.model_dump(exclude={"v"}) for change in await voters.history(ledger, voter)]
    return {**_shown(await voters.get(ledger, voter)), "history": history}


def _shown(voter: Voter) -> Json:
    score, verdict = voter.score, voter.verdict
    return {
        "id": voter.name,
        "object": "voter",
        "state": voter.state,
        "votes": score.votes,
        "measured": score.measured,
        "agreed": score.agreed,
        "honeypots": {"answered": score.known, "missed": score.missed},
        "agreement": verdict.agreement,
        "kappa": verdict.kappa,
        "asked": verdict.asked,
        "chance": verdict.chance,
        "is_outlier": verdict.is_outlier,
    }
