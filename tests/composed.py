"""compose.yaml as Docker Compose itself reads it: merged, interpolated, checked."""

import functools
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.processes import ROOT, said

DOCKER_COMPOSE = str(Path(sys.executable).with_name("docker-compose"))
PROFILES = {"gpu": 1, "two-gpu": 2, "replicas": 3, "cpu": 0, "observability": 0}
"""And the cards that each needs."""

Json = dict[str, Any]


def composed(*profiles: str, override: str = "", heed_env: str = "", env: dict[str, str] | None = None) -> Json:
    """What `docker compose config` says of these profiles, and without any of what `docker compose up` starts.

    Read in an empty folder with compose.yaml and .env alone, lest somebody's own settings take part. Raises
    AssertionError with Compose's words.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("compose.yaml", ".env"):
            shutil.copy(ROOT / file, folder)
        for file, text in (("compose.override.yaml", override), ("heed.env", heed_env)):
            if text:
                (folder / file).write_text(text)
        flags = [flag for profile in profiles for flag in ("--profile", profile)]
        told = said([DOCKER_COMPOSE, *flags, "config", "--format", "json"], folder, env)
        read: Json = json.loads(told.replace(name, str(ROOT)))
    return read


@functools.cache
def services(*profiles: str) -> dict[str, Json]:
    return dict(composed(*profiles)["services"])


def seconds(duration: str) -> float:
    """Of Compose's way to write them, such as 1m30s."""
    total, number = 0.0, ""
    for sign in duration:
        if sign in "hms":
            total, number = total + float(number) * {"h": 3600, "m": 60, "s": 1}[sign], ""
        else:
            number += sign
    return total
