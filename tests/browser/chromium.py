"""The browser of the tests: a Chromium on PATH, else the one that Playwright has fetched.

`python -m tests.browser.chromium` prints which one, and fails where there is none; requirements/browser.sh fetches one.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, ProxySettings, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
NOWHERE = ProxySettings(server="http://127.0.0.1:9", bypass="127.0.0.1")
"""A proxy that nobody listens at, for everything but loopback: no network, whatever the machine has."""

MISSING = "there is no Chromium that runs here; `bash requirements/browser.sh` looks for one and fetches one"


def _runs(binary: str) -> bool:
    """Ubuntu has a `chromium-browser` that only says where to get one, and Playwright's may lack libraries."""
    try:
        return subprocess.run([binary, "--version"], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _candidates() -> Iterator[str]:
    yield from filter(None, map(shutil.which, NAMES))
    kept = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    yield from map(str, sorted(kept.glob("chromium*/*/*headless[_-]shell"), reverse=True))


def find_chromium() -> str | None:
    return next(filter(_runs, _candidates()), None)


@asynccontextmanager
async def running_chromium(binary: str) -> AsyncIterator[Browser]:
    """Reaches loopback and nothing else."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=binary, proxy=NOWHERE)
        yield browser
        await browser.close()


if __name__ == "__main__":
    found = find_chromium()
    print(found or MISSING)
    sys.exit(not found)
