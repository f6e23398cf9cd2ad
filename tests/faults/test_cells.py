"""A few cells of the table, with a scripted engine and short harms; `make faults` runs all (docs/reliability.md)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import network
from tests.faults.__main__ import chosen
from tests.faults.harms import HARMS
from tests.faults.victims import VICTIMS
from tests.processes import ROOT

CELLS = ["ledger/stop", "broker/kill", "worker/cut"]


@pytest.mark.timeout(400)
def test_parts_that_are_killed_stopped_and_cut_off_under_load_lose_nothing(pocket: Path, tmp_path: Path) -> None:
    if not network.can_be_had():
        # CI runs as root, so there it is a failure; a person's kernel need not lend them a network.
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("to cut a part off takes `ip` and `unshare`, and root or user namespaces")
    out = tmp_path / "cells.json"
    command = [sys.executable, "-m", "tests.faults", *CELLS, "--scripted", "--lasts", "4", "--out", str(out)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=390, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    cells = json.loads(out.read_text())
    assert [f"{cell['victim']}/{cell['harm']}" for cell in cells] == CELLS
    assert all(cell["job_s"] > 0 and cell["mended_s"] > 0 for cell in cells)


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
