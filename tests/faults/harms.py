"""Harms: what is done to one part of the house, and when it was over."""

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from typing import Literal, get_args

import psutil

from tests.faults.spread import SpreadHouse
from tests.gateways import until
from tests.processes import living

Harm = Literal["kill", "stop", "cut"]
HARMS: tuple[Harm, ...] = get_args(Harm)
WORDS = {"kill": "kill -9", "stop": "SIGSTOP", "cut": "cut off"}


@dataclass(frozen=True)
class Harmed:
    """By the monotonic clock. A killed part's harm is over when it is seen dead, for then others may put it right."""

    part: str
    harm: Harm
    pid: int
    began: float
    ended: float
    logged: dict[str, int]
    """How much each part had written to its log when it was over."""


async def inflict(house: SpreadHouse, part: str, harm: Harm, lasts_s: float) -> Harmed:
    """Of a part that is alive, which is asserted; a stop and a cut last for so long."""
    pid = house.supervisor.pid_of(part)
    process = psutil.Process(pid)
    assert living([process]), f"{part} was dead before it was harmed"
    began = time.monotonic()
    if harm == "kill":
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not living([process]), f"{part} ends")
    elif harm == "stop":
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: process.status() == psutil.STATUS_STOPPED, f"{part} stops")
        await asyncio.sleep(lasts_s)
        os.kill(pid, signal.SIGCONT)
    else:
        assert house.network is not None, "a part can be cut off where it has a cable"
        house.network.pull(part)
        await asyncio.sleep(lasts_s)
        house.network.plug(part)
    return Harmed(part, harm, pid, began, time.monotonic(), house.logged())
