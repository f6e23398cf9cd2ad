"""DPO's claim, reproduced where everything can be counted: `make reproduce`.

Teaches the project's recipe in a few worlds, as many at once as there are cores, and writes docs/dpo.md with its table
and docs/images/dpo.svg. With --world N it studies that world alone and prints what it found as JSON.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.processes import ROOT
from trainer import machine

FURTHEST = 1.5
"""The figure's widest divergence; no lesson of these betas goes so far."""


def study_one(world: int, pairs: int, is_small: bool) -> None:
    # Torch reads the thread count when it is imported; a tiny model gains nothing from a second one.
    os.environ["HEED_THREADS"] = os.environ["TQDM_DISABLE"] = "1"
    machine.prepare_environment()
    from tests.toy import study
    from tests.toy.lessons import School

    with tempfile.TemporaryDirectory() as folder:
        school = School(world, Path(folder))
        found = study.Study(frontier=study.frontier(school, FURTHEST))
        for name, measured in study.conduct(school, pairs, is_small=is_small):
            found.lessons[name] = measured
            print(f"world {world}: {name}: {measured}", file=sys.stderr, flush=True)
    print(json.dumps(found.written()))


def study_all(worlds: int, pairs: int) -> None:
    from tests.toy import figure, page
    from tests.toy.study import Study

    def studied(world: int) -> Study:
        command = [sys.executable, "-W", "ignore", "-m", "tests.toy.reproduce", "--world", str(world)]
        done = subprocess.run(
            [*command, "--pairs", str(pairs)], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
        )
        return Study.read(json.loads(done.stdout.splitlines()[-1]))

    with ThreadPoolExecutor(machine.thread_quota()) as pool:
        studies = list(pool.map(studied, range(worlds)))
    figure.draw(studies, ROOT / "docs" / "images" / "dpo.svg")
    cpu_s = resource.getrusage(resource.RUSAGE_CHILDREN)
    (ROOT / "docs" / "dpo.md").write_text(page.written(studies, pairs, cpu_s.ru_utime + cpu_s.ru_stime))


if __name__ == "__main__":
    asking = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asking.add_argument("--worlds", type=int, default=3)
    asking.add_argument("--pairs", type=int, default=3000)
    asking.add_argument("--world", type=int, help="this one alone, JSON")
    asking.add_argument("--small", action="store_true", help="with --world: no noise and no rounds")
    given = asking.parse_args()
    if given.world is None:
        study_all(given.worlds, given.pairs)
    else:
        study_one(given.world, given.pairs, given.small)
