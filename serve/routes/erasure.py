"""Erasure: what one person gave, taken out on their wish. For operators."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from feedback import erasure
from feedback.connection import Ledger
from feedback.erasure import Erased
from serve.auth import Operator
from serve.gateway import Gateway, Here

router = APIRouter(prefix="/v1", tags=["erasure"])

Json = dict[str, Any]


@router.delete("/voters/{voter:path}")
async def erase_voter(voter: str, here: Here, _: Operator) -> Json:
    """Votes and comments are gone, their pairs dropped; adapters and open jobs that learn from them are listed."""
    return await _everywhere(here, lambda ledger: erasure.of_voter(ledger, voter))


@router.delete("/users/{user:path}")
async def erase_user(user: str, here: Here, _: Operator) -> Json:
    """Completions whose `user` was this one are gone, with their votes and pairs."""
    return await _everywhere(here, lambda ledger: erasure.of_user(ledger, user))


async def _everywhere(here: Gateway, erase: Callable[[Ledger], Awaitable[Erased]]) -> Json:
    """A person is the same one for every served model."""
    erased = Erased()
    for ledger in here.ledgers.values():
        erased += await erase(ledger)
    return {"object": "erasure", **asdict(erased)}
