"""What an operator orders: jobs, adapters, voters. Each order is a call of the API; its outcome comes back in words."""

from collections.abc import Awaitable
from typing import Any
from urllib.parse import quote

from serve.client import CallFailed
from serve.console.calls import Json
from serve.console.lately import Lately

CHOICE = "the recipe's choice"
METHODS = (CHOICE, "dpo", "unpaired", "supervised", "reward")

Said = tuple[str, bool]
"""What came of it, and whether it was done."""


class Orders:
    def __init__(self, lately: Lately, calls: Any) -> None:
        self._lately, self._calls = lately, calls

    async def job(
        self, key: str, model: str, method: str, beta: float | None, epochs: float | None, is_dry: bool
    ) -> Said:
        """Zeros leave the setting to the recipe."""
        wishes: Json = {"beta": beta} if beta else {}
        wishes |= {"n_epochs": int(epochs)} if epochs else {}
        body: Json = {"model": model, "training_file": "ledger", "dry_run": is_dry}
        if method in METHODS[1:]:
            body["method"] = {"type": method, method: {"hyperparameters": wishes}}
        elif wishes:
            body["hyperparameters"] = wishes
        return await self._said(self._post(key, "/fine_tuning/jobs", body), _queued)

    async def cancel(self, key: str, job: str) -> Said:
        if not job:
            return "There is no job to cancel.", False
        return await self._said(self._post(key, f"/fine_tuning/jobs/{job}/cancel", {}), "{id} is cancelled.")

    async def promote(self, key: str, adapter: str, reason: str) -> Said:
        return await self._moved(key, adapter, "promote", {"reason": reason}, "{live} is live.")

    async def try_it(self, key: str, adapter: str, percent: float | None, is_auto: bool, reason: str) -> Said:
        body = {"percent": percent or 0, "auto": is_auto, "reason": reason}
        if not percent:
            return "Say on how many percent of the people; more than 0.", False
        return await self._moved(key, adapter, "canary", body, "{adapter} answers {percent:g} % of the people.")

    async def end_trial(self, key: str, model: str, reason: str) -> Said:
        try:
            running = (await self._calls.get(key, "/canary", model=model))["running"]
        except CallFailed as failed:
            return str(failed), False
        if running is None:
            return "No adapter is being tried.", False
        body = {"percent": 0, "reason": reason}
        return await self._moved(key, running["adapter"], "canary", body, "The trial of {adapter} has ended.")

    async def retire(self, key: str, adapter: str, reason: str) -> Said:
        return await self._moved(key, adapter, "retire", {"reason": reason}, "{id} is {state}.")

    async def roll_back(self, key: str, model: str, reason: str) -> Said:
        if not reason.strip():
            return "Say why: a roll-back's reason is kept in the history.", False
        body = {"model": model, "reason": reason}
        return await self._said(self._post(key, "/adapters/rollback", body), "{live} is live.")

    async def hear(self, key: str, model: str, voter: str, act: str, reason: str) -> Said:
        """`act` is release, quarantine or ban."""
        if not voter.strip():
            return "Say which voter.", False
        if not reason.strip():
            return "Say why: the reason is kept in the voter's history.", False
        path = f"/voters/{quote(voter, safe='')}/{act}"
        return await self._said(self._post(key, path, {"model": model, "reason": reason}), "{id} is {state}.")

    async def _moved(self, key: str, adapter: str, act: str, body: Json, words: str) -> Said:
        if not adapter:
            return "There is no adapter yet; a job makes one.", False
        return await self._said(self._post(key, f"/adapters/{quote(adapter, safe='')}/{act}", body), words)

    async def _post(self, key: str, path: str, body: Json) -> Json:
        answer: Json = await self._calls.post(key, path, body)
        return answer

    async def _said(self, order: Awaitable[Json], words: Any) -> Said:
        try:
            answer = await order
        except CallFailed as failed:
            return str(failed), False
        finally:
            self._lately.forget()
        return (words.format_map(answer) if isinstance(words, str) else words(answer)), True


def _queued(job: Json) -> str:
    if not job["dry_run"]:
        return f"{job['id']} is queued."
    if job["plan"]:
        return f"{job['id']} has planned; see below. It trained nothing."
    return f"{job['id']} plans when a worker is free; it trains nothing."
