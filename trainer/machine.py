"""The machine that a recipe runs on: how many threads it may use, and what ends it.

Needs no torch, because the thread count must be in the environment before torch is imported.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from trainer.hyperparameters import TINY_WIDTH

PR_SET_PDEATHSIG = 1
# glibc's mallopt: from which size on memory is borrowed from the kernel piece by piece, and how much may stay unused.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def thread_quota() -> int:
    """Real CPU share of this process: HEED_THREADS, else the smaller of affinity and cgroup quota.

    More threads than that wait for each other at barriers: a run of 3 s took 32 s with two threads on one busy core.
    """
    if asked := os.environ.get("HEED_THREADS"):
        return max(1, int(asked))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(Path("/sys/fs/cgroup"))
    return max(1, min(usable, int(quota)) if quota else usable)


def threads_for(base: str | None) -> int:
    """A tiny base gains nothing from a second thread: 21 CPU seconds for a job with one, 22 with two, which on busy
    cores took 49 s instead of 30 s."""
    if base is None or "HEED_THREADS" in os.environ:
        return thread_quota()
    try:
        is_tiny = json.loads((Path(base) / "config.json").read_text())["hidden_size"] <= TINY_WIDTH
    except (OSError, ValueError, KeyError):  # a Hub id, or a model in parts
        is_tiny = False
    return 1 if is_tiny else thread_quota()


def _cgroup_quota(root: Path) -> float | None:
    try:
        if (root / "cpu.max").is_file():
            limit, period = (root / "cpu.max").read_text().split()
            return None if limit == "max" else int(limit) / int(period)
        limit = (root / "cpu" / "cpu.cfs_quota_us").read_text()
        period = (root / "cpu" / "cpu.cfs_period_us").read_text()
    except (OSError, ValueError):
        return None
    return int(limit) / int(period) if int(limit) > 0 else None


def prepare_environment(base: str | None = None, *, alone: bool = False) -> None:
    """To be called before torch is imported: memory, threads, one GPU, no telemetry, no hub when the base is a folder.

    `alone` is for a recipe that has the cores for itself most of the time.
    """
    keep_freed_memory()
    os.environ["OMP_NUM_THREADS"] = str(threads_for(base))
    # A thread that waits at a barrier spins by default, on the very core that a busy neighbour needs. A step of the
    # pocket model took 0.13 s alone and 4 s beside another busy process; with sleeping waits 0.19 s and 0.28 s, with
    # 1000 turns of spinning 0.13 s and 0.76 s.
    if alone:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    else:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if base is None or Path(base).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
    # The transformers Trainer wraps the model in DataParallel when it sees several GPUs and no launcher.
    if "LOCAL_RANK" not in os.environ:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]


def keep_freed_memory() -> None:
    """Let glibc keep what tensors gave back, instead of returning it to the kernel and faulting it in again.

    A job of the pocket model spent 0.9 of 6.2 CPU seconds in 465,000 page faults, with this 0.1 in 46,000, and held
    749 MB instead of 708. Other C libraries have no such function and are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent ends, however it ends; elsewhere callers poll `has_lost`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def has_lost(parent: int) -> bool:
    return os.getppid() != parent
