"""Training makes way for answers: by pauses between steps, or by slices while the engines sleep."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from feedback import gpu, jobs
from feedback.connection import Ledger
from feedback.gpu import Grant, Traffic
from tests.workshop import LEASE_S, Workshop, asked_for, ended, taught, told, until
from trainer import pauses, slices
from trainer.child import Event, RecipeFailed
from trainer.pauses import Pauses
from trainer.progress import PAUSE
from trainer.settings import WorkshopSettings
from trainer.slices import Slices
from trainer.work import Work

SLOW, QUICK = (Traffic(requests=20, first_tokens={gpu.bucket_of(seconds): 20}) for seconds in (3.0, 0.1))
BARELY = Traffic(requests=20, first_tokens={gpu.bucket_of(0.9): 20})
SOME, FEW = Traffic(requests=10), Traffic(requests=1)


class Gateway:
    """What a gateway would write into the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.traffic = Traffic()
        self.refusal: str | None = None
        self.is_willing = True
        self.stall_s = 60.0
        self.grants = 0

    async def run(self) -> None:
        while True:
            await gpu.tell(self._ledger, "gateway", self.traffic)
            wish, found = await gpu.wished(self._ledger), await gpu.granted(self._ledger)
            if found is not None and (found.token != wish or not self.is_willing):
                await gpu.take_back(self._ledger)
            elif wish is not None and found is None and self.is_willing:
                self.grants += 1
                granted = Grant(token=wish, until=time.time() + self.stall_s, refusal=self.refusal)
                await gpu.grant(self._ledger, granted, 60)
            await asyncio.sleep(0.02)


@pytest.fixture
async def gateway(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    monkeypatch.setattr(pauses, "LOOK_S", 0.05)
    monkeypatch.setattr(pauses, "FIRST_WORD_S", 0.3)
    monkeypatch.setattr(slices, "LOOK_S", 0.05)
    made = Gateway(ledger)
    running = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def work_of(ledger: Ledger, var: Path, **settings: Any) -> Work:
    job, token = await jobs.claim(ledger, (await asked_for(ledger)).id)
    given: dict[str, Any] = {"var": var, "first_token_p95_s": 1.0, "gpu_awake_s": 0}
    return Work(ledger, WorkshopSettings(**(given | settings)), job, token)


@asynccontextmanager
async def kept(
    work: Work,
) -> AsyncIterator[tuple[Pauses, Callable[[], Awaitable[object]], Callable[[], Awaitable[object]]]]:
    made = Pauses(work, work.folder / "work")

    async def is_paused() -> bool:
        return (work.folder / "work" / PAUSE).exists()

    async def is_going() -> bool:
        return not await is_paused()

    async with made.kept():
        yield made, is_paused, is_going


async def test_training_pauses_while_first_tokens_are_late_and_goes_on_when_they_are_well_in_time(
    ledger: Ledger, tmp_path: Path, gateway: Gateway
) -> None:
    work = await work_of(ledger, tmp_path)

    async with kept(work) as (made, is_paused, is_going):
        gateway.traffic = SLOW
        await until(is_paused, "training pauses", 10)
        gateway.traffic = BARELY
        heard_s = gpu.bucket_of(0.9)
        await until(lambda: _is_heard(ledger, heard_s), "the gateway tells of its recovery", 10)
        await asyncio.gather(*(made._look() for _ in range(3)))
        is_still_paused = await is_paused()
        gateway.traffic = QUICK
        await until(is_going, "training goes on", 10)

    assert is_still_paused
    assert made.total_s > 0
    assert await told(ledger, work.job.id, "Training paused: p95 of the time to first token is 3")
    assert "s: p95 of the time to first token is 0.1 s, 80 requests a minute come" in await last_word(work)


async def test_under_idle_training_begins_and_goes_on_only_while_there_is_little_traffic(
    ledger: Ledger, tmp_path: Path, gateway: Gateway
) -> None:
    work = await work_of(ledger, tmp_path, gpu_policy="idle", idle_requests_per_minute=6)
    gateway.traffic = SOME
    begun = asyncio.Event()

    async def train() -> None:
        async with kept(work) as (_, is_paused, is_going):
            begun.set()
            gateway.traffic = SOME
            await until(is_paused, "training pauses", 10)
            gateway.traffic = FEW
            await until(is_going, "training goes on", 10)

    training = asyncio.create_task(train())
    await until(lambda: told(ledger, work.job.id, "Training paused: 40 requests a minute come, over 6"), "it waits", 10)
    is_begun = begun.is_set()
    gateway.traffic = FEW
    await training

    assert not is_begun


async def test_pauses_end_when_they_took_as_long_as_they_may(ledger: Ledger, tmp_path: Path, gateway: Gateway) -> None:
    work = await work_of(ledger, tmp_path, pause_most_s=0.5)
    gateway.traffic = SLOW

    async with kept(work) as (made, is_paused, is_going):
        await until(is_paused, "training pauses", 10)
        await until(is_going, "training goes on", 10)

    assert 0.5 <= made.total_s < 5
    assert "in spite of the traffic, 0.5 s of pauses are the most (HEED_PAUSE_MOST_S)" in await last_word(work)


@pytest.mark.parametrize("traffic", [SLOW, SOME])
async def test_where_nothing_bounds_it_nothing_pauses(
    ledger: Ledger, tmp_path: Path, gateway: Gateway, traffic: Traffic
) -> None:
    settings = WorkshopSettings(var=tmp_path, first_token_p95_s=0)

    assert pauses.too_much(traffic, settings, is_paused=False) is None


async def test_a_slice_ends_before_the_engines_wake_and_the_next_goes_on_with_what_was_saved(
    ledger: Ledger, tmp_path: Path, gateway: Gateway
) -> None:
    work = await work_of(ledger, tmp_path, gpu_policy="sleep")
    folder = work.folder / "work"
    held: list[tuple[float, float]] = []
    gateway.stall_s = slices.HAND_BACK_S + 0.5

    async def recipe(patience_s: float) -> Event:
        began = time.time()
        try:
            if len(held) == 2:
                return {"event": "done"}
            await asyncio.Event().wait()
        finally:
            (folder / f"checkpoint-{len(held)}").mkdir(parents=True)
            (folder / f"checkpoint-{len(held)}" / "seal.json").touch()
            held.append((began, time.time()))
        raise AssertionError

    done = await Slices(work, "dpo", folder).run(recipe)

    assert done == {"event": "done"}
    assert gateway.grants == len(held) == 3
    assert all(ended - began < gateway.stall_s - slices.HELD_S for began, ended in held)
    assert await gpu.wished(ledger) is None


async def test_a_slice_ends_when_the_engines_are_taken_back(ledger: Ledger, tmp_path: Path, gateway: Gateway) -> None:
    work = await work_of(ledger, tmp_path, gpu_policy="sleep")
    begun = asyncio.Event()

    async def recipe(patience_s: float) -> Event:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    running = asyncio.create_task(Slices(work, "evaluate", None).run(recipe))
    await asyncio.wait_for(begun.wait(), 10)
    gateway.is_willing = False

    with pytest.raises(
        RecipeFailed, match=r"evaluate did not end while .* 45 s at most \(HEED_GPU_STALL_S\).* give it"
    ):
        await asyncio.wait_for(running, 10)


async def test_what_saves_nothing_within_a_slice_fails_in_words_instead_of_going_on_for_ever(
    ledger: Ledger, tmp_path: Path, gateway: Gateway
) -> None:
    work = await work_of(ledger, tmp_path, gpu_policy="sleep")
    gateway.stall_s = slices.HAND_BACK_S + 0.2

    async def recipe(patience_s: float) -> Event:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(RecipeFailed, match="dpo saved no step while the engines slept, 45 s at most"):
        await asyncio.wait_for(Slices(work, "dpo", work.folder / "work").run(recipe), 10)


async def test_a_refused_wish_is_told_in_the_gateway_s_words(ledger: Ledger, tmp_path: Path, gateway: Gateway) -> None:
    work = await work_of(ledger, tmp_path, gpu_policy="sleep")
    gateway.refusal = "an engine cannot sleep"

    async def recipe(patience_s: float) -> Event:
        raise AssertionError("it has no memory to run in")

    with pytest.raises(RecipeFailed, match="dpo cannot begin: an engine cannot sleep"):
        await Slices(work, "dpo", work.folder / "work").run(recipe)


async def test_without_a_gateway_that_grants_it_says_what_all_must_have(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "GRANTED_WITHIN_S", 0.2)
    work = await work_of(ledger, tmp_path, gpu_policy="sleep")

    async def recipe(patience_s: float) -> Event:
        raise AssertionError("it has no memory to run in")

    with pytest.raises(RecipeFailed, match="all must have HEED_GPU_POLICY=sleep"):
        await Slices(work, "dpo", work.folder / "work").run(recipe)


async def test_a_job_that_was_paused_for_longer_than_its_lease_keeps_it_and_ends_well(
    workshop: Workshop, gateway: Gateway
) -> None:
    ledger = workshop.ledger
    await taught(ledger)
    workshop.start("worker", HEED_FIRST_TOKEN_P95_S="1")
    workshop.start("beat")
    gateway.traffic = SLOW

    job = await asked_for(ledger)
    await until(lambda: told(ledger, job.id, "Training paused: p95"), "training pauses")
    paused_at = time.monotonic()
    await until(lambda: _is_later(paused_at + LEASE_S + 1), "the lease would have run out")
    is_kept = await ledger.redis.exists(ledger.keys.job_lease(job.id))
    are_steps_told = await told(ledger, job.id, "Step ")
    gateway.traffic = QUICK
    done = await ended(ledger, job.id)

    assert is_kept
    assert not are_steps_told
    assert (done.status, done.attempts) == ("succeeded", 1), done.error
    assert await told(ledger, job.id, "Training goes on after")
    assert done.seconds["paused"] > LEASE_S


async def test_a_job_whose_engines_are_taken_back_goes_on_in_another_slice(
    workshop: Workshop, gateway: Gateway
) -> None:
    ledger = workshop.ledger
    await taught(ledger)
    workshop.start("worker", HEED_GPU_POLICY="sleep", HEED_GPU_STALL_S="90", HEED_GPU_AWAKE_S="5")
    workshop.start("beat")
    gateway.stall_s = 90

    job = await asked_for(ledger)
    await until(lambda: told(ledger, job.id, "Checkpoint at step 2"), "a checkpoint is saved")
    gateway.is_willing = False
    await until(lambda: _is_unwished(ledger), "the worker gives the memory back")
    children = [line for line in _recipes() if job.id in line]
    gateway.is_willing = True
    done = await ended(ledger, job.id)

    assert children == []
    assert (done.status, done.attempts) == ("succeeded", 1), done.error
    assert await told(ledger, job.id, "Training goes on from the checkpoint at step ")
    assert gateway.grants >= 3


async def _is_later(than: float) -> bool:
    return time.monotonic() > than


async def _is_unwished(ledger: Ledger) -> bool:
    return await gpu.wished(ledger) is None


def _recipes() -> list[str]:
    lines = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            lines.append(" ".join(process.cmdline()))
    return [line for line in lines if "-m trainer dpo" in line]


async def last_word(work: Work) -> str:
    events, _ = await jobs.events(work.ledger, work.job.id, limit=1)
    assert events[0].data is not None
    assert events[0].data["paused"] is False
    return events[0].message


async def _is_heard(ledger: Ledger, bucket: int) -> bool:
    return list((await gpu.hear(ledger)).first_tokens) == [bucket]
