"""In what a step is faster on this CPU, by the width of the base: `python -m tests.load.bench_precision`.

Trains a few steps of random bases in fp32 and in bf16, each in a process of its own, and prints the least CPU time of a
step. With ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 before it, a CPU with AMX does as one that has avx512_bf16 alone. This is
what `auto` in trainer/precision.py rests on.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.load import courses
from tests.load.courses import SMALL, Shape
from tests.processes import ROOT

STEPS = 6
SHAPES = {
    128: Shape("128", 772, 128, 384, 4, 4, 4, 32, True),  # the pocket model's
    256: Shape("256", 8000, 256, 682, 8, 4, 4, 64, True),
    512: Shape("512", 8000, 512, 1365, 8, 8, 8, 64, True),
    768: SMALL,
}


def least_step_s(base: Path, train: Path, precision: Any, batch: int) -> float:
    from trainer import machine

    machine.prepare_environment(str(base))
    from transformers import AutoTokenizer, PrinterCallback, TrainerCallback

    from trainer import dpo, rows
    from trainer.training import Run

    taken: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            taken.append(-_cpu_s())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            taken[-1] += _cpu_s()

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        settings = dpo.Hyperparameters(epochs=float(STEPS), batch_size=batch, learning_rate=1e-4, precision=precision)
        run = Run(str(base), train, place / "adapter", place / "work", None, settings)
        fitted = rows.fit(rows.read(train, dpo.ANSWERS), dpo.ANSWERS, AutoTokenizer.from_pretrained(base), 512)
        trainer = dpo.build_trainer(run, fitted.dataset())
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Clock())
        trainer.args.save_strategy = "no"
        trainer.args.max_steps = STEPS
        trainer.train()
    return min(taken)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(widths: list[int], batch: int) -> None:
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["TQDM_DISABLE"] = "1"
    print("| width | fp32, CPU s of a step | bf16 | bf16 takes |", "|---|---|---|---|", sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for width in widths:
            base, train = Path(folder) / str(width), Path(folder) / f"{width}.jsonl"
            courses.build(SHAPES[width], base)
            courses.random_pairs(batch, SHAPES[width].vocabulary - 5, 96, 48, train)
            found = {}
            for precision in ("fp32", "bf16"):
                asked = json.dumps([str(base), str(train), precision, batch])
                command = [sys.executable, "-W", "ignore", "-m", "tests.load.bench_precision", "--one", asked]
                done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
                found[precision] = float(done.stdout.splitlines()[-1])
            ratio = found["bf16"] / found["fp32"]
            print(f"| {width} | {found['fp32']:.3f} | {found['bf16']:.3f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    asking = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asking.add_argument("--widths", type=int, choices=SHAPES, nargs="+", default=list(SHAPES))
    asking.add_argument("--batch", type=int, default=2, help="pairs of about 240 tokens each")
    asking.add_argument("--one", help=argparse.SUPPRESS)
    given = asking.parse_args()
    if given.one:
        one_base, one_train, one_precision, one_batch = json.loads(given.one)
        print(least_step_s(Path(one_base), Path(one_train), one_precision, one_batch))
    else:
        main(given.widths, given.batch)
