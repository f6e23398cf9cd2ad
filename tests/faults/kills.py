"""Break the house again and again while people vote, and see whether an acknowledged vote is ever lost or doubled.

    python -m tests.faults.kills --times 20 --seed 0

Prints a table, and with --out writes all it knows as JSON. Ends with 1 if anything was wrong. The seed chooses the
moments and what the crowd does; how its requests interleave is the machine's choice.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from tests.faults.faults import FAULTS
from tests.faults.trial import Row, endure, table


async def run(asked: argparse.Namespace) -> list[Row]:
    return [
        await endure(
            FAULTS[name],
            strikes=asked.times,
            seed=asked.seed,
            clients=asked.clients,
            say=lambda told: print(told, flush=True),
        )
        for name in asked.faults
    ]


def main() -> None:
    asking = argparse.ArgumentParser(
        prog="python -m tests.faults.kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asking.add_argument("faults", nargs="*", default=list(FAULTS), help=f"of {', '.join(FAULTS)}; default: all")
    asking.add_argument("--times", type=int, default=20, help="how often each fault strikes (20)")
    asking.add_argument("--seed", type=int, default=0)
    asking.add_argument("--clients", type=int, default=32)
    asking.add_argument("--out", type=Path, help="JSON of every strike")
    asked = asking.parse_args()
    if unknown := set(asked.faults) - set(FAULTS):
        asking.error(f"no fault {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    rows = asyncio.run(run(asked))
    print(f"\n{table(rows)}")
    for row in rows:
        print(f"\n{row.fault}, seed {row.seed}, {row.clients} clients, {row.took_s:.0f} s: {row.outcomes}")
        for problem in row.problems[:20]:
            print(f"  broken: {problem}")
    if asked.out:
        asked.out.write_text(json.dumps([row.as_json() for row in rows], indent=2) + "\n")
    sys.exit(1 if any(row.problems for row in rows) else 0)


if __name__ == "__main__":
    main()
