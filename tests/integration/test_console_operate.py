"""The console's pages to compare and to operate, pressed as a browser presses them, before a real gateway."""

import asyncio
import html
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from feedback import jobs, triggers
from feedback.connection import Ledger
from feedback.records import Job
from feedback.triggers import Trigger
from serve.console import circle
from serve.console.compare import ITSELF
from serve.console.orders import CHOICE
from serve.console.progress import CURVES
from tests.consoles import Browser, RunningConsole
from tests.gateways import OPERATOR, RunningGateway, running_gateway, until
from tests.processes import free_port
from tests.scripted_engine import Script

Json = dict[str, Any]
NOTHING: Any = None  # a gr.State keeps its value in the console: a browser sends null for it

ANN: Json = {"voter": "ann", "turns": []}
LOOKED = ("heed", None, None, "quarantined", NOTHING, NOTHING)
PARTS = (
    *("down", "key", "seen", "before", "model", "circle", "triggers", "progress", *CURVES, "job", "jobs", "tree"),
    *("adapter", "verdict", "gate", "canary", "quality", "electorate", "voters", "ready", "engines", "export"),
)


class Page(Browser):
    """An open page, and the console it is of."""

    def __init__(self, http: httpx.AsyncClient, console: RunningConsole) -> None:
        super().__init__(http)
        self.http, self.console = http, console

    async def upload(self, name: str, content: bytes) -> Json:
        """A file as an upload button sends it."""
        (path,) = (await self.http.post("/gradio_api/upload", files={"files": (name, content)})).json()
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


@pytest.fixture
def gateway(gateway_of_console: RunningGateway) -> RunningGateway:
    return gateway_of_console


@pytest.fixture
async def browser(console: RunningConsole) -> AsyncIterator[Page]:
    async with httpx.AsyncClient(base_url=console.url, timeout=30, trust_env=False) as http:
        yield Page(http, console)


async def show(browser: Page, adapter: str | None = None) -> Json:
    """What has changed on the page to operate since it was looked at last."""
    shown = await browser.press("operate_show", "heed", None, adapter, "quarantined", NOTHING, NOTHING, "")
    return dict(zip(PARTS, shown, strict=True))


async def picked(browser: Page, adapter: str) -> str:
    """The adapter that is picked once the page offers others than before, when this one was."""
    found: list[Any] = []

    async def is_other() -> bool:
        found.append((await show(browser, adapter=adapter))["adapter"])
        return isinstance(found[-1], str)

    await until(is_other, "the page offers another adapter")
    return str(found[-1])


def text_of(chat: list[Json]) -> str:
    return " ".join(part["text"] for message in chat for part in message["content"])


async def compare(browser: Page, source: str = "the queue", own: str = "", against: str = ITSELF) -> Json:
    """What is on the page once both answers are there."""
    names = ("now", "prompt", "left", "right", "said", "rows", "judged", "own", "next")
    shown = await browser.press("compare_ask", NOTHING, source, own, "heed", against, ANN, "")
    return dict(zip(names, shown, strict=False)) | {"buttons": shown[len(names) :]}


async def judge(browser: Page, preferred: str, source: str = "the queue") -> list[list[Any]]:
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
    gateway: RunningGateway, browser: Page
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
    gateway: RunningGateway, browser: Page
) -> None:
    nothing = await judge(browser, "tie")
    whole = await compare(browser, "me", "How do I fly a kite?")
    await judge(browser, "tie", "me")
    again = await judge(browser, "tie", "me")

    assert "no two answers" in str(nothing)
    assert [button["interactive"] for button in whole["buttons"]] == [True] * 4
    assert "no two answers" in str(again)


async def test_an_own_prompt_is_answered_by_the_two_adapters_that_were_picked(
    gateway: RunningGateway, browser: Page
) -> None:
    adapter = await gateway.register(1, b"one")
    await gateway.promote(adapter)

    await browser.press("compare_look", "heed", ITSELF, "")  # only what the page offers can be picked
    await compare(browser, "me", "How do I fly a kite?", against="heed-base")
    told = await judge(browser, "both_bad", "me")

    assert adapter in str(told)
    assert "heed-base" in str(told)


async def test_an_empty_queue_says_how_prompts_come_into_it(gateway: RunningGateway, browser: Page) -> None:
    shown = await compare(browser)

    assert "heed prompts FILE" in shown["said"]
    assert [button["interactive"] for button in shown["buttons"]] == [False] * 4


async def test_a_file_of_prompts_joins_the_queue_and_lines_that_cannot_are_named(
    gateway: RunningGateway, browser: Page
) -> None:
    lines = b'{"prompt": "How do I fly a kite?"}\n{"question": "?"}\n{"prompt": "How do I build a boat?"}\n'

    (said,) = await browser.press("compare_enqueue", await browser.upload("prompts.jsonl", lines), "heed", "")

    queued = (await gateway.operator.get("/v1/prompts")).json()["data"]
    assert [one["messages"][-1]["content"] for one in queued] == ["How do I fly a kite?", "How do I build a boat?"]
    assert "2 prompts are new in the queue" in said
    assert "line 2:" in said


async def test_the_operator_sees_a_jobs_progress_and_curves_and_cancels_it(
    gateway: RunningGateway, browser: Page, ledger: Ledger
) -> None:
    job = await jobs.create(ledger, Job(id="ftjob-1", served_model="heed", created=1000.0))
    await jobs.claim(ledger, job.id)
    for step in (1, 2):
        data = {"step": step, "total_steps": 8, "loss": 0.7 - step / 10, "rewards/margins": step / 10}
        more = {"rewards/accuracies": 0.5 + step / 10, "tokens_per_second": 4000.0, "seconds_left": 60.0 - step}
        await jobs.tell(ledger, job.id, f"Step {step}/8", type="metrics", data=data | more)

    looked = await show(browser)
    (said,) = await browser.press("cancel", "heed", job.id, "")
    after = await show(browser)

    for words in (
        "step 2 of 8",
        "loss 0.5",
        "reward margin 0.2",
        "reward accuracy 0.7",
        "tokens a second 4000",
        "58 s",
    ):
        assert words in looked["progress"]
    assert "step 2 of 8, 58 s left" in looked["circle"]
    curves = [looked[name]["data"] for name in CURVES]
    assert curves == [[[1, 0.6], [2, 0.5]], [[1, 0.1], [2, 0.2]], [[1, 0.6], [2, 0.7]], [[1, 4000.0], [2, 4000.0]]]
    assert "ftjob-1 is cancelled." in said
    assert [row[2] for row in after["jobs"]["data"]] == ["cancelled"]


async def test_what_would_start_the_next_job_is_told_as_the_worker_saw_it(
    gateway: RunningGateway, browser: Page, ledger: Ledger
) -> None:
    before = await show(browser)
    await triggers.tell(ledger, [Trigger("pairs", is_due=False, why="4 new pairs; 500 start a job")])
    told = (await gateway.operator.get("/v1/stats")).json()["triggers"]

    assert "No worker has told" in before["triggers"]
    assert told == [{"name": "pairs", "is_due": False, "why": "4 new pairs; 500 start a job"}]
    assert "500 start a job" in circle.triggers({"triggers": told})


@pytest.mark.parametrize("order", ["start", "preview"])
async def test_a_job_that_cannot_start_says_why(order: str, gateway: RunningGateway, browser: Page) -> None:
    said, _ = await browser.press(order, "heed", CHOICE, 0, 0, "")

    assert "0 pairs to train on" in said
    assert 'role="alert"' in said


async def test_a_preview_is_a_dry_run_and_a_start_carries_what_was_asked_for(
    gateway: RunningGateway, browser: Page, ledger: Ledger
) -> None:
    ledger.settings.min_pairs, ledger.settings.min_held_out_pairs = 0, 0
    async with running_gateway(ledger, gateway.var, gateway.engine, dry_run_wait_s=0.1) as lenient:
        browser.console.turn_to(lenient.url, OPERATOR)

        previewed, _ = await browser.press("preview", "heed", CHOICE, 0, 0, "")
        started, _ = await browser.press("start", "heed", "dpo", 0.3, 2, "")
        second, first = (await lenient.operator.get("/v1/fine_tuning/jobs")).json()["data"]

    assert "plans when a worker is free" in previewed
    assert "is queued" in started
    assert (first["dry_run"], second["dry_run"]) == (True, False)
    assert second["method"]["dpo"]["hyperparameters"] == {"beta": 0.3, "n_epochs": 2}


async def test_the_operator_promotes_with_a_reason_and_rolls_back_with_one(
    gateway: RunningGateway, browser: Page
) -> None:
    adapter = await gateway.register(1, b"one")
    await show(browser)  # only what the page offers can be picked

    promoted, _ = await browser.press("promote", "heed", adapter, "reads well", "")
    live = await show(browser)
    refused, _ = await browser.press("roll_back", "heed", " ", "")
    back, _ = await browser.press("roll_back", "heed", "too long", "")

    history = (await gateway.operator.get(f"/v1/adapters/{adapter}")).json()["history"]
    assert f"{adapter} is live." in promoted
    assert f'{adapter}</code> <span class="heed-state heed-live">live' in live["tree"]
    assert "Say why" in refused
    assert "heed-base is live." in back
    assert "reads well" in [change["reason"] for change in history]
    assert "too long" in history[-1]["reason"]


async def test_the_first_adapter_is_picked_when_it_comes_and_stays_picked_when_another_does(
    gateway: RunningGateway, browser: Page
) -> None:
    nothing = (await show(browser))["adapter"]
    first = await gateway.register(1, b"one")
    one = await picked(browser, nothing)
    await gateway.register(2, b"two")
    two = await picked(browser, one)

    assert nothing == "heed-base"
    assert one == first
    assert two == first


async def test_what_is_live_is_not_retired_and_another_is_with_its_reason(
    gateway: RunningGateway, browser: Page
) -> None:
    live, other = await gateway.register(1, b"one"), await gateway.register(2, b"two")
    await gateway.promote(live)
    await show(browser)

    refused, _ = await browser.press("retire", "heed", live, "old", "")
    retired, _ = await browser.press("retire", "heed", other, "old", "")

    assert "roll back first" in refused
    assert f"{other} is retired." in retired


async def test_an_adapter_is_tried_on_a_share_and_its_interval_is_shown_until_it_ends(
    gateway: RunningGateway, browser: Page
) -> None:
    adapter = await gateway.register(1, b"one")
    await show(browser)

    tried, _ = await browser.press("try_it", "heed", adapter, 30, False, "let them tell", "")
    running = await show(browser)
    ended, _ = await browser.press("end_trial", "heed", "enough", "")
    after = await show(browser)

    assert f"{adapter} answers 30 % of the people." in tried
    assert "both sides need some" in running["canary"]
    assert running["canary"].count('class="heed-span"') == 4
    assert f"canary {adapter}, 30 %" in running["circle"]
    assert "has ended" in ended
    assert "enough" in after["canary"]


async def test_a_voter_is_quarantined_with_a_reason_and_heard_again(gateway: RunningGateway, browser: Page) -> None:
    name = "<b>a/nn</b>"
    completion = (await gateway.chat()).json()["id"]
    vote = {"completion_id": completion, "rating": "down", "voter": name}
    assert (await gateway.http.post("/v1/votes", json=vote)).status_code == 200

    refused, _ = await browser.press("quarantine", "heed", name, "", "")
    kept, _ = await browser.press("quarantine", "heed", name, "says no to all", "")
    listed = await show(browser)
    heard, _ = await browser.press("release", "heed", name, "asked, it was meant", "")

    assert "Say why" in refused
    assert "&lt;b&gt;a/nn&lt;/b&gt; is quarantined." in kept
    assert [row[:2] for row in listed["voters"]["data"]] == [[name, "quarantined"]]
    assert "is released." in heard


async def test_nothing_that_the_api_tells_becomes_a_tag(gateway: RunningGateway, browser: Page) -> None:
    evil = "<img src=x onerror=alert(1)>"
    gate = {"decision": "canary-only", "reasons": [evil], "criteria": []}
    adapter = await gateway.register(1, b"one", gate=gate)
    await gateway.operator.post(f"/v1/adapters/{adapter}/canary", json={"percent": 10, "reason": evil})
    await gateway.operator.delete(f"/v1/adapters/{adapter}/canary", params={"reason": evil})

    shown = await show(browser)

    assert html.escape(evil) in shown["tree"]
    assert html.escape(evil) in shown["verdict"]
    assert html.escape(evil) in shown["canary"]
    assert "<img" not in str(shown)


async def test_the_votes_are_shown_with_intervals_and_the_engines_with_their_state(
    gateway: RunningGateway, browser: Page
) -> None:
    for rating in ("up", "up", "down"):
        vote = {"completion_id": (await gateway.chat(f"{rating}?")).json()["id"], "rating": rating}
        assert (await gateway.http.post("/v1/votes", json=vote)).status_code == 200

    shown = await show(browser)

    assert "heed-base" in shown["quality"]
    assert "(21% to 94%, n = 3)" in shown["quality"]
    assert shown["engines"]["data"][0][1:4] == ["up", 0, "heed-base"]
    assert "The gateway is ready." in shown["ready"]


async def test_a_gateway_that_is_down_is_an_alert_and_the_page_goes_on_when_it_is_back(
    gateway: RunningGateway, browser: Page
) -> None:
    browser.console.turn_to(f"http://127.0.0.1:{free_port()}", OPERATOR)
    down, *_ = await browser.press("operate_show", *LOOKED, "another key")  # its answers are nobody else's yet

    browser.console.turn_to(gateway.url, OPERATOR)
    back = await show(browser)

    assert 'role="alert"' in down
    assert "make run" in down
    assert "The gateway is ready." in back["ready"]


async def test_without_the_operators_key_operating_is_refused_in_the_gateways_words(
    gateway: RunningGateway, browser: Page
) -> None:
    browser.console.turn_to(gateway.url, operator_key="")

    without, _ = await browser.press("start", "heed", CHOICE, 0, 0, "")
    given, _ = await browser.press("start", "heed", CHOICE, 0, 0, OPERATOR)

    assert "var/operator.key" in without
    assert "pairs to train on" in given


async def test_the_pairs_are_exported_as_the_gateway_writes_them(gateway: RunningGateway, browser: Page) -> None:
    vote = {"completion_id": (await gateway.chat()).json()["id"], "rating": "down", "correction": "Run into the wind."}
    await gateway.http.post("/v1/votes", json=vote)

    saved = await browser.http.post("/export", data={"format": "openai", "model": "heed"})
    browser.console.turn_to(gateway.url, operator_key="")
    refused = await browser.http.post("/export", data={"format": "openai", "model": "heed"})

    assert saved.text == (await gateway.operator.get("/v1/pairs?format=openai")).text
    assert "Run into the wind." in saved.text
    assert 'filename="pairs-openai.jsonl"' in saved.headers["content-disposition"]
    assert refused.status_code == 502
    assert "var/operator.key" in refused.text


async def test_pages_that_look_at_the_same_time_ask_the_gateway_once(gateway: RunningGateway, browser: Page) -> None:
    answered = 'heed_requests_total{method="GET",status="200"}'
    pages = [Page(browser.http, browser.console) for _ in range(5)]
    before = await gateway.count(answered)

    shown = await asyncio.gather(*(show(page) for page in pages))
    after = await gateway.count(answered)

    assert all("The gateway is ready." in page["ready"] for page in shown)
    assert after - before <= 2 * 8 + 1  # a slow machine's pages may be more than an age apart; five times would be 40
