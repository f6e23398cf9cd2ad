"""A recipe on two processes (HEED_PROCESSES): one run, one voice, one adapter, and the losses of one process.

Two CPU processes here, as there would be one for each GPU; what only GPUs can show (NCCL, speed) is not tested.
"""

from pathlib import Path

import pytest

from tests.recipes import preferring_steps, write_rows
from trainer import weights
from trainer.child import Event, RecipeFailed, run_recipe


async def trained(pocket: Path, folder: Path, processes: int, batch: int = 8) -> list[Event]:
    """The run's events."""
    rows = write_rows(folder / "train.jsonl", preferring_steps(16, seed=0))
    places = ["--base", pocket, "--train", rows, "--out", folder / "adapter", "--work", folder / "work"]
    told = ["--epochs", "1", "--batch-size", str(batch), "--sft-weight", "0"]
    events: list[Event] = []

    async def keep(event: Event) -> None:
        events.append(event)

    await run_recipe(["dpo", *map(str, places), *told], folder / "log", 0, keep, processes=processes)
    return events


@pytest.mark.timeout(600)
async def test_two_processes_train_as_one(pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_THREADS", "1")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()

    one = await trained(pocket, tmp_path / "one", 1)
    two = await trained(pocket, tmp_path / "two", 2)

    assert [event["event"] for event in two] == [event["event"] for event in one]
    losses = [[event["metrics"]["loss"] for event in run if event["event"] == "step"] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert weights.weigh(tmp_path / "two" / "adapter", str(pocket))["reasons"] == []


async def test_a_batch_that_two_processes_cannot_share_is_refused(pocket: Path, tmp_path: Path) -> None:
    """Which also shows that there are two."""
    with pytest.raises(RecipeFailed, match="It is 7 and there are 2"):
        await trained(pocket, tmp_path, 2, batch=7)
