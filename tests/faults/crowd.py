"""The crowd: clients that chat and vote as well-behaved ones do, whatever happens to the service.

A request that got no answer, or 503, is sent again with the same Idempotency-Key until it is acknowledged; one in ten
is given up instead, as by a person who closes the page. While a key is still held by a request that died (409), the
client keeps the retry in mind and goes on with something else. What is chosen comes from the seed; how the clients'
requests interleave does not.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.faults.acts import Act, Mind, Question
from tests.faults.book import NOTHING, About, Book, seen
from tests.gateways import until
from tests.scripted_engine import Script, ScriptedEngine

ASKS = 0.08
GIVES_UP = 0.1
ASKING = ("/v1/chat/completions", "/v1/comparisons")
PATIENCE_S = 20  # more than the gateway's own, so that its answer is waited for
PAUSE_S = 0.2  # between two tries; the 503 suggests a second, and this crowd is a hasty one
VOTERS_EACH = 3
SHORT = 24
"""Tokens of a real engine's answer: what is said is of no matter here."""
QUIET_WITHIN_S = 120

Json = dict[str, Any]


class Crowd:
    """What its clients share: the questions, the book, and whether they may act."""

    def __init__(
        self, http: httpx.AsyncClient, engine: ScriptedEngine | None, clients: int, seed: str, pace_s: float
    ) -> None:
        self.http = http
        self.pace_s = pace_s
        self.engine = engine
        self.book = Book()
        self.questions: list[Question] = []
        self.outcomes: Counter[str] = Counter()
        self.longest_s = {"answer": 0.0, "vote": 0.0}
        """Of all requests since this was set to nothing last."""
        self.in_flight = 0
        self.may_act = asyncio.Event()
        self._acknowledged_begun = 0.0
        self._answered_begun = 0.0
        self._clients = [Client(self, f"{seed}/{number}") for number in range(clients)]

    @property
    def acts(self) -> int:
        return self.book.acts.total()

    def has_had_an_answer_since(self, moment: float) -> bool:
        """Whether an act that was begun after `moment` (of the monotonic clock) was acknowledged."""
        return self._acknowledged_begun > moment

    def has_been_answered_since(self, moment: float) -> bool:
        """Whether a question that was asked after `moment` was answered, three times, and each is on record."""
        return self._answered_begun > moment

    async def pause(self) -> None:
        """Nothing new is begun, and everything begun has come to its end."""
        self.may_act.clear()
        await until(lambda: not any(client.is_busy for client in self._clients), "the crowd is quiet", QUIET_WITHIN_S)

    async def send(self, method: str, path: str, body: Json | None, key: str = "") -> httpx.Response | None:
        """None where no whole answer came back."""
        self.in_flight += 1
        began, kind = time.monotonic(), "answer" if path in ASKING else "vote"
        try:
            return await self.http.request(method, path, json=body, headers={"idempotency-key": key} if key else {})
        except httpx.TransportError:
            return None
        finally:
            self.in_flight -= 1
            self.longest_s[kind] = max(self.longest_s[kind], time.monotonic() - began)

    def answered(self, begun: float, question: Question) -> None:
        self.questions.append(question)
        self._answered_begun = max(self._answered_begun, begun)

    def acknowledge(self, act: Act, begun: float, tries: int, reply: httpx.Response) -> None:
        """A reply is a receipt: it says what was sent."""
        told, book = reply.json(), self.book
        has_acted_before = tries > 0 and (reply.status_code == 404 or "idempotent-replayed" in reply.headers)
        if act.said:
            if seen(told) != (act.about, act.said):
                book.complaints.append(f"{act.name} {act.said} of {act.about} was acknowledged with {told}")
            book.ids[act.about] = told["id"]
            is_news = book.acknowledged.get(act.about, NOTHING) != act.said
            has_acted_before |= tries > 0 and is_news and not told["changed"]
        book.retried += tries > 0
        book.retried_acted += has_acted_before
        book.note(act.about, act.said, act.name)
        self._acknowledged_begun = max(self._acknowledged_begun, begun)

    async def live(self) -> None:
        await asyncio.gather(*(client.live() for client in self._clients))


class Client:
    def __init__(self, crowd: Crowd, seed: str) -> None:
        self._crowd = crowd
        self._mind = Mind(seed, [f"{seed}-{i}" for i in range(VOTERS_EACH)])
        self._acting = False
        self._pending: set[About] = set()
        self._kept_in_mind: set[asyncio.Task[None]] = set()

    @property
    def is_busy(self) -> bool:
        return self._acting or bool(self._kept_in_mind)

    async def live(self) -> None:
        try:
            while True:
                await self._crowd.may_act.wait()
                self._acting = True
                await self._act()
                self._acting = False
                await asyncio.sleep(self._crowd.pace_s)
        finally:
            for task in self._kept_in_mind:
                task.cancel()

    async def _act(self) -> None:
        questions, book = self._crowd.questions, self._crowd.book
        if not questions or self._mind.dice.random() < ASKS:
            return await self._ask()
        act = self._mind.choose(questions, book)
        if act.about not in self._pending and act.about not in book.abandoned:
            self._pending.add(act.about)
            await self._insist(act, is_kept_in_mind=False)

    async def _ask(self) -> None:
        """A question answered four times: by two completions and in a comparison; dropped when one does not come."""
        crowd, asked = self._crowd, [{"role": "user", "content": f"{self._mind.text()}?"}]
        answers: dict[str, str] = {}
        begun = time.monotonic()
        for _ in range(2):
            reply = await self._told("/v1/chat/completions", {"model": "heed", "messages": asked}, 1)
            if reply is None:
                return
            if reply.headers.get("x-heed-recorded") == "no":
                crowd.outcomes["answered and not recorded"] += 1
                return
            crowd.book.answers[reply.json()["id"]] = reply.json()["choices"][0]["message"]["content"]
            answers |= {reply.json()["id"]: ""}
        reply = await self._told("/v1/comparisons", {"messages": asked}, 2)
        if reply is not None:
            crowd.answered(begun, Question(list(answers), reply.json()["id"]))

    async def _told(self, path: str, body: Json, answers: int) -> httpx.Response | None:
        if self._crowd.engine is None:
            body = {**body, "max_tokens": SHORT}
        else:
            scripts = (Script([self._mind.text(), " ", self._mind.text()]) for _ in range(answers))
            self._crowd.engine.scripts.extend(scripts)
        reply = await self._crowd.send("POST", path, body)
        self._note_outcome("ask", reply)
        if reply is not None and reply.status_code == 200:
            return reply
        await asyncio.sleep(PAUSE_S)
        return None

    async def _insist(self, act: Act, is_kept_in_mind: bool, tries: int = 0) -> None:
        """Until it is acknowledged, given up, or better kept in mind."""
        crowd = self._crowd
        while True:
            begun = time.monotonic()
            reply = await crowd.send(act.method, act.path, act.body, act.key)
            code = self._note_outcome(act.name, reply)
            # That an opinion is gone already is what the first of two withdrawals would have said.
            is_gone = code == "vote_not_found" and tries > 0 and act.said == NOTHING
            if reply is not None and (code == "200" or is_gone):
                crowd.acknowledge(act, begun, tries, reply)
                break
            if code == "idempotency_in_progress" and not is_kept_in_mind:
                task = asyncio.create_task(self._insist(act, True, tries))
                self._kept_in_mind.add(task)
                task.add_done_callback(self._kept_in_mind.discard)
                return
            if code not in ("nothing", "ledger_unavailable", "idempotency_in_progress"):
                crowd.book.complaints.append(f"{act.name} of {act.about} was answered with {code}")
                crowd.book.abandon(act.about, act.said)
                break
            if not tries and self._mind.dice.random() < GIVES_UP:
                crowd.book.abandon(act.about, act.said)
                break
            tries += 1
            await asyncio.sleep(PAUSE_S)
        self._pending.discard(act.about)

    def _note_outcome(self, name: str, reply: httpx.Response | None) -> str:
        """200, the error's code, or `nothing` where no answer came."""
        if reply is None:
            code = "nothing"
        else:
            code = "200" if reply.status_code == 200 else str(reply.json()["error"]["code"])
        self._crowd.outcomes[f"{name} {code}"] += 1
        return code


@asynccontextmanager
async def crowd(
    url: str, engine: ScriptedEngine | None, clients: int, seed: str, key: str = "", pace_s: float = 0
) -> AsyncIterator[Crowd]:
    """A crowd that waits for `may_act`. `key` is a client's, where the gateway asks for one; whoever has acted rests
    for `pace_s`."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=url, timeout=PATIENCE_S, limits=limits, headers=headers, trust_env=False
    ) as http:
        gathered = Crowd(http, engine, clients, seed, pace_s)
        living = asyncio.create_task(gathered.live())
        try:
            yield gathered
        finally:
            living.cancel()
            outcome = (await asyncio.gather(living, return_exceptions=True))[0]
            if not isinstance(outcome, asyncio.CancelledError):
                raise RuntimeError("a client broke") from outcome
