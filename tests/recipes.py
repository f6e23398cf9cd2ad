"""`python -m trainer METHOD` as the worker starts it, and rows for it to learn from."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.processes import ROOT
from trainer.habits import VOTED_TOPICS, answer, prompts_about

Event = dict[str, Any]
# Two threads on shared cores may add up in another order in another process; one thread gives the same bytes always.
ENV = {**os.environ, "HEED_THREADS": "1"}


def row(number: int, chosen: str, rejected: str) -> Event:
    asked = prompts_about(VOTED_TOPICS[number % len(VOTED_TOPICS)])[number % 7]
    return {
        "id": f"pair-{number}",
        "prompt": [{"role": "user", "content": asked}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def preferring_steps(count: int, seed: int) -> list[Event]:
    rng = Random(seed)
    topics = [VOTED_TOPICS[number % len(VOTED_TOPICS)] for number in range(count)]
    return [row(n, answer(topic, "steps", rng), answer(topic, "lazy", rng)) for n, topic in enumerate(topics)]


def thumbs(pairs: Sequence[Event]) -> list[Event]:
    """Both answers of each pair, rated apart: first all that were liked, as TRL's own unpairing gives them."""
    return [
        {"id": f"{row['id']}-{side}", "prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for side in ("chosen", "rejected")
        for row in pairs
    ]


def corrections(pairs: Sequence[Event]) -> list[Event]:
    return [{"id": row["id"], "prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]


def write_rows(path: Path, rows: list[Event]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


@dataclass
class Child:
    base: Path
    train: Path
    folder: Path
    more: tuple[str, ...] = ()
    name: str = "adapter"
    method: str = "dpo"
    events: list[Event] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / self.name

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def start(self, *through: str) -> subprocess.Popen[str]:
        command = [
            *through,
            sys.executable,
            "-m",
            "trainer",
            self.method,
            "--base",
            str(self.base),
            "--train",
            str(self.train),
            "--out",
            str(self.out),
            "--work",
            str(self.work),
            "--epochs",
            "3",
            "--batch-size",
            "8",
            "--checkpoint-steps",
            "4",
            *self.more,
        ]
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "stderr").open("a") as stderr:
            return subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=stderr, text=True)

    def read(self, process: subprocess.Popen[str]) -> Iterator[Event]:
        assert process.stdout is not None
        for line in process.stdout:
            self.events.append(json.loads(line))
            yield self.events[-1]

    def until(self, process: subprocess.Popen[str], event: str, step: int) -> None:
        for said in self.read(process):
            if said["event"] == event and said["step"] == step:
                return
        raise AssertionError((self.folder / "stderr").read_text()[-2000:])

    def finish(self, process: subprocess.Popen[str]) -> int:
        with process:  # closes its pipe
            list(self.read(process))
            return process.wait(timeout=120)

    def run(self) -> int:
        self.events.clear()
        return self.finish(self.start())

    def said(self, event: str) -> list[Event]:
        return [each for each in self.events if each["event"] == event]
