"""What a model thought of each word is seen: by hand, by keyboard, and by what a reader of the screen is told."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.page import PHONE, Trouble, ask, opened, pick
from tests.browser.test_accessibility import overhang, violations
from tests.consoles import RunningConsole
from tests.gateways import RunningGateway
from tests.processes import wait_for
from tests.stack import Stack


@pytest.fixture
async def real(browser: Browser, stack: Stack, trouble: Trouble) -> AsyncIterator[Page]:
    await asyncio.to_thread(wait_for, stack.has_console, "the console answers")
    async with opened(browser, stack.console_url, trouble) as page:
        yield page


@pytest.mark.timeout(900)
async def test_token_probabilities_of_an_answer_are_a_click_away(real: Page) -> None:
    page = real
    await page.goto("/")
    await pick(page, "Model", "garden")
    await ask(page, "How do I build a kite?")
    await page.get_by_role("link", name="Why these words?").click()

    by_base = page.get_by_role("listbox", name="Tokens as garden-base reads them")
    tokens = by_base.get_by_role("option")
    await expect(tokens.last).to_have_attribute("aria-label", re.compile(r"^<\|end\|>: "))
    labels = [await one.get_attribute("aria-label") or "" for one in await tokens.all()]
    assert all(re.search(r": (\d+(\.\d)? %|under 0\.1 %)$", label) for label in labels)
    assert len(set(labels)) > 5


async def test_a_token_is_chosen_by_hand_or_by_keys_and_all_of_it_is_told(
    browser: Browser, gateway: RunningGateway, console: RunningConsole, trouble: Trouble
) -> None:
    adapter = await gateway.register(1, b"one")
    assert (await gateway.promote(adapter)).status_code == 200

    async with opened(browser, console.url, trouble, **PHONE) as page:
        await page.goto("/")
        await ask(page, "How do I fly a kite?")
        await page.get_by_role("link", name="Why these words?").click()
        token = page.get_by_role("listbox", name=f"Tokens as {adapter} reads them").get_by_role("option")
        told = page.get_by_role("region", name="The chosen token")
        await token.nth(1).hover()
        await expect(told).to_contain_text("Token 2 of 4")
        await expect(told.get_by_role("row")).to_have_count(6)

        await token.first.click()
        await page.keyboard.press("ArrowRight")
        await page.keyboard.press("ArrowRight")
        await expect(token.nth(2)).to_be_focused()
        await expect(told).to_contain_text("Token 3 of 4")
        await expect(told).to_contain_text("log-ratio −")
        await expect(page.get_by_text("Sum of the log-ratios")).to_be_visible()

        assert await violations(page) == []
        assert await overhang(page) <= 0
