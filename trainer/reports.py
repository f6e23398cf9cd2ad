"""Reports: where TRL sends each step's metrics besides the job's events. Nowhere, unless somebody asks for it.

`HEED_REPORT_TO` names any of these, with commas; each is a package of its own, set up by its own environment variables
(`WANDB_API_KEY`, `MLFLOW_TRACKING_URI`, `TRACKIO_SPACE_ID` …). TensorBoard and Trackio stay on this machine by default.
"""

import importlib.util
import os
from pathlib import Path
from typing import Final

from trainer.progress import RecipeRefused

PACKAGES: Final = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
    "wandb": ("wandb",),
}


def prepare(asked: str, folder: Path) -> list[str]:
    """Names as TRL takes them; TensorBoard writes into `folder`. Raises RecipeRefused for one that cannot be had."""
    names = [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        if name not in PACKAGES:
            raise RecipeRefused(f"--report-to must be of {', '.join(PACKAGES)}. {name!r} is none. Name one of them.")
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise RecipeRefused(
                f"--report-to must name what is installed. {PACKAGES[name][0]} is not. "
                f"`pip install {PACKAGES[name][0]}` does that; without --report-to metrics are in the job's events."
            )
    if "tensorboard" in names:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
    return names
