"""What tests of the archive look at."""

from typing import Literal

from feedback import completions, partitions, votes
from feedback.check import violations
from feedback.connection import Ledger
from feedback.records import Completion
from tests.answers import answered

MONTH_S = 31 * completions.DAY_S


async def old(ledger: Ledger, prompt: str, *answers: str, user: str | None = None) -> list[Completion]:
    """Completions with a vote each; then the ledger's clock goes forward by a month."""
    made = [await answered(ledger, prompt, answer, user) for answer in answers]
    rating: Literal["up"] = "up"
    for one in made:
        await votes.cast(ledger, completion_id=one.id, rating=rating, voter="ann")
    now = ledger.clock()
    ledger.clock = lambda: now + MONTH_S
    return made


async def clean(ledger: Ledger) -> bool:
    assert [sentence async for sentence in violations(ledger)] == []
    return True


def archived(ledger: Ledger) -> list[str]:
    """Ids in the files of the archive, as often as they are there."""
    shelf = partitions.at(ledger)
    return sorted(completion_id for name in shelf.names() for completion_id in shelf.ids(name))


def texts(ledger: Ledger) -> str:
    """All that the archive holds."""
    shelf = partitions.at(ledger)
    return "\n".join(text for name in shelf.names() for text in shelf.read(name, range(len(shelf.ids(name)))))


async def is_stub(ledger: Ledger, completion_id: str) -> bool:
    key = ledger.keys.completion(completion_id)
    return bool(await ledger.redis.hexists(key, "archived")) and not await ledger.redis.hexists(key, "body")
