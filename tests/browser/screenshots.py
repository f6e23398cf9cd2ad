"""Pictures of every page, light, dark and on a phone: `make screenshots` writes docs/images/console-*.png.

What they show is real, from the embedded stack: a crowd has voted, a job has trained, one answer is judged.
"""

import asyncio
import io
import sys
import tempfile
from pathlib import Path
from random import Random

from PIL import Image
from playwright.async_api import Browser, Page, expect

from tests.browser.chromium import MISSING, find_chromium, running_chromium
from tests.browser.page import LOOKS, PAGES, Trouble, ask, opened, pick
from tests.processes import ROOT, wait_for
from tests.stack import Stack
from trainer.habits import answer

LISTS = {"/": "Model", "/compare": "Compare", "/why": "Compare base with", "/operate": "Served model"}
IMAGES = ROOT / "docs" / "images"
VOTES = 1400
COLORS = 64
"""A page has few; so a picture takes a third of the bytes."""


async def fill(page: Page, path: str, model: str) -> None:
    """What a visitor would see who has just used the page."""
    await page.goto(path)
    await expect(page.get_by_label(PAGES[path], exact=True).first).to_be_visible()
    if path in LISTS:
        await pick(page, LISTS[path], model)
    if path == "/":
        await ask(page, "How do I build a kite?")
        await page.get_by_role("button", name="Like", exact=True).click()
        await expect(page.get_by_text("Noted")).to_be_visible()
    elif path == "/compare":
        await page.get_by_role("radio", name="My own prompts").click()
        await page.get_by_label("Your prompt").fill("How do I bake a loaf of bread?")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("button", name="Left is better")).to_be_enabled()
    elif path == "/why":
        await page.get_by_label("What was asked").fill("How do I build a kite?")
        await page.get_by_label("The answer to read").fill(answer("kite", "steps", Random(0)))
        await page.get_by_role("button", name="Read the text").click()
        await page.get_by_role("listbox").last.get_by_role("option").nth(3).click()
    elif path == "/operate":
        await expect(page.locator("#operate-tree")).to_contain_text(f"{model}-v1-")
        await expect(page.locator("#operate-tree .heed-live")).to_be_visible()
        await expect(page.locator("#operate-progress")).to_contain_text("succeeded")


def small(png: bytes) -> bytes:
    """At most 900 pixels wide, in few colours."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail((900, 1400))
    out = io.BytesIO()
    picture.quantize(COLORS).save(out, "PNG", optimize=True)
    return out.getvalue()


async def shoot(browser: Browser, url: str, model: str = "heed") -> None:
    for look, device in LOOKS.items():
        for path in PAGES:
            async with opened(browser, url, Trouble(), **device) as page:
                await fill(page, path, model)
                await page.mouse.move(0, 0)
                name = f"console-{path.strip('/') or 'chat'}-{look}.png"
                (IMAGES / name).write_bytes(small(await page.screenshot(animations="disabled")))
                print(f"  docs/images/{name}")


def turn(stack: Stack) -> None:
    """So that there is something to see."""
    ran = stack.run(
        "demo", "--votes", str(VOTES), "--measured", "8", "--out", str(stack.var / "demo.png"), timeout_s=900
    )
    if ran.returncode:
        sys.exit(ran.stdout + ran.stderr)


async def main(stack: Stack, binary: str) -> None:
    async with running_chromium(binary) as browser:
        await shoot(browser, stack.console_url)


if __name__ == "__main__":
    found = find_chromium()
    if found is None:
        sys.exit(MISSING)
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(var=Path(folder), pocket=ROOT / "var" / "pocket")
        stack.start()
        try:
            wait_for(stack.has_console, "the console answers", 60)
            turn(stack)
            asyncio.run(main(stack, found))
        finally:
            stack.stop()
