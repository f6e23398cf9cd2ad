"""A gateway that is away is a sentence on every page, which goes by itself when it is back."""

import pytest
from playwright.async_api import Page, expect

from tests.browser.page import PAGES
from tests.consoles import RunningConsole
from tests.gateways import OPERATOR, RunningGateway
from tests.processes import free_port


@pytest.mark.parametrize("path", PAGES)
async def test_an_outage_is_told_and_forgotten(
    path: str, page: Page, gateway: RunningGateway, console: RunningConsole
) -> None:
    alert = page.locator(".heed-alert").filter(has_text="does not answer").first
    await page.goto(path)
    await expect(page.get_by_label(PAGES[path], exact=True).first).to_be_visible()
    await expect(alert).to_be_hidden()

    console.turn_to(f"http://127.0.0.1:{free_port()}", OPERATOR)
    await expect(alert).to_be_visible()
    await expect(alert).to_contain_text("make run")
    console.turn_to(gateway.url, OPERATOR)

    await expect(alert).to_be_hidden()
