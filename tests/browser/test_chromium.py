"""Where there is no browser the tests that need one are skipped with the reason; in CI that is a failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser.chromium import MISSING
from tests.processes import ROOT


@pytest.mark.parametrize(("ci", "code", "told"), [("", 0, "1 skipped"), ("true", 1, "1 error")])
def test_a_missing_browser_is_told_and_in_ci_a_failure(ci: str, code: int, told: str, tmp_path: Path) -> None:
    env = {**os.environ, "PATH": str(tmp_path), "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path), "CI": ci}
    one = "tests/browser/test_network.py::test_code_and_formulas_are_drawn_with_what_the_console_serves"

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", one, "-q", "-p", "no:cacheprovider"],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip

    assert (ran.returncode, MISSING in ran.stdout, told in ran.stdout) == (code, True, True), ran.stdout
