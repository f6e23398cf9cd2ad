"""Hurt every part of the house in every way, each at a random moment under chat, votes and a job that trains.

    python -m tests.faults --seed 0              the whole table: seven victims, three harms
    python -m tests.faults beat engine/cut       some of its rows

Prints a table, and with --out writes all it knows as JSON. Ends with 1 if anything was wrong. The seed chooses the
moments and what the crowd does; how its requests interleave is the machine's choice.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.faults import network
from tests.faults.cells import Cell, endure, table
from tests.faults.harms import HARMS, Harm
from tests.faults.spread import ENGINES, PARTS
from tests.faults.victims import VICTIMS

REPLICAS = 2
"""vLLM servers where one of them is hurt; elsewhere one, for two take twice the memory and a minute more to start."""


def chosen(names: list[str]) -> list[tuple[str, Harm]]:
    """Raises KeyError for a cell that is not in the table."""
    cells = {f"{victim}/{harm}": (victim, harm) for victim in VICTIMS for harm in HARMS}
    wanted = {name for name in names if "/" in name}
    wanted |= {f"{name}/{harm}" for name in names for harm in HARMS if "/" not in name}
    if unknown := wanted - cells.keys():
        raise KeyError(", ".join(sorted(unknown)))
    return [cell for name, cell in cells.items() if name in wanted]


async def run(asked: argparse.Namespace, cells: list[tuple[str, Harm]]) -> list[Cell]:
    replicas = 0 if asked.scripted else REPLICAS if any(victim == "engine" for victim, _ in cells) else 1
    laid = network.Network([name for name in PARTS if name not in ENGINES[replicas:]]) if network.is_apart() else None
    if laid:
        laid.lay()
    with tempfile.TemporaryDirectory(prefix="heed-faults-") as folder:
        return await endure(
            Path(folder),
            cells,
            seed=asked.seed,
            lasts_s=asked.lasts,
            clients=asked.clients,
            replicas=replicas,
            network=laid,
            env={},
            say=lambda told: print(told, flush=True),
        )


def main() -> None:
    asking = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asking.add_argument(
        "cells",
        nargs="*",
        default=list(VICTIMS),
        help=f"of {', '.join(VICTIMS)}, with /kill, /stop, /cut; default: all",
    )
    asking.add_argument("--seed", type=int, default=0)
    asking.add_argument("--lasts", type=float, default=10, help="seconds of a stop or a cut (10)")
    asking.add_argument("--clients", type=int, default=8)
    asking.add_argument("--scripted", action="store_true", help="a scripted engine instead of vLLM, to be quick")
    asking.add_argument("--out", type=Path, help="JSON of every cell")
    asked = asking.parse_args()
    try:
        cells = chosen(asked.cells)
    except KeyError as unknown:
        asking.error(f"no cell {unknown}; there are {', '.join(VICTIMS)}, each with {', '.join(HARMS)}")
    if asked.scripted and any(victim == "engine" for victim, _ in cells):
        asking.error("the engine can be hurt where it is real; leave --scripted away")
    if any(harm == "cut" for _, harm in cells):
        if not network.is_apart() and not network.can_be_had():
            asking.error(
                "to cut a part off takes `ip` and `unshare`, and root or user namespaces; ask for /kill and /stop"
            )
        network.go_apart()
    began = time.monotonic()
    done = asyncio.run(run(asked, cells))
    print(f"\n{table(done)}\n\n{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f} at the end")
    if asked.out:
        asked.out.write_text(json.dumps([asdict(cell) for cell in done], indent=2) + "\n")
    sys.exit(1 if any(cell.problems for cell in done) else 0)


if __name__ == "__main__":
    main()
