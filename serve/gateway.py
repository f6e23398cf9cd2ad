"""What the routes work with, made once by app.py."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, Query, Request

from feedback.connection import Ledger
from feedback.errors import FeedbackError
from serve.accord import Accord
from serve.canary import Canaries
from serve.errors import model_not_found
from serve.hotswap import HotSwap
from serve.limits import Limits
from serve.metrics import Metrics
from serve.pace import Pace
from serve.routing import Routing
from serve.scorer import Scorer
from serve.settings import GatewaySettings
from serve.siblings import Siblings
from serve.tracing import Tracing
from serve.traffic import Traffic
from serve.vote_tokens import VoteTokens

T = TypeVar("T")


@dataclass(frozen=True)
class Gateway:
    settings: GatewaySettings
    ledgers: dict[str, Ledger]
    routing: Routing
    hotswap: HotSwap
    metrics: Metrics
    canaries: Canaries
    limits: Limits
    tokens: VoteTokens
    accord: Accord
    traffic: Traffic
    tracing: Tracing = field(default_factory=Tracing)
    template: str | None = None
    scorer: Scorer | None = None
    pace: Pace = field(default_factory=Pace)
    siblings: Siblings | None = None
    """Where this process is one of several on its port."""

    def ledger(self, model: str | None = None) -> Ledger:
        """Of a served model; without a name, of the default one. Raises Refused (404)."""
        name = model or self.settings.models[0]
        if name not in self.ledgers:
            raise model_not_found(name)
        return self.ledgers[name]

    async def where_known(self, act: Callable[[Ledger], Awaitable[T]], unknown: type[FeedbackError]) -> T:
        """Do something with a record whose id does not tell its served model: the first ledger that knows it does."""
        *some, last = self.ledgers.values()
        for ledger in some:
            try:
                return await act(ledger)
            except unknown:
                continue
        return await act(last)


async def _gateway(request: Request) -> Gateway:  # async, or FastAPI would ask a thread for it
    gateway: Gateway = request.app.state.gateway
    return gateway


Here = Annotated[Gateway, Depends(_gateway)]
After = Annotated[str | None, Query(description="Last id of the page before.")]
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]
Model = Annotated[str | None, Query(description="Served model; default: the first one.")]


def page(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """OpenAI's list."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}


def page_within(data: list[dict[str, Any]], after: str | None, limit: int, order: Order) -> dict[str, Any]:
    """One page of a list that is all here, oldest first."""
    ordered = data if order == "asc" else data[::-1]
    ids = [entry["id"] for entry in ordered]
    start = ids.index(after) + 1 if after in ids else 0
    return page(ordered[start : start + limit], len(ordered) > start + limit)
