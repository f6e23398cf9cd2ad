"""Nobody is barred from a page: axe-core finds no serious violation of ours, light, dark or on a phone, nothing lies
beyond the screen's edge, and who has only a keyboard chats and votes.

What it finds in the toolkit's own elements is listed here, so that a new version of Gradio is looked at again.
"""

from dataclasses import dataclass

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, expect

from tests.browser.page import LOOKS, PAGES, Trouble, ask, opened
from tests.consoles import RunningConsole
from tests.gateways import RunningGateway

STEPS = 20
"""From the message back to the thumbs above it."""

SERIOUS = ("serious", "critical")


@dataclass(frozen=True)
class Known:
    """A violation of Gradio 6.31's own markup or colours."""

    rule: str
    within: str
    """Part of the element as HTML."""


TOOLKIT = (
    # A table that is wider than the phone: its frame scrolls by touch, and has nothing in it that takes the focus.
    Known("scrollable-region-focusable", 'class="virtual-table-viewport'),
)


async def overhang(page: Page) -> int:
    """Pixels by which the page is wider than the screen."""
    return int(await page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


async def violations(page: Page) -> list[str]:
    found = (await Axe().run(page)).response["violations"]
    return [
        f"{one['id']}: {node['html'][:300]} {node['failureSummary'][:300]}"
        for one in found
        if one["impact"] in SERIOUS
        for node in one["nodes"]
        if not any(known.rule == one["id"] and known.within in node["html"] for known in TOOLKIT)
    ]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("path", PAGES)
async def test_a_page_bars_nobody(
    path: str, look: str, browser: Browser, gateway: RunningGateway, console: RunningConsole, trouble: Trouble
) -> None:
    async with opened(browser, console.url, trouble, **LOOKS[look]) as page:
        await page.goto(path)
        await expect(page.get_by_label(PAGES[path], exact=True).first).to_be_visible()
        if path == "/":
            await ask(page, "How do I fly a kite?")

        assert await violations(page) == []
        assert await overhang(page) <= 0


async def test_by_keyboard_alone_one_chats_and_votes(page: Page, gateway: RunningGateway) -> None:
    await page.goto("/")
    await expect(page.get_by_role("textbox", name="Your message")).to_be_focused()

    await page.keyboard.type("How do I fly a kite?")
    await page.keyboard.press("Enter")
    like = page.get_by_role("button", name="Like", exact=True)
    await expect(like).to_be_visible()
    await expect(page.get_by_role("button", name="Retry")).to_be_enabled()
    for _ in range(STEPS):
        await page.keyboard.press("Shift+Tab")
        if await like.evaluate("button => button === document.activeElement"):
            break
    await page.keyboard.press("Enter")

    await expect(page.get_by_role("button", name="Liked", exact=True)).to_be_visible()
    await expect(page.get_by_text("Noted")).to_be_visible()
    (vote,) = (await gateway.http.get("/v1/votes")).json()["data"]
    assert vote["rating"] == "up"

    await page.goto("/votes")
    await expect(page.locator("#heed-votes")).to_contain_text("How do I fly a kite?")
