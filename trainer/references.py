"""References: what the base says of the answers a recipe trains on, kept from one job to the next.

A job that retrains from the base reads mostly rows that the job before it read, and the base does not change, so only
new rows are scored. There is a file for each base, precision and version of the libraries; in it a number for
each answer under the digest of the row's token ids, which follow from texts, tokenizer and chat template. It holds no
text and nothing from which one could be had, so an erasure need not look in here.

A row is scored alone on a CPU: beside others its last bits would depend on them, and the same rows must give the same
adapter whatever was known before.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from trainer import manifest
from trainer.files import write_whole
from trainer.precision import Precision
from trainer.rows import is_answer

FILES = 4
"""Bases remembered: the one in use, what it may be changed back to, and the same before an update of the libraries."""

Scores = list[float]


class References:
    """`most` rows are remembered of a base, those that were read last."""

    def __init__(self, folder: Path, base: str, precision: Precision, most: int) -> None:
        where = "cuda" if torch.cuda.is_available() else "cpu"
        libraries = [version(name) for name in ("torch", "transformers", "trl")]
        named = json.dumps([manifest.describe_base(base).revision, where, precision, *libraries])
        self._file = folder / f"{hashlib.sha256(named.encode()).hexdigest()[:32]}.json"
        self._most = most

    def read(self) -> dict[str, Scores]:
        """What is known; nothing when the file is not there or spoiled."""
        try:
            found = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def add(self, used: Mapping[str, Scores]) -> None:
        with self._held():
            known = {key: scores for key, scores in self.read().items() if key not in used} | dict(used)
            kept = dict(list(known.items())[-self._most :])
            write_whole(self._file, json.dumps(kept, separators=(",", ":")).encode())
            files = sorted(self._file.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for forgotten in files[:-FILES]:
                forgotten.unlink()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Two served models may train on one base at once, and neither should lose what the other found."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with (self._file.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def scored(trainer: Any, rows: Dataset, columns: Sequence[str], at_once: int, known: References | None) -> Dataset:
    """`rows` with the base's log-probability of each answer in `columns`, as TRL's losses take them.

    To stand in for TRL's own `_precompute_ref_logps`, which remembers nothing between processes.
    """
    keys = [_key(row) for row in rows]
    before = known.read() if known else {}
    scores = {key: before[key] for key in keys if len(before.get(key, ())) == len(columns)}
    missing = [index for index, key in enumerate(keys) if key not in scores]
    missing = list({keys[index]: index for index in missing}.values())
    at_once = at_once if trainer.accelerator.device.type == "cuda" else 1
    with getattr(trainer, "as_reference", nullcontext)():
        for start in range(0, len(missing), at_once):
            some = missing[start : start + at_once]
            batch = trainer.data_collator([rows[index] for index in some])
            batch = {name: tensor.to(trainer.accelerator.device) for name, tensor in batch.items()}
            found = [
                tensor.tolist() for tensor in trainer.compute_ref_log_probs(trainer.model, batch) if tensor is not None
            ]
            scores |= {keys[index]: list(each) for index, each in zip(some, zip(*found, strict=True), strict=True)}
    if known and trainer.is_world_process_zero():
        known.add({key: scores[key] for key in keys})
    for nth, column in enumerate(columns):
        rows = rows.add_column(column, [scores[key][nth] for key in keys])
    return rows


def _key(row: Mapping[str, Any]) -> str:
    ids = {name: ids for name, ids in row.items() if name == "prompt_ids" or is_answer(name)}
    return hashlib.sha256(json.dumps(ids, sort_keys=True).encode()).hexdigest()
