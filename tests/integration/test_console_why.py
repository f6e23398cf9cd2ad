"""The page "Why this word", pressed as a browser presses it, and what it asks asked by hand."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback.connection import Ledger
from serve.console.reading import Answered, log_ratios, reading
from tests.consoles import Browser, RunningConsole
from tests.gateways import OPERATOR, RunningGateway, running_gateway
from tests.integration.test_errors import expect_envelope
from tests.processes import free_port
from tests.scripted_engine import Script, scripted_engine

QUESTION = "How do I fly a kite?"


@pytest.fixture
def gateway(gateway_of_console: RunningGateway) -> RunningGateway:
    return gateway_of_console


@pytest.fixture
async def browser(gateway: RunningGateway, console: RunningConsole) -> AsyncIterator[Browser]:
    async with httpx.AsyncClient(base_url=console.url, timeout=30, trust_env=False) as http:
        yield Browser(http)


async def live(gateway: RunningGateway) -> str:
    adapter = await gateway.register(1, b"one")
    assert (await gateway.promote(adapter)).status_code == 200
    return adapter


def tokens(page: str) -> list[list[str]]:
    """What each ribbon shows, and a reader of the screen hears."""
    return [re.findall(r'role="option".*?aria-label="(.*?)"', one) for one in page.split('role="listbox"')[1:]]


async def test_an_answer_is_read_by_base_and_live_and_where_they_differ_is_told(
    gateway: RunningGateway, browser: Browser
) -> None:
    adapter = await live(gateway)
    gateway.engine.scripts.append(Script(tokens=("Run", " uphill")))
    answer = (await gateway.chat(QUESTION)).json()["id"]

    page, said, _ = await browser.press("why_read", answer, "heed", "")

    base, policy, changed = tokens(page)
    assert base == ["Run: 61 %", "␣uphill: 61 %", "&lt;|end|&gt;: 61 %"]
    assert [one.split(": ")[0] for one in policy] == [one.split(": ")[0] for one in base]
    assert all(re.search(r": −\d\.\d\d$", one) for one in changed)
    assert f"Read by heed-base and {adapter}" in said
    assert QUESTION in page
    assert "<q><bdi>" in page


async def test_nothing_of_a_reading_is_recorded(gateway: RunningGateway, browser: Browser) -> None:
    await live(gateway)
    answer = (await gateway.chat(QUESTION)).json()["id"]

    await browser.press("why_read", answer, "heed", "")

    kept = (await gateway.operator.get("/v1/chat/completions")).json()["data"]
    assert [one["id"] for one in kept] == [answer]
    assert len([body for body in gateway.engine.bodies if "prompt_logprobs" in body]) == 2


async def test_a_text_of_ones_own_is_read_and_the_base_alone_where_nothing_is_live(
    gateway: RunningGateway, browser: Browser
) -> None:
    page, said, _ = await browser.press("why_read_text", QUESTION, "<b>Run</b>", "heed", "")

    assert len(tokens(page)) == 3
    assert "is the base itself" in page
    assert "Read by heed-base." in said
    assert "<b>" not in page
    nothing, refused, _ = await browser.press("why_read_text", "", "Run", "heed", "")
    assert nothing == ""
    assert "Write both" in refused


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("chatcmpl-nobody", "chatcmpl-nobody"),
        ("../adapters", "begins with chatcmpl-"),
        ("", "begins with chatcmpl-"),
    ],
)
async def test_an_answer_that_is_not_there_is_a_sentence(
    answer: str, told: str, gateway: RunningGateway, browser: Browser
) -> None:
    page, said, _ = await browser.press("why_read", answer, "heed", "")

    assert page == ""
    assert told in said


async def test_a_gateway_that_is_down_is_a_sentence(browser: Browser, console: RunningConsole) -> None:
    console.turn_to(f"http://127.0.0.1:{free_port()}", OPERATOR)

    page, said, _ = await browser.press("why_read", "chatcmpl-1", "heed", "")

    assert page == ""
    assert "does not answer" in said


async def test_each_answer_of_the_chat_leads_here(gateway: RunningGateway, browser: Browser) -> None:
    _, _, chat, *_ = await browser.press("ask", QUESTION, None, "heed", "")

    (kept,) = (await gateway.operator.get("/v1/chat/completions")).json()["data"]
    assert f"(/why?answer={kept['id']})" in chat[-1]["content"][-1]["text"]


async def test_the_same_is_had_without_the_console(gateway: RunningGateway) -> None:
    """The calls of docs/api.md."""
    adapter = await live(gateway)
    asked = Answered([{"role": "user", "content": QUESTION}], {"role": "assistant", "content": "Run uphill"})
    sent = asked.opened("heed-base"), asked.whole("heed-base"), asked.whole("heed")

    replies = await asyncio.gather(*(gateway.http.post("/v1/chat/completions", json=body) for body in sent))

    opened, *wholes = (reply.json() for reply in replies)
    base, policy = (reading(opened, whole, asked.text) for whole in wholes)
    assert (base.model, policy.model) == ("heed-base", adapter)
    (ratio,) = {round(one, 6) for one in log_ratios(policy, base)}
    assert ratio < 0


@pytest.mark.parametrize(
    ("path", "asked", "param"),
    [
        (
            "/chat/completions",
            {"messages": [{"role": "user", "content": "x" * 204}], "prompt_logprobs": 0},
            "prompt_logprobs",
        ),
        ("/completions", {"prompt": list(range(51)), "echo": True, "logprobs": 1}, "echo"),
    ],
)
async def test_no_longer_prompt_is_read_than_can_be_told(
    path: str, asked: dict[str, Any], param: str, ledger: Ledger, tmp_path: Path
) -> None:
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine, reading_limit=50) as gateway:
        refused = await gateway.http.post(f"/v1{path}", json={"model": "heed", **asked})
        unread = {name: value for name, value in asked.items() if name not in ("prompt_logprobs", "echo")}
        answered = await gateway.http.post(f"/v1{path}", json={"model": "heed", **unread})

    expect_envelope(refused, 400, "prompt_too_long", param)
    assert "at most 50 tokens" in refused.json()["error"]["message"]
    assert "about 51" in refused.json()["error"]["message"]
    assert answered.status_code == 200
