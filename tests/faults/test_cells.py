"""A few cells of the table, with a scripted engine and short harms; `make faults` runs all (docs/reliability.md)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import network
from tests.faults.__main__ import chosen
from tests.faults.cells import processes_of
from tests.faults.harms import HARMS
from tests.faults.victims import VICTIMS
from tests.processes import ROOT, running

CELLS = ["ledger/cut", "worker/stop"]
LASTS_S = 8
"""Longer than a lease of the house, so that the other worker takes the job from the one that is stopped."""


@pytest.mark.timeout(400)
def test_a_ledger_cut_off_and_a_worker_stopped_under_load_lose_nothing(pocket: Path, tmp_path: Path) -> None:
    if not network.can_be_had():
        # CI runs as root, so there it is a failure; a person's kernel need not lend them a network.
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("to cut a part off takes `ip` and `unshare`, and root or user namespaces")
    out = tmp_path / "cells.json"
    command = [sys.executable, "-m", "tests.faults", *CELLS, "--scripted", "--lasts", f"{LASTS_S}", "--out", str(out)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=390, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    cells = json.loads(out.read_text())
    assert [f"{cell['victim']}/{cell['harm']}" for cell in cells] == CELLS
    assert [cell["attempts"] for cell in cells][1] > 1, "nobody took the job from the worker that was stopped"


def test_a_process_that_was_told_of_a_house_is_found_whoever_its_parent_is(tmp_path: Path) -> None:
    with running(["sleep", "60"], tmp_path / "log", {"HEED_VAR": str(tmp_path)}) as process:
        found = processes_of(tmp_path)

    assert [one.pid for one in found] == [process.pid]
    assert processes_of(tmp_path) == []


def test_the_whole_table_is_every_victim_in_every_harm() -> None:
    assert len(chosen(list(VICTIMS))) == len(VICTIMS) * len(HARMS) == 21
    assert chosen(["beat", "engine/cut", "beat/kill"]) == [
        ("engine", "cut"),
        ("beat", "kill"),
        ("beat", "stop"),
        ("beat", "cut"),
    ]
    with pytest.raises(KeyError, match="cook"):
        chosen(["cook"])
