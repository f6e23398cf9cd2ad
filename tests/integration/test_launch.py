"""`accelerate launch -m trainer dpo` on two processes: one run, one voice, one adapter, and the losses of one process.

Two CPU processes here, as there would be one for each GPU; what only GPUs can show (NCCL, speed) is not tested.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ROOT
from tests.recipes import preferring_steps, write_rows
from trainer import weights

LAUNCH = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--num_cpu_threads_per_process", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m"]


def trained(pocket: Path, folder: Path, *through: str) -> list[dict[str, Any]]:
    """The run's events."""
    rows = write_rows(folder / "train.jsonl", preferring_steps(16, seed=0))
    places = ["--base", pocket, "--train", rows, "--out", folder / "adapter", "--work", folder / "work"]
    told = ["--epochs", "1", "--batch-size", "8", "--sft-weight", "0", "--progress", "jsonl"]
    command = [sys.executable, *through, "trainer", "dpo", *map(str, places), *told]
    environment = {**os.environ, "HEED_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.timeout(600)
def test_two_processes_train_as_one(pocket: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()

    one = trained(pocket, tmp_path / "one", "-m")
    two = trained(pocket, tmp_path / "two", *LAUNCH)

    assert [event["event"] for event in two] == [event["event"] for event in one]
    losses = [[event["metrics"]["loss"] for event in run if event["event"] == "step"] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert weights.weigh(tmp_path / "two" / "adapter", str(pocket))["reasons"] == []
