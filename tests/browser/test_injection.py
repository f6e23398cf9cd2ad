"""What people and models write is text: it never runs, and it loads nothing from elsewhere."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.page import Trouble, ask, opened
from tests.browser.payloads import PAYLOADS
from tests.consoles import RunningConsole
from tests.gateways import RunningGateway
from tests.scripted_engine import Script

ALL = "\n\n".join(PAYLOADS.values())
BUILT = ", ".join(
    f"[role=log] {tag}" for tag in ("input", "form", "iframe", "object", "style", "base", "meta", "details")
)
"""What a text may not put on the page, though it runs nothing: a model could ask for a password in it."""


@pytest.fixture
def seen() -> Trouble:
    """Not asked to be empty: a picture that the page's policy stops is an error in the log, and a good one."""
    return Trouble()


@pytest.fixture
async def page(
    browser: Browser, gateway: RunningGateway, console: RunningConsole, seen: Trouble
) -> AsyncIterator[Page]:
    async with opened(browser, console.url, seen) as page:
        await page.add_init_script("window.runs = 0; window.pwned = () => { window.runs += 1 }; window.alert = pwned")
        yield page


async def expect_harmless(page: Page, seen: Trouble) -> None:
    assert await page.evaluate("window.runs") == 0
    assert page.url.startswith("http://127.0.0.1:")
    assert seen.elsewhere == []


async def touch_all(page: Page, root: str) -> None:
    """What a hand would do, for handlers that wait for it: hover, focus, and click links that are no addresses."""
    await page.evaluate(
        """root => document.querySelectorAll(root + ' *').forEach(each => {
            for (const name of ['mouseover', 'mouseenter', 'focus', 'toggle']) each.dispatchEvent(new Event(name));
            if (each.tagName === 'A' && !(each.getAttribute('href') || '').startsWith('http')) each.click();
        })""",
        root,
    )


async def test_the_trap_springs_where_a_payload_runs(page: Page) -> None:
    await page.goto("/")
    await page.evaluate("payload => { document.body.insertAdjacentHTML('beforeend', payload) }", PAYLOADS["image"])

    await page.wait_for_function("window.runs > 0")


async def test_questions_and_answers_are_never_run(page: Page, gateway: RunningGateway, seen: Trouble) -> None:
    """Neither as they come, nor as the browser remembers them."""
    await page.goto("/")
    names = page.get_by_text("heed-base", exact=True)
    for payload in PAYLOADS.values():
        gateway.engine.scripts.append(Script(tokens=(payload[:9], payload[9:])))
        await ask(page, payload)
    await touch_all(page, "[role=log]")
    await expect_harmless(page, seen)

    await page.reload()
    await expect(names).to_have_count(len(PAYLOADS))
    await touch_all(page, "[role=log]")

    await expect_harmless(page, seen)
    assert await page.locator(BUILT).all_inner_texts() == []


async def test_reasons_in_the_history_of_adapters_are_never_run(
    page: Page, gateway: RunningGateway, seen: Trouble
) -> None:
    adapter = await gateway.register(1, b"one")
    told = {"reason": ALL[:400] + " the end of it"}
    assert (await gateway.operator.post(f"/v1/adapters/{adapter}/promote", json=told)).status_code == 200

    await page.goto("/operate")
    await expect(page.get_by_role("main")).to_contain_text("the end of it")
    await touch_all(page, "main")

    await expect_harmless(page, seen)
