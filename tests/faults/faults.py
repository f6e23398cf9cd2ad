"""What is done to the house, as data: a row of the report each.

A further row (a stopped process, a cut network, another victim) is another Fault: which services run, what strikes
them, and how one sees that the house has mended.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from serve.supervisor import Service
from tests.faults.crowd import Crowd
from tests.faults.house import House, Strike


@dataclass(frozen=True)
class Fault:
    name: str
    strike: Callable[[House], Awaitable[Strike]]
    is_mended: Callable[[House, Crowd, Strike], bool]
    wanted: Sequence[str] = ("ledger", "gateway")
    beside: Callable[[], Sequence[Service]] = tuple


def kill(name: str) -> Fault:
    """`kill -9`; mended when the victim is back and a vote begun after its end was acknowledged."""
    return Fault(
        name=f"kill -9 {name}",
        strike=lambda house: house.kill(name),
        is_mended=lambda house, crowd, strike: house.is_back(name, strike) and crowd.has_had_an_answer_since(strike.at),
    )


FAULTS = {"ledger": kill("ledger"), "gateway": kill("gateway")}
