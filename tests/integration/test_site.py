"""`make docs`: the site builds strict, and says what the code says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from serve.settings import GatewaySettings

HOUSE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=HOUSE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_setting_of_the_gateway_is_in_the_reference(site: Path) -> None:
    page = (site / "reference/settings/index.html").read_text()

    missing = [name for name in GatewaySettings.model_fields if f"<code>HEED_{name.upper()}</code>" not in page]
    assert missing == []


def test_the_reference_tells_of_calls_and_commands(site: Path) -> None:
    assert "POST /v1/votes" in (site / "reference/calls/index.html").read_text()
    assert "heed rollback" in (site / "reference/commands/index.html").read_text()


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loads = re.compile(
        r'<(?:script|img|iframe)[^>]*\ssrc="?(?:https?:)?//'
        r'|<link[^>]*rel="?(?:stylesheet|preconnect)[^>]*href="?(?:https?:)?//'
        r'|<link[^>]*href="?(?:https?:)?//[^>]*rel="?(?:stylesheet|preconnect)'
    )

    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    assert [page for page in pages if loads.search(page.read_text())] == []
