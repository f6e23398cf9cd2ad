"""What the console's tests share: a browser, and a page of it in whose log nothing may be found."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from feedback.connection import Ledger
from tests.browser.chromium import MISSING, find_chromium, running_chromium
from tests.browser.page import STEP_MS, Trouble, opened
from tests.consoles import RunningConsole, running_console
from tests.gateways import OPERATOR, RunningGateway, running_gateway
from tests.scripted_engine import scripted_engine

expect.set_options(timeout=STEP_MS)


@pytest.fixture(scope="session", autouse=True)
def chromium() -> str:
    """Looked for before anything is started."""
    found = find_chromium()
    if found is None:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up(MISSING)
    return found


@pytest.fixture
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with running_chromium(chromium) as browser:
        yield browser


@pytest.fixture
def trouble() -> Iterator[Trouble]:
    trouble = Trouble()
    yield trouble
    assert trouble.all == []


@pytest.fixture(scope="session")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConsole]:
    """A console beside whatever gateway it is turned to."""
    with running_console(tmp_path_factory.mktemp("console")) as console:
        yield console


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path, console: RunningConsole) -> AsyncIterator[RunningGateway]:
    """A gateway whose engine says what it is told to, with the console turned to it."""
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine) as gateway:
        console.turn_to(gateway.url, OPERATOR)
        yield gateway


@pytest.fixture
async def page(
    browser: Browser, gateway: RunningGateway, console: RunningConsole, trouble: Trouble
) -> AsyncIterator[Page]:
    async with opened(browser, console.url, trouble) as page:
        yield page
