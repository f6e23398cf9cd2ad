"""The harness of training.py with few kills; docs/reliability.md has its run with twenty."""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from feedback.connection import Ledger
from tests.faults.training import disturb
from tests.workshop import Workshop, taught


@pytest.fixture
async def workshop(ledger: Ledger, tmp_path: Path, pocket: Path) -> AsyncIterator[Workshop]:
    await ledger.redis.flushall()
    with ExitStack() as processes:
        yield Workshop(ledger, tmp_path, pocket, processes)


@pytest.mark.timeout(900)
async def test_a_job_killed_at_random_moments_ends_with_the_bytes_of_one_left_alone(workshop: Workshop) -> None:
    await taught(workshop.ledger)

    outcome = await disturb(workshop, kills=2, seed=4, epochs=2)

    assert outcome.kills == 2
    assert outcome.is_clean, outcome
