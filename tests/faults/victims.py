"""Victims, as data: which part is hurt, and by what one sees that it does its work again."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.faults.harms import Harmed
from tests.faults.spread import TRAINERS, SpreadHouse


@dataclass(frozen=True)
class Victim:
    name: str
    sign: str
    """In words, beside what is asked of every victim: a vote is acknowledged and a question answered."""
    is_at_work: Callable[[SpreadHouse, Harmed, str], Awaitable[bool]]
    """Whether it has shown the sign since; of the job under way the id is told."""
    part: Callable[[SpreadHouse, str], str]


def victim(name: str, sign: str, is_at_work: Callable[[SpreadHouse, Harmed, str], Awaitable[bool]]) -> Victim:
    return Victim(name, sign, is_at_work, lambda _house, _job_id: name)


def at_work_on(house: SpreadHouse, job_id: str) -> str:
    """The worker that took the job up last."""
    return max(TRAINERS, key=lambda name: house.log(name).rfind(f"{job_id}: A worker took the job up".encode()))


async def _answers(_house: SpreadHouse, _harmed: Harmed, _job_id: str) -> bool:
    return True


async def _has_moved_something(house: SpreadHouse, harmed: Harmed, _job_id: str) -> bool:
    return b"moved to the archive" in house.log("archiver")[harmed.logged["archiver"] :]


async def _has_ticked(house: SpreadHouse, harmed: Harmed, _job_id: str) -> bool:
    return b"Sending due task" in house.log("beat")[harmed.logged["beat"] :]


async def _takes_traffic(house: SpreadHouse, _harmed: Harmed, _job_id: str) -> bool:
    told = await house.told("/readyz")
    return told is not None and set(told["engines"].values()) == {"up"}


async def _goes_on(house: SpreadHouse, harmed: Harmed, job_id: str) -> bool:
    """The job, by whichever worker."""
    words = f"{job_id}: ".encode()
    return any(words in house.log(name)[harmed.logged[name] :] for name in TRAINERS)


VICTIMS = {
    one.name: one
    for one in (
        victim("ledger", "votes are acknowledged, questions answered and on record", _answers),
        victim("broker", "a message has come through: the archiver has moved something", _has_moved_something),
        victim("engine", "the gateway counts every engine as up", _takes_traffic),
        victim("gateway", "votes are acknowledged, questions answered and on record", _answers),
        Victim("worker", "the job goes on, here or at the other worker", _goes_on, at_work_on),
        victim("beat", "it has sent something", _has_ticked),
        victim("archiver", "it has moved something", _has_moved_something),
    )
}
