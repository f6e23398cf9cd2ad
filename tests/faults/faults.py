"""Kills that are repeated under a large crowd, as data: a row of the report each.

A further row is another Fault: what strikes, and how one sees that the house has mended. All parts and all harms, once
each and with a job beside them, are in cells.py.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from tests.faults import partitions
from tests.faults.crowd import Crowd
from tests.faults.house import House, Strike


@dataclass(frozen=True)
class Fault:
    name: str
    strike: Callable[[House], Awaitable[Strike]]
    is_mended: Callable[[House, Crowd, Strike], bool]


def kill(service: str) -> Fault:
    """`kill -9`; mended when the victim is back and a vote begun after its end was acknowledged."""
    return Fault(
        name=f"kill -9 {service}",
        strike=lambda house: house.kill(service),
        is_mended=lambda house, crowd, strike: (
            house.is_back(service, strike) and crowd.has_had_an_answer_since(strike.at)
        ),
    )


def kill_the_archiver() -> Fault:
    """The worker, which runs it; mended when the next one has moved something too."""

    async def strike(house: House) -> Strike:
        is_moving = await partitions.are_being_written(house)
        return replace(await house.kill("worker"), found=" within a move" if is_moving else " between two moves")

    killed = kill("worker")
    return Fault(
        name="kill -9 archiver",
        strike=strike,
        is_mended=lambda house, crowd, strike: (
            killed.is_mended(house, crowd, strike) and house.has_said("worker", "moved to the archive", strike)
        ),
    )


FAULTS = {"ledger": kill("ledger"), "gateway": kill("gateway"), "archiver": kill_the_archiver()}
