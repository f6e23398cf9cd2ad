"""Blind comparisons: ask twice, vote without knowing who answered, and be told afterwards."""

import secrets
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from feedback import comparisons, completions, queue, votes
from feedback.connection import Ledger
from feedback.errors import ComparisonUnknown
from feedback.records import Comparison, ComparisonVote, new_id
from serve.auth import Asker, Client, Operator, SeesAll, key_of
from serve.best_of import HEADER, unsupported
from serve.comparison import Comparing, Side, TwoAnswers, hidden
from serve.errors import Refused
from serve.gateway import After, Gateway, Here, Limit, Model, page
from serve.idempotency import OnceOnly
from serve.limits import Allowance, estimated
from serve.protocol import CHAT, ComparisonRequest, DrawRequest, JudgementRequest
from serve.recorder import Asked
from serve.routes.chat import asked_of, documented, expect_servable, read
from serve.routing import Target

router = APIRouter(prefix="/v1/comparisons", tags=["comparisons"])

Json = dict[str, Any]


@router.post("", openapi_extra=documented(ComparisonRequest), response_model=None)
async def ask(request: Request, here: Here, asker: Asker) -> TwoAnswers:
    """One prompt, two answers, sides shuffled. Both are recorded as chat completions are."""
    if HEADER in request.headers:
        raise unsupported("a comparison", "its sides are compared by people; leave it away")
    sent = read(await request.body(), ComparisonRequest, CHAT | {"models"} | set(here.settings.extra_parameters))
    if sent.get("store") is False:
        raise Refused(400, "invalid_value", "store is false; a comparison is voted on, so it is always stored", "store")
    targets = await _targets(here, sent.get("model"), sent.pop("models", None))
    allowance = here.limits.admit(asker, 2 * estimated(sent), requests=2)
    comparison_id = new_id("cmp")
    sides = _sides(here, targets, asker.name, sent, comparison_id, allowance)
    return TwoAnswers(here, Comparing(comparison_id, here.ledgers[targets[0].served_model], sides))


@router.post("/next", response_model=None)
async def ask_next(body: DrawRequest, here: Here, asker: Asker) -> TwoAnswers:
    """The next prompt for this voter, with two answers. A stream begins with the prompt (`comparison.prompt`)."""
    targets = await _targets(here, body.model, body.models)
    ledger = here.ledgers[targets[0].served_model]
    allowance = here.limits.admit(asker, 0, requests=2)  # first: who is refused has not used up a prompt
    prompt = await queue.draw(ledger, body.voter or asker.name)
    if prompt is None:
        raise Refused(
            404,
            "no_prompts",
            "no prompt is left that this voter has not had; the operator adds some with `heed prompts FILE`, or sets "
            "HEED_QUEUE_TRAFFIC",
        )
    given = {"messages": prompt.messages, "tools": prompt.tools, "user": prompt.user, "stream": body.stream}
    sent = {name: value for name, value in given.items() if value is not None}
    comparison_id = new_id("cmp")
    sides = _sides(here, targets, asker.name, sent, comparison_id, allowance)
    if prompt.good is None or prompt.bad is None:
        return TwoAnswers(here, Comparing(comparison_id, ledger, sides, is_queued=True))
    best, worst = _shuffled()
    known = {best: prompt.good, worst: prompt.bad}
    return TwoAnswers(here, Comparing(comparison_id, ledger, sides, known, best, is_queued=True))


@router.post("/{comparison_id}/vote", response_model=None)
async def vote(comparison_id: str, body: JudgementRequest, here: Here, client: Client, once: OnceOnly) -> Response:
    """On disk when it is answered, and answered with who was who. Voting again replaces."""

    async def act() -> Json:
        cast, changed = await here.where_known(
            lambda ledger: votes.judge(
                ledger,
                comparison_id=comparison_id,
                preferred=body.preferred,
                voter=body.voter or client,
                key=key_of(client),
                is_paced=True,
            ),
            ComparisonUnknown,
        )
        if changed:
            here.metrics.votes.labels("comparison").inc()
        shown = cast.model_dump(include={"id", "comparison_id", "preferred", "voter", "created", "updated"})
        return {"object": "comparison_vote", **shown, "changed": changed, **_reveal(cast)}

    return await once(act)


@router.get("")
async def list_comparisons(
    here: Here, _: Operator, model: Model = None, after: After = None, limit: Limit = 20
) -> Json:
    """Newest first, with who was who."""
    found, has_more = await comparisons.page(here.ledger(model), after, limit)
    return page([_told(one) for one in found], has_more)


@router.get("/{comparison_id}")
async def retrieve(comparison_id: str, here: Here, client: Client, sees_all: SeesAll, voter: str | None = None) -> Json:
    """Sides stay hidden until `voter` (default: who asks) has voted; an operator sees everything."""

    async def find(ledger: Ledger) -> Json:
        found = await comparisons.get(ledger, comparison_id)
        answered = await completions.get_many(ledger, [found.a.completion_id, found.b.completion_id])
        own = await votes.get_many(ledger, [ComparisonVote.id_of(found.id, voter or client)])
        shown = hidden(found, answered) | {"messages": found.messages, "voted": None}
        if own and isinstance(own[0], ComparisonVote):
            shown["voted"] = own[0].preferred
        if own or sees_all:
            reveal = _told(found) if sees_all else _reveal(found)
            shown |= {name: shown[name] | who for name, who in reveal.items() if name in ("a", "b")}
            shown = {**reveal, **shown}
        return shown

    return await here.where_known(find, ComparisonUnknown)


async def _targets(here: Gateway, model: str | None, models: list[str] | None) -> list[Target]:
    """Two of one served model. Raises Refused (400, 404)."""
    targets = [await _target(here, name) for name in models or [model or here.settings.models[0]] * 2]
    if targets[0].served_model != targets[1].served_model:
        raise Refused(
            400,
            "models_differ",
            f"models names two served models, {targets[0].served_model!r} and {targets[1].served_model!r}; a vote can "
            "only teach one, so name two adapters of the same",
            "models",
        )
    return targets


async def _target(here: Gateway, name: str) -> Target:
    target = here.routing.resolve(name)
    await expect_servable(here, target)
    return target


def _sides(
    here: Gateway, targets: list[Target], client: str, sent: Json, comparison_id: str, allowance: Allowance
) -> dict[Side, Asked]:
    sides: dict[Side, Asked] = {}
    for nth, (side, target) in enumerate(zip(_shuffled(), targets, strict=True)):
        own = {**sent, "model": target.adapter}
        if sent.get("seed") is not None and targets[0] == targets[1]:
            own["seed"] = sent["seed"] + nth  # the same seed would give the same answer twice
        number = secrets.token_hex(12)
        sides[side] = asked_of(here, "chat.completion", target, number, client, own, comparison_id, allowance)
    return sides


def _shuffled() -> tuple[Side, Side]:
    return ("a", "b") if secrets.randbits(1) else ("b", "a")


def _reveal(about: Comparison | ComparisonVote) -> Json:
    adapters = (about.adapter_a, about.adapter_b) if isinstance(about, Comparison) else (about.model_a, about.model_b)
    return {
        side: {"adapter": adapter, "completion_id": ref.completion_id}
        for side, adapter, ref in zip("ab", adapters, (about.a, about.b), strict=True)
    }


def _told(comparison: Comparison) -> Json:
    """For operators."""
    about = comparison.model_dump(include={"id", "served_model", "messages", "tools", "user", "expected"})
    return {"object": "comparison", "created": int(comparison.created), **about, **_reveal(comparison)}
