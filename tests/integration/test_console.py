"""The console as a process beside a real gateway and a real ledger, pressed as a browser presses it."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.console.settings import ConsoleSettings
from tests.consoles import Browser, RunningConsole
from tests.gateways import OPERATOR, RunningGateway
from tests.processes import ROOT, free_port
from tests.scripted_engine import Script

NOTHING: Any = None  # a gr.State keeps its value in the console: a browser sends null for it


@pytest.fixture
def gateway(gateway_of_console: RunningGateway) -> RunningGateway:
    return gateway_of_console


@pytest.fixture
async def browser(console: RunningConsole) -> AsyncIterator[Browser]:
    async with httpx.AsyncClient(base_url=console.url, timeout=30, trust_env=False) as http:
        yield Browser(http)


async def remembered(browser: Browser) -> dict[str, Any]:
    """What the page knows of itself after it was opened."""
    memory, *_ = await browser.press("recall", {"voter": "", "turns": []})
    assert isinstance(memory, dict)
    return memory


async def ask(browser: Browser, text: str = "How do I fly a kite?") -> list[Any]:
    return await browser.press("ask", text, NOTHING, "heed", "")


def said(chat: list[dict[str, Any]]) -> list[str]:
    """Each message's parts in one line: an answer's second part is its adapter's name."""
    return [" / ".join(part["text"] for part in message["content"]) for message in chat]


async def test_an_answer_is_shown_as_it_comes_and_names_its_adapter(gateway: RunningGateway, browser: Browser) -> None:
    gate = asyncio.Semaphore(1)
    gateway.engine.scripts.append(Script(tokens=("Run", " into", " the wind"), gate=gate))

    steps = browser.watch("ask", "How do I fly a kite?", NOTHING, "heed", "")
    first = await anext(step async for step in steps if "Run" in str(step))
    gate.release()
    gate.release()
    *_, last = [step async for step in steps]

    assert "into" not in str(first)
    chat = last["output"]["data"][2]["value"]
    assert said(chat) == ["How do I fly a kite?", "Run into the wind / `heed-base`"]


async def test_the_conversation_so_far_is_sent_with_the_next_question(
    gateway: RunningGateway, browser: Browser
) -> None:
    await ask(browser)
    await ask(browser, "And a boat?")

    roles = [message["role"] for message in gateway.engine.bodies[-1]["messages"]]
    assert roles == ["user", "assistant", "user"]


async def test_a_thumb_is_a_vote_that_can_be_changed_and_taken_back(gateway: RunningGateway, browser: Browser) -> None:
    memory = await remembered(browser)
    await ask(browser)
    votes: list[list[str]] = []

    for liked in (True, False, ""):
        thumb = {"index": 1, "value": "a scripted answer", "liked": liked}
        await browser.press("judge", NOTHING, memory, "", event=thumb)
        listed = (await gateway.http.get("/v1/votes")).json()["data"]
        votes.append([f"{vote['rating']} by {vote['voter']}" for vote in listed])

    assert votes == [[f"up by {memory['voter']}"], [f"down by {memory['voter']}"], []]


async def test_a_correction_a_comment_and_reasons_belong_to_the_vote_on_the_last_answer(
    gateway: RunningGateway, browser: Browser
) -> None:
    memory = await remembered(browser)
    await ask(browser)

    await browser.press("say_more", "too vague", "Run into the wind.", ["too short"], NOTHING, memory, "")

    (vote,) = (await gateway.http.get("/v1/votes")).json()["data"]
    assert (vote["rating"], vote["comment"], vote["correction"]) == ("down", "too vague", "Run into the wind.")
    assert vote["reasons"] == ["too short"]


async def test_your_votes_says_what_became_of_each_also_in_a_new_conversation(
    gateway: RunningGateway, browser: Browser, console: RunningConsole
) -> None:
    memory = await remembered(browser)
    await ask(browser, "Why is <b>sky</b> blue?")
    thumb = {"index": 1, "value": "a scripted answer", "liked": True}
    memory, *_ = await browser.press("judge", NOTHING, memory, "", event=thumb)
    memory = {**memory, "turns": []}  # what "New conversation" leaves

    table, _, up = await browser.press("look_at_votes", memory, "")
    (vote,) = (await gateway.http.get("/v1/votes")).json()["data"]
    await gateway.http.delete(f"/v1/votes/{vote['id']}")
    withdrawn, *_ = await browser.press("look_at_votes", memory, "")
    console.turn_to(f"http://127.0.0.1:{free_port()}", OPERATOR)
    *_, down = await browser.press("look_at_votes", memory, "")

    ((about, rating, became),) = table["data"]
    assert (about, rating) == ("Why is <b>sky</b> blue?", "up")
    assert became.startswith(("waiting", "in no pair"))
    assert "withdrawn" in withdrawn["data"][0][2]
    assert up["visible"] is False
    assert "does not answer" in down


@pytest.mark.parametrize(("button", "stays"), [("prefer_newer", "newer"), ("prefer_older", "older")])
async def test_an_answer_asked_for_again_is_compared_with_the_one_before(
    button: str, stays: str, gateway: RunningGateway, browser: Browser
) -> None:
    gateway.engine.scripts += [Script(tokens=("older",)), Script(tokens=("newer",))]
    memory = await remembered(browser)
    await ask(browser)

    *_, older = await browser.press("ask_again", NOTHING, "heed", "")
    _, _, chat, words, *_ = await browser.press(button, NOTHING, memory, "")

    (pair,) = (await gateway.operator.get("/v1/pairs")).text.splitlines()
    chosen, rejected = (re.search(f'"{side}":\\[.*?"content":"(\\w+)"', pair) for side in ("chosen", "rejected"))
    assert chosen
    assert rejected
    assert {chosen[1], rejected[1]} == {"older", "newer"}
    assert chosen[1] == stays
    assert said(chat)[-1] == f"{stays} / `heed-base`"
    assert "older" in older
    assert "Noted" in words


async def test_a_refusal_of_the_engine_is_shown_in_its_words_and_gives_the_question_back(
    gateway: RunningGateway, browser: Browser
) -> None:
    gateway.engine.scripts.append(Script(status=400, message="too hot"))

    text, _, chat, words, *_ = await ask(browser, "How hot?")

    assert (text, chat, words) == ("How hot?", [], "too hot")


async def test_a_gateway_that_is_down_is_a_sentence_and_the_page_goes_on_when_it_is_back(
    gateway: RunningGateway, browser: Browser, console: RunningConsole
) -> None:
    console.turn_to(f"http://127.0.0.1:{free_port()}", OPERATOR)
    text, _, _, words, *_ = await ask(browser)
    *_, down = await browser.press("look", "heed", "")

    console.turn_to(gateway.url, OPERATOR)
    *_, is_down = await browser.press("look", "heed", "")
    _, _, chat, *_ = await ask(browser, text)

    assert "does not answer" in words
    assert "make run" in words
    assert down == words
    assert is_down["visible"] is False
    assert said(chat)[-1] == "a scripted answer / `heed-base`"


@pytest.mark.parametrize("page", ["/", "/votes", "/compare", "/operate", "/config", "/theme.css"])
async def test_a_page_names_no_other_host_and_may_load_from_none(page: str, console: RunningConsole) -> None:
    async with httpx.AsyncClient(base_url=console.url, trust_env=False) as http:
        reply = await http.get(page)

    without_cards = re.sub(r"<meta[^>]*>", "", reply.text)  # gradio's for link previews, which nothing here reads
    hosts = set(re.findall(r"https?://([\w.:-]+)", without_cards)) - {"www.w3.org"}  # the name of SVG
    assert reply.status_code == 200
    assert hosts <= {httpx.URL(console.url).netloc.decode()}
    assert "default-src 'self'" in reply.headers["content-security-policy"]


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}])
async def test_a_page_from_elsewhere_cannot_use_the_console(headers: dict[str, str], console: RunningConsole) -> None:
    async with httpx.AsyncClient(base_url=console.url, trust_env=False) as http:
        reply = await http.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0}, headers=headers)

    assert reply.status_code == 403


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"url": "http://127.0.0.1:8000"}, "of-this-machine"),
        ({"url": "http://heed.example:8000"}, ""),
        ({"url": "http://heed.example:8000", "operator_key": "given"}, "given"),
        ({"url": "http://127.0.0.1:8000", "console_host": "0.0.0.0"}, ""),
    ],
)
def test_this_machines_key_goes_to_its_own_gateway_and_for_its_own_browser_only(
    given: dict[str, Any], key: str, tmp_path: Path
) -> None:
    (tmp_path / "operator.key").write_text("of-this-machine\n")

    assert ConsoleSettings(var=tmp_path, **given).own_key == key


def test_without_gradio_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['gradio'] = None; from serve.console.cli import console; console(None, None)"

    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert ended.returncode == 1
    assert "heed[console]" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_other_commands_do_not_wait_for_gradio() -> None:
    code = "import sys, serve.cli; sys.exit('gradio' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
