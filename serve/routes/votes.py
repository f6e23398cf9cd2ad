"""What people thought of answers: votes, and choices between two answers."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from feedback import comparisons, completions, lineage, votes
from feedback.connection import Ledger
from feedback.errors import CompletionUnknown, VoteUnknown
from feedback.records import AnswerRef, ComparisonVote, Vote
from feedback.votes import Opinion
from serve.auth import Client, SeesAll, Standing, Voting, key_of, reader_of_all
from serve.direct import Direct
from serve.errors import Refused
from serve.gateway import After, Gateway, Here, Limit, Model, page
from serve.idempotency import OnceOnly
from serve.protocol import AnswerId, PreferenceRequest, VoteRequest

router = APIRouter(prefix="/v1", tags=["votes"])

Json = dict[str, Any]


async def vote(body: VoteRequest, here: Here, standing: Voting, once: OnceOnly) -> Response:
    """On disk when it is answered. Voting again replaces; voting the same again changes nothing."""
    voter = standing.voter_of(body.completion_id, body.voter)

    async def act() -> Json:
        cast, changed = await here.where_known(
            lambda ledger: votes.cast(
                ledger,
                completion_id=body.completion_id,
                choice=body.choice,
                rating=body.rating,
                voter=voter,
                reasons=body.reasons,
                comment=body.comment,
                correction=body.correction,
                key=key_of(standing.client),
                is_paced=True,
            ),
            CompletionUnknown,
        )
        if changed:
            here.metrics.votes.labels(cast.rating).inc()
        return {**_shown(cast), "changed": changed}

    return await once(act)


router.add_api_route("/votes", vote, methods=["POST"], route_class_override=Direct)


@router.post("/preferences")
async def prefer(body: PreferenceRequest, here: Here, client: Client, once: OnceOnly) -> Response:
    chosen, rejected = (AnswerRef(**named.model_dump()) for named in (body.chosen, body.rejected))

    async def act() -> Json:
        preference, changed = await here.where_known(
            lambda ledger: votes.prefer(
                ledger,
                chosen=chosen,
                rejected=rejected,
                voter=body.voter or client,
                key=key_of(client),
                is_paced=True,
            ),
            CompletionUnknown,
        )
        if changed:
            here.metrics.votes.labels("preference").inc()
        return {**_shown(preference), "changed": changed}

    return await once(act)


@router.get("/votes")
async def list_votes(
    request: Request,
    here: Here,
    _: Client,
    completion_id: AnswerId | None = None,
    model: Model = None,
    after: After = None,
    limit: Limit = 20,
) -> Json:
    if completion_id is None:
        await reader_of_all(request)
    found, has_more = await votes.page(here.ledger(model), completion_id, after, limit)
    return page([_shown(opinion) for opinion in found], has_more)


@router.get("/votes/{vote_id}")
async def retrieve(vote_id: str, here: Here, standing: Voting) -> Json:
    return _shown(await _found(here, vote_id, standing))


@router.get("/votes/{vote_id}/lineage")
async def trace(vote_id: str, here: Here, _: Client, sees_all: SeesAll) -> Json:
    """What became of it: pairs now, and the jobs and adapters it was trained into, also after it was withdrawn."""

    async def find(ledger: Ledger) -> lineage.Lineage:
        if not sees_all and await _is_of_queue(ledger, vote_id):
            raise Refused(
                403,
                "operator_key_required",
                "this vote is about a prompt of the queue, and what became of it would tell whether the better answer "
                "was known before; it needs the operator's key",
            )
        return await lineage.of(ledger, vote_id)

    found = await here.where_known(find, VoteUnknown)
    return {"object": "vote.lineage", **found.model_dump()}


@router.delete("/votes/{vote_id}")
async def withdraw(vote_id: str, here: Here, standing: Voting) -> Json:
    """Takes it out of every future dataset."""
    if standing.completion_id is not None:
        await _found(here, vote_id, standing)
    await here.where_known(lambda ledger: votes.withdraw(ledger, vote_id), VoteUnknown)
    return {"id": vote_id, "object": "vote.deleted", "deleted": True}


async def _found(here: Gateway, vote_id: str, standing: Standing) -> Opinion:
    """For a vote token only its own voter's vote on its own answer. Raises VoteUnknown."""
    found = await here.where_known(lambda ledger: votes.get(ledger, vote_id), VoteUnknown)
    if standing.completion_id is not None:
        is_own = isinstance(found, Vote) and (found.completion_id, found.voter) == (
            standing.completion_id,
            standing.voter,
        )
        if not is_own:
            raise VoteUnknown(f"no vote has the id {vote_id!r}, or the vote token is not for it")
    return found


async def _is_of_queue(ledger: Ledger, vote_id: str) -> bool:
    """Also a thumb on a side of one, for a voter is told which completions these are."""
    about = [ref.completion_id for vote in await votes.get_many(ledger, [vote_id]) for ref in votes.refs(vote)]
    asked = (await completions.get_many(ledger, about)).values()
    shown = await comparisons.get_many(ledger, [one.comparison for one in asked if one.comparison])
    return any(comparison.is_queued for comparison in shown)


def _shown(opinion: Opinion) -> Json:
    if isinstance(opinion, ComparisonVote):  # who was who is told by the comparison, to those who voted on it
        hidden = {"v", "prompt_hash", "key", "a", "b", "model_a", "model_b"}
        return {"object": "comparison_vote", **opinion.model_dump(exclude=hidden), "changed": False}
    kind = "vote" if isinstance(opinion, Vote) else "preference"
    return {"object": kind, **opinion.model_dump(exclude={"v", "prompt_hash", "key"}), "changed": False}
