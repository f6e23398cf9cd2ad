"""A page of the console as a person has it open, and what went wrong in it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, ConsoleMessage, Error, Page, Request, Response, expect

LOCAL = ("127.0.0.1", "localhost")
PAGES = {"/": "Your message", "/votes": "Your votes, newest first", "/compare": "Compare", "/operate": "Served model"}
"""Each page, and the label of a control by which it is known to be there."""

DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
LOOKS: dict[str, dict[str, Any]] = {
    "light": DESKTOP,
    "dark": DESKTOP | {"color_scheme": "dark"},
    "phone": PHONE,
}
STEP_MS = 30_000
"""For anything that a person would wait a moment for, on a machine busy with training."""


@dataclass
class Trouble:
    """What a careful person would find in the browser's log."""

    elsewhere: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("request", self._request)
        page.on("requestfailed", self._failed)
        page.on("response", self._response)
        page.on("console", self._message)
        page.on("pageerror", self._error)

    def _request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.hostname not in LOCAL:
            self.elsewhere.append(request.url)

    def _failed(self, request: Request) -> None:
        if request.failure == "csp" and request.url in self.elsewhere:
            self.elsewhere.remove(request.url)  # it never left
        # A stream that the page or we have ended is not a failure.
        if request.failure != "net::ERR_ABORTED":
            self.failed.append(f"{request.url}: {request.failure}")

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self.failed.append(f"{response.url}: {response.status}")

    def _error(self, error: Error) -> None:
        if error.name != "AbortError":  # a stream again, that a reload has ended
            self.errors.append(str(error))

    def _message(self, message: ConsoleMessage) -> None:
        if message.type == "error" and "AbortError" not in message.text:
            self.errors.append(f"{message.text} ({message.location})")

    @property
    def all(self) -> list[str]:
        return [*self.elsewhere, *self.failed, *self.errors]


@asynccontextmanager
async def opened(browser: Browser, url: str, trouble: Trouble, **device: Any) -> AsyncIterator[Page]:
    """A browser that nobody has used before, at the console's door."""
    context = await browser.new_context(base_url=url, locale="en-US", **(device or DESKTOP))
    context.set_default_timeout(STEP_MS)
    page = await context.new_page()
    trouble.watch(page)
    yield page
    await context.close()


async def ask(page: Page, text: str) -> None:
    """Send a message by the keyboard and read the whole answer."""
    answers = page.get_by_role("button", name="Like", exact=True)
    before = await answers.count()
    box = page.get_by_role("textbox", name="Your message")
    await box.fill(text)
    await box.press("Enter")
    await expect(answers).to_have_count(before + 1)
    await expect(page.get_by_role("button", name="Retry")).to_be_enabled()  # it waits as long as the answer grows


async def pick(page: Page, label: str, choice: str) -> None:
    """Choose from a list."""
    await page.get_by_role("combobox", name=label, exact=True).click()
    choices = page.get_by_role("listbox").get_by_role("option")
    await choices.and_(page.get_by_label(choice, exact=True)).click()
    await expect(choices).to_have_count(0)  # they fade away
