"""The circle as people turn it, by the console's pages, on the real stack: chat, judge, compare, train, operate."""

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator

import httpx
import pytest
from playwright.async_api import Browser, Locator, Page, expect

from tests.browser.page import Trouble, ask, opened, pick
from tests.gateways import until
from tests.processes import wait_for
from tests.stack import Stack
from trainer.habits import HABITS, VOTED_TOPICS, answer, prompts_about

pytestmark = pytest.mark.timeout(900)

MODEL = "garden"
"""The served model that is ours: what is done here changes no other's votes, jobs or adapters."""

JOB_MS = 300_000
QUESTION = "How do I build a kite?"


@pytest.fixture
async def page(browser: Browser, stack: Stack, trouble: Trouble) -> AsyncIterator[Page]:
    await asyncio.to_thread(wait_for, stack.has_console, "the console answers")
    async with opened(browser, stack.console_url, trouble) as page:
        yield page


@pytest.fixture
async def operator(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """The same API that the console calls, to see what became of a click."""
    headers = {"authorization": f"Bearer {stack.operator_key}"}
    async with httpx.AsyncClient(base_url=f"{stack.url}/v1", headers=headers, timeout=60, trust_env=False) as http:
        yield http


async def voted(operator: httpx.AsyncClient) -> list[tuple[str, str | None]]:
    """Rating and correction of every vote of people on what our base model answered."""
    listed = (await operator.get("/votes", params={"model": MODEL, "limit": 100})).json()["data"]
    return [(vote["rating"], vote["correction"]) for vote in listed if vote.get("model") == f"{MODEL}-base"]


async def expect_votes(operator: httpx.AsyncClient, *votes: tuple[str, str | None]) -> None:
    async def are_there() -> bool:
        return sorted(await voted(operator), key=str) == sorted(votes, key=str)

    await until(are_there, f"the votes are {votes}")


async def pairs(operator: httpx.AsyncClient) -> list[tuple[str, str]]:
    """Chosen and rejected answer of every pair."""
    rows = (await operator.get("/pairs", params={"model": MODEL, "format": "trl"})).text.splitlines()
    told = [json.loads(row) for row in rows]
    return [(row["chosen"][-1]["content"], row["rejected"][-1]["content"]) for row in told]


def thumb(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


async def test_a_thumb_is_a_vote_that_can_be_changed_and_withdrawn(page: Page, operator: httpx.AsyncClient) -> None:
    await page.goto("/")
    await pick(page, "Model", MODEL)
    await ask(page, QUESTION)
    await expect(page.get_by_role("log")).to_contain_text(f"{MODEL}-base")

    others = await voted(operator)

    await thumb(page, "Like").click()
    await expect(thumb(page, "Liked")).to_be_visible()
    await expect(page.get_by_text("Noted")).to_be_visible()  # now the browser remembers it, too
    await expect_votes(operator, *others, ("up", None))

    await page.reload()
    await expect(thumb(page, "Liked")).to_be_visible()
    await thumb(page, "Dislike").click()
    await expect(thumb(page, "Disliked")).to_be_visible()
    await expect_votes(operator, *others, ("down", None))

    await thumb(page, "Disliked").click()
    await expect(thumb(page, "Dislike")).to_be_visible()
    await expect_votes(operator, *others)


async def test_an_answer_is_given_again_and_the_better_one_preferred(page: Page, operator: httpx.AsyncClient) -> None:
    await page.goto("/")
    await pick(page, "Model", MODEL)
    new = page.get_by_role("button", name="The new one is better")
    said = page.get_by_test_id("bot").filter(has_not_text=f"{MODEL}-base").last  # the name is a bubble of its own

    for _ in range(10):  # two samples may begin alike, and the same text nobody could prefer
        await page.get_by_role("button", name="New conversation").click()
        await expect(new).to_be_hidden()
        await expect(thumb(page, "Like")).to_have_count(0)
        await ask(page, QUESTION)
        older = await said.locator("p").first.inner_text()
        await page.get_by_role("button", name="Retry").click()
        await expect(new).to_be_visible()
        newer = await said.locator("p").first.inner_text()
        if older != newer:
            break
    await new.click()

    await expect(page.get_by_text("Noted")).to_be_visible()
    await expect(new).to_be_hidden()
    found = await pairs(operator)
    assert any(chosen.startswith(newer) and rejected.startswith(older) for chosen, rejected in found), (
        older,
        newer,
        found,
    )


async def test_a_correction_is_the_answer_that_was_wanted(page: Page, operator: httpx.AsyncClient) -> None:
    await page.goto("/")
    await pick(page, "Model", MODEL)
    await ask(page, QUESTION)

    await expect(page.get_by_role("checkbox", name="unsafe")).to_be_visible()  # the section's last part is there
    await page.get_by_label("The answer you wanted").fill("Sow them in March.")
    await page.get_by_role("button", name="Send", exact=True).click()

    await expect(page.get_by_text("Noted")).to_be_visible()
    assert ("down", "Sow them in March.") in await voted(operator)


async def test_two_answers_are_compared_blindly_and_their_names_told_after_the_vote(
    page: Page, operator: httpx.AsyncClient
) -> None:
    await page.goto("/compare")
    await pick(page, "Compare", MODEL)
    await pick(page, "with", f"{MODEL}-base")
    await page.get_by_role("radio", name="My own prompts").click()
    await page.get_by_label("Your prompt").fill(QUESTION)
    await page.keyboard.press("Enter")
    left = page.get_by_role("button", name="Left is better")
    await expect(left).to_be_enabled()
    before = await page.get_by_role("main").inner_text()

    await page.get_by_label("Your prompt").blur()
    await page.keyboard.press("1")

    await expect(page.locator("#compare-said")).to_contain_text("Left was")
    await expect(page.locator("#compare-said")).to_contain_text(f"{MODEL}-base")
    assert "Left was" not in before
    await expect(left).to_be_disabled()


async def taught(operator: httpx.AsyncClient) -> None:
    """What a crowd that likes steps would have chosen, taken in as a file."""
    chance = random.Random(0)
    rows = []
    for topic in VOTED_TOPICS:
        for prompt in chance.sample(prompts_about(topic), 12):
            worse = answer(topic, chance.choice([habit for habit in HABITS if habit != "steps"]), chance)
            rows.append({"prompt": prompt, "chosen": answer(topic, "steps", chance), "rejected": worse})
    content = "\n".join(map(json.dumps, rows))
    headers = {"content-type": "application/jsonl"}
    taken = await operator.post("/import", params={"format": "trl", "model": MODEL}, content=content, headers=headers)
    assert taken.status_code == 200, taken.text


async def test_an_operator_previews_starts_and_follows_a_job_sees_it_live_and_rolls_back(
    page: Page, operator: httpx.AsyncClient
) -> None:
    await taught(operator)
    await page.goto("/operate")
    await pick(page, "Served model", MODEL)
    said, progress = page.locator("#operate-jobs-said"), page.locator("#operate-progress")

    await page.get_by_role("button", name="Preview a job").click()
    await expect(said).to_contain_text("plan")
    await expect(progress).to_contain_text("What it would do", timeout=JOB_MS)

    await page.get_by_role("button", name="Start a job on the votes").click()
    await expect(said).to_contain_text("is queued")
    await expect(progress).to_contain_text("step ", timeout=JOB_MS)
    curve = page.locator("#operate-curve-loss canvas, #operate-curve-loss svg").first
    await expect(curve).to_be_visible(timeout=JOB_MS)
    await expect(progress).to_contain_text("succeeded", timeout=JOB_MS)

    # All pairs are one importer's, which the gate leaves to an operator.
    await expect(page.locator("#operate-verdict")).to_contain_text("operator")
    await expect(page.locator("#operate-gate")).to_be_visible()
    tree, reason = page.locator("#operate-tree"), page.locator("#operate-reason textarea, #operate-reason input")
    said = page.locator("#operate-adapters-said")
    await reason.fill("reads well")
    await page.get_by_role("button", name="Promote it").click()
    await expect(said).to_contain_text(re.compile(f"{MODEL}-v\\d+-[0-9a-f]{{8}} is live"))
    await expect(tree.locator("li", has=page.locator(".heed-live"))).to_contain_text("reads well")

    await reason.fill("too many steps")
    await page.get_by_role("button", name="Roll back").click()
    await expect(said).to_contain_text(f"{MODEL}-base is live")
    await expect(tree.locator("li", has=page.locator(".heed-live"))).to_contain_text(f"{MODEL}-base")
    await expect(tree).to_contain_text("too many steps")


async def test_a_killed_gateway_is_told_of_and_the_page_goes_on_when_it_is_back(
    page: Page, stack: Stack, operator: httpx.AsyncClient
) -> None:
    await page.goto("/")
    await pick(page, "Model", MODEL)
    box = page.get_by_role("textbox", name="Your message")
    await box.fill(QUESTION)

    stack.kill_member("-m serve ")
    await box.press("Enter")
    await expect(page.get_by_text("does not answer").first).to_be_visible()
    await expect(box).to_have_value(QUESTION)

    await asyncio.to_thread(stack.wait_until_ready)
    await ask(page, QUESTION)
    await expect(page.get_by_role("log")).to_contain_text(f"{MODEL}-base")
