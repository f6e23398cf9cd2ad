"""The console needs nobody but this machine: with no other network every page is whole, and its log is empty."""

import pytest
from playwright.async_api import Page, expect

from tests.browser.page import PAGES, ask
from tests.gateways import RunningGateway
from tests.scripted_engine import Script


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_is_whole_without_any_network_but_loopback(path: str, page: Page) -> None:
    await page.goto(path)

    await expect(page.get_by_label(PAGES[path], exact=True)).to_be_visible()
    await expect(page.get_by_role("main")).to_be_visible()


async def test_code_and_formulas_are_drawn_with_what_the_console_serves(page: Page, gateway: RunningGateway) -> None:
    gateway.engine.scripts.append(
        Script(tokens=("The sum is $$\\sum_i i^2$$ and in Python:\n\n```python\n", "sum(x)\n```"))
    )
    await page.goto("/")

    await ask(page, "How do I add squares?")

    log = page.get_by_role("log")
    await expect(log.locator(".katex")).to_be_visible()
    await expect(log.locator("pre code .token").first).to_be_visible()
    assert (
        await page.evaluate("document.fonts.ready.then(all => [...all].filter(one => one.status == 'error').length)")
        == 0
    )
