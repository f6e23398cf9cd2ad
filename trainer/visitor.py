"""A visitor of the gateway: the calls that the demo makes, like any other client of the public HTTP API."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import httpx

Json = dict[str, Any]
One = TypeVar("One")
Other = TypeVar("Other")

AT_ONCE = 16
"""Requests in flight: vLLM on two cores is busy with as many, and more would only wait in its queue."""
TIMEOUT_S = 120.0
ANSWER_TOKENS = 96
"""The pocket model's longest answer takes about 45."""


class DemoStopped(Exception):
    """The demo cannot go on; the message says why and what would help."""


@dataclass(frozen=True)
class Answer:
    completion_id: str
    model: str
    text: str


class Visitor:
    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=AT_ONCE)
        self._http = httpx.AsyncClient(base_url=f"{self.url}/v1", headers=headers, timeout=TIMEOUT_S, limits=limits)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, model: str, prompt: str, *, is_kept: bool) -> Answer:
        """One answer at temperature 0.8, as chat clients commonly ask; at 1 a tiny model breaks one answer in ten."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0.8,
            "max_tokens": ANSWER_TOKENS,
            "store": is_kept,
        }
        answer = await self._call("POST", "/chat/completions", body)
        return Answer(answer["id"], answer["model"], answer["choices"][0]["message"]["content"] or "")

    async def vote(self, completion_id: str, rating: str, voter: str) -> None:
        await self._call("POST", "/votes", {"completion_id": completion_id, "rating": rating, "voter": voter})

    async def train(self, model: str, seed: int, metadata: dict[str, str]) -> str:
        """Asks for a job; returns its id."""
        body = {
            "model": model,
            "training_file": "ledger",
            "method": {"type": "dpo"},
            "seed": seed,
            "metadata": metadata,
        }
        return str((await self._call("POST", "/fine_tuning/jobs", body))["id"])

    async def job(self, job_id: str) -> Json:
        return await self._call("GET", f"/fine_tuning/jobs/{job_id}")

    async def events(self, job_id: str, known: set[str]) -> list[Json]:
        """Those not yet known, oldest first."""
        fresh: list[Json] = []
        after = ""
        while True:
            page = await self._call("GET", f"/fine_tuning/jobs/{job_id}/events?limit=100{after}")
            unseen = [event for event in page["data"] if event["id"] not in known]
            fresh += unseen
            if not page.get("has_more") or len(unseen) < len(page["data"]) or not unseen:
                return fresh[::-1]
            after = f"&after={unseen[-1]['id']}"

    async def adapter(self, adapter_id: str) -> Json:
        return await self._call("GET", f"/adapters/{adapter_id}")

    async def promote(self, adapter_id: str, reason: str) -> Json:
        return await self._call("POST", f"/adapters/{adapter_id}/promote", {"reason": reason})

    async def _call(self, method: str, path: str, body: Json | None = None) -> Json:
        try:
            response = await self._http.request(method, path, json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise DemoStopped(
                f"No gateway answers at {self.url}. Start one with `make run`, or name another with --url."
            ) from None
        except httpx.HTTPError as error:
            raise DemoStopped(
                f"The gateway at {self.url} broke off at {method} {path} ({type(error).__name__}). Is it still running?"
            ) from None
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:  # few simulated voters vote faster than people do
            await asyncio.sleep(float(response.headers.get("retry-after", 1)))
            return await self._call(method, path, body)
        if response.is_success:
            answer: Json = response.json()
            return answer
        raise DemoStopped(_refusal(method, path, response))


def _refusal(method: str, path: str, response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        said = f"{error['message']} ({error['code']})"
    except (ValueError, KeyError, TypeError):
        said = "with no reason that Heed would give; does something else listen there?"
    hint = ""
    if response.status_code in (401, 403):
        hint = (
            " The operator's key is in var/operator.key of the running stack; name it with --key or HEED_OPERATOR_KEY."
        )
    return f"The gateway refused {method} {path} with {response.status_code}: {said}{hint}"


async def each(some: Sequence[One], act: Callable[[One], Awaitable[Other]], on_done: Callable[[], None]) -> list[Other]:
    """`act` on all of them, AT_ONCE at a time, results in order; the first failure ends it."""
    turnstile = asyncio.Semaphore(AT_ONCE)

    async def one(item: One) -> Other:
        async with turnstile:
            result = await act(item)
        on_done()
        return result

    tasks = [asyncio.ensure_future(one(item)) for item in some]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
