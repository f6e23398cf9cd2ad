"""The console's pages to compare and to operate, pressed as a browser presses them, before a real gateway."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from feedback.connection import Ledger
from serve.console.compare import ITSELF
from tests.consoles import Browser, RunningConsole, running_console
from tests.gateways import OPERATOR, RunningGateway, running_gateway
from tests.processes import free_port
from tests.scripted_engine import Script, scripted_engine

Json = dict[str, Any]
NOTHING: Any = None  # a gr.State keeps its value in the console: a browser sends null for it

ANN: Json = {"voter": "ann", "turns": []}


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConsole]:
    with running_console(tmp_path_factory.mktemp("console")) as console:
        yield console


@pytest.fixture
async def gateway(ledger: Ledger, tmp_path: Path, console: RunningConsole) -> AsyncIterator[RunningGateway]:
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine) as gateway:
        console.turn_to(gateway.url, OPERATOR)
        yield gateway


@pytest.fixture
async def browser(console: RunningConsole) -> AsyncIterator[Browser]:
    async with httpx.AsyncClient(base_url=console.url, timeout=30, trust_env=False) as http:
        yield Browser(http)


def text_of(chat: list[Json]) -> str:
    return " ".join(part["text"] for message in chat for part in message["content"])


async def compare(browser: Browser, source: str = "the queue", own: str = "", against: str = ITSELF) -> Json:
    """What is on the page once both answers are there."""
    names = ("now", "prompt", "left", "right", "said", "rows", "judged", "own", "next")
    shown = await browser.press("compare_ask", NOTHING, source, own, "heed", against, ANN, "")
    return dict(zip(names, shown, strict=False)) | {"buttons": shown[len(names) :]}


async def judge(browser: Browser, preferred: str, source: str = "the queue") -> list[Json]:
    """Each step of what a vote changes on the page."""
    given = (NOTHING, NOTHING, source, "", "heed", ITSELF, ANN, "")
    return [step["output"]["data"] async for step in browser.watch(f"compare_{preferred}", *given)]


async def votes_of(gateway: RunningGateway, voter: str) -> list[Json]:
    """Of comparisons."""
    found = (await gateway.operator.get("/v1/votes", params={"voter": voter})).json()["data"]
    return [vote for vote in found if "preferred" in vote]


async def enqueue(gateway: RunningGateway, *texts: str) -> None:
    for text in texts:
        body = {"messages": [{"role": "user", "content": text}]}
        assert (await gateway.operator.post("/v1/prompts", json=body)).status_code == 200


async def test_a_prompt_of_the_queue_is_judged_blindly_then_names_are_told_and_the_next_one_comes(
    gateway: RunningGateway, browser: Browser
) -> None:
    await enqueue(gateway, "How do I fly a kite?", "How do I build a boat?")
    gateway.engine.scripts += [Script(tokens=("First",)), Script(tokens=("Second",))]

    first = await compare(browser)
    steps = await judge(browser, "a")

    asked = {text_of(first["prompt"]), text_of(steps[-1][1])}
    (vote,) = await votes_of(gateway, "ann")
    assert asked == {"How do I fly a kite?", "How do I build a boat?"}
    assert {text_of(first["left"]), text_of(first["right"])} == {"First", "Second"}
    assert "heed-base" not in str(first)
    assert "Left was heed-base" in str(steps[0])
    assert vote["preferred"] == "a"


async def test_a_comparison_cannot_be_judged_before_it_is_whole_nor_twice(
    gateway: RunningGateway, browser: Browser
) -> None:
    nothing = await judge(browser, "tie")
    whole = await compare(browser, "me", "How do I fly a kite?")
    await judge(browser, "tie", "me")
    again = await judge(browser, "tie", "me")

    assert "no two answers" in str(nothing)
    assert [button["interactive"] for button in whole["buttons"]] == [True] * 4
    assert "no two answers" in str(again)


async def test_an_own_prompt_is_answered_by_the_two_adapters_that_were_picked(
    gateway: RunningGateway, browser: Browser
) -> None:
    adapter = await gateway.register(1, b"one")
    await gateway.promote(adapter)

    await browser.press("compare_look", "heed", ITSELF, "")  # only what the page offers can be picked
    await compare(browser, "me", "How do I fly a kite?", against="heed-base")
    told = await judge(browser, "both_bad", "me")

    assert adapter in str(told)
    assert "heed-base" in str(told)


async def test_an_empty_queue_says_how_prompts_come_into_it(gateway: RunningGateway, browser: Browser) -> None:
    shown = await compare(browser)

    assert "heed prompts FILE" in shown["said"]
    assert [button["interactive"] for button in shown["buttons"]] == [False] * 4
