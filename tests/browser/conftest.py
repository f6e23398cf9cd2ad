"""What the console's tests share: a browser, and a page of it in whose log nothing may be found."""

import os
from collections.abc import AsyncIterator, Iterator

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.chromium import MISSING, find_chromium, running_chromium
from tests.browser.page import STEP_MS, Trouble, opened
from tests.consoles import RunningConsole
from tests.gateways import RunningGateway

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


@pytest.fixture
def gateway(gateway_of_console: RunningGateway) -> RunningGateway:
    return gateway_of_console


@pytest.fixture
async def page(
    browser: Browser, gateway: RunningGateway, console: RunningConsole, trouble: Trouble
) -> AsyncIterator[Page]:
    async with opened(browser, console.url, trouble) as page:
        yield page
