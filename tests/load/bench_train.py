"""What training costs, against TRL with its defaults and against TRL with every option set: `make bench-train`.

    python -m tests.load.bench_train                   the pocket model and a random one of 150M, on CPU
    python -m tests.load.bench_train --device cuda     Qwen3-0.6B's and -8B's shapes with random weights, on one GPU

In each round they train one after the other (ABCDABCD), each in a process of its own, on the same pairs, and a ratio is
taken within its round. TRL is tuned twice, in fp32 and in bfloat16, for which of them is faster depends on the CPU. On
CPU the figures are CPU time by the kernel's count, so that busy neighbours matter less.
Ends with code 1 where losses differ, or where the recipe is slower than it promises.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tests.load import courses
from tests.load.contestant import Figures, Race
from tests.processes import ROOT
from trainer import machine

LABELS = {
    "defaults": "TRL, defaults",
    "tuned": "TRL, tuned by hand",
    "tuned_bf16": "TRL, tuned by hand",
    "heed": "the recipe",
}
# On a GPU nobody trains in fp32 by choice.
ON_CPU, ON_GPU = tuple(LABELS), ("defaults", "tuned_bf16", "heed")
# Of a step's loss, against the mean, where both compute in fp32, and where bfloat16, which has 3 digits, is in it.
EXACT, ROUNDED = 1e-4, 5e-2
PROMISED = {"defaults": 2.5, "tuned": 1.0, "tuned_bf16": 1.0}
# Dense bfloat16, from the makers' data sheets.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}


def raced(race: Race, rounds: int, contestants: Sequence[str]) -> dict[str, list[Figures]]:
    found: dict[str, list[Figures]] = {who: [] for who in contestants}
    for number in range(rounds):
        for who in contestants:
            with tempfile.TemporaryDirectory() as folder:
                plan = Race(**{**vars(race), "folder": folder}).write(Path(folder) / "race.json")
                command = [sys.executable, "-W", "ignore", "-m", "tests.load.contestant", who, str(plan)]
                done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            found[who].append(Figures(**json.loads(done.stdout.splitlines()[-1])))
            print(f"  round {number + 1}, {who}: {found[who][-1].cpu_s:.1f} CPU s", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, list[Figures]]) -> list[str]:
    lines = [
        "| who | in | tokens/CPU s | CPU s of a job | the recipe is faster by | its job, by | loss | steps differ by "
        "| peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for who, runs in found.items():
        speed = median(run.tokens / run.cpu_s for run in runs)
        job = median(run.whole_cpu_s for run in runs)
        cells = [
            runs[0].precision,
            f"{speed:,.0f}",
            f"{job:.1f}",
            _span(ratios(found, who, "cpu_s")),
            _span(ratios(found, who, "whole_cpu_s")),
        ]
        loss, peak = mean_loss(runs[0]), median(run.peak_bytes for run in runs) / 2**20
        lines.append(f"| {LABELS[who]} | {' | '.join(cells)} | {loss:.5f} | {apart(found, who):.0e} | {peak:,.0f} |")
    return lines


def gpu_table(found: dict[str, list[Figures]], parameters: int, device: str) -> list[str]:
    """MFU counts 4 floating-point operations for each parameter and token: forward, and backward without the frozen
    weights' own gradients. What checkpointing computes again and the reference pass do not count."""
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)
    lines = ["| who | tokens/s | MFU | the recipe is faster by | mean loss | peak GiB |", "|---|---|---|---|---|---|"]
    for who, runs in found.items():
        speed = median(run.tokens / run.wall_s for run in runs)
        mfu = f"{4 * parameters * speed / peak:.1%}" if peak else "unknown peak"
        most = max(run.peak_bytes for run in runs) / 2**30
        faster = _span(ratios(found, who, "wall_s"))
        lines.append(f"| {LABELS[who]} | {speed:,.0f} | {mfu} | {faster} | {mean_loss(runs[0]):.5f} | {most:.1f} |")
    return lines


def ratios(found: dict[str, list[Figures]], who: str, figure: str) -> list[float]:
    return [getattr(run, figure) / getattr(ours, figure) for run, ours in zip(found[who], found["heed"], strict=True)]


def apart(found: dict[str, list[Figures]], who: str) -> float:
    """The most that a step's loss differs from the recipe's."""
    pairs = zip(found[who][0].losses, found["heed"][0].losses, strict=True)
    return max(abs(theirs - ours) for theirs, ours in pairs)


def mean_loss(run: Figures) -> float:
    return sum(run.losses) / len(run.losses)


def faults(found: dict[str, list[Figures]], figure: str) -> list[str]:
    said = []
    for who, runs in found.items():
        tolerance = EXACT if {runs[0].precision, found["heed"][0].precision} == {"fp32"} else ROUNDED
        if (most := apart(found, who)) > tolerance * abs(mean_loss(found["heed"][0])):
            said.append(f"a step's loss is {most:.2g} off that of {LABELS[who]}")
    for who, promised in PROMISED.items():
        if who in found and (faster := median(ratios(found, who, figure))) < promised:
            said.append(f"{faster:.2f} times as fast as {LABELS[who]}, {promised} was promised")
    return said


def _span(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def on_cpu(rounds: int, base: Path, folder: Path, names: Sequence[str]) -> list[str]:
    said = []
    if "pocket" in names:
        pairs = courses.pocket_pairs(200, folder / "pocket.jsonl")
        race = Race(str(base), str(pairs), "", 1, 3, 8, 512, is_on_gpu=False)
        said += report(f"The pocket model, 200 pairs, 3 epochs, {rounds} rounds", raced(race, rounds, ON_CPU))
    if "150M" in names:
        courses.build(courses.SMALL, folder / "small")
        pairs = courses.random_pairs(4, courses.SMALL.vocabulary - 5, 96, 48, folder / "small.jsonl")
        threads = machine.thread_quota()
        race = Race(str(folder / "small"), str(pairs), "", threads, 2, 2, 512, is_on_gpu=False, learning_rate=1e-4)
        said += report(f"{courses.SMALL.name}, 4 pairs, 2 epochs, {rounds} rounds", raced(race, rounds, ON_CPU))
    return said


def report(title: str, found: dict[str, list[Figures]]) -> list[str]:
    print("\n".join([title, "", *table(found), ""]), flush=True)
    return faults(found, "cpu_s")


def on_gpu(rounds: int, folder: Path) -> list[str]:
    import torch

    said = []
    device = torch.cuda.get_device_name()
    for number, shape in enumerate(courses.GPU_SHAPES):
        base = folder / f"shape-{number}"
        parameters = courses.build(shape, base)
        torch.cuda.empty_cache()
        pairs = courses.random_pairs(128, shape.vocabulary - 5, 512, 256, folder / f"{number}.jsonl")
        # Four pairs at once: with more, 8B without checkpointing would not fit into 80 GB.
        race = Race(str(base), str(pairs), "", machine.thread_quota(), 1, 4, 1024, True, 5e-6, 0.1, 0.2)
        found = raced(race, rounds, ON_GPU)
        print("\n".join([f"{shape.name} on {device}, 128 pairs", "", *gpu_table(found, parameters, device), ""]))
        said += faults(found, "wall_s")
    return said


def main(device: str, rounds: int, base: Path, names: Sequence[str]) -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        said = on_gpu(rounds, Path(folder)) if device == "cuda" else on_cpu(rounds, base, Path(folder), names)
    for fault in said:
        print(f"bench-train: {fault}", file=sys.stderr)
    return 1 if said else 0


if __name__ == "__main__":
    asking = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asking.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    asking.add_argument("--rounds", type=int, default=4)
    asking.add_argument("--base", type=Path, default=ROOT / "var" / "pocket")
    asking.add_argument("--course", choices=("pocket", "150M"), nargs="+", default=["pocket", "150M"], help="on CPU")
    given = asking.parse_args()
    sys.exit(main(given.device, given.rounds, given.base, given.course))
