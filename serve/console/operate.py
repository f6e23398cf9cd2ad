"""The page "Operate": the circle in numbers, its jobs and its adapters. For whoever has the operator's key."""

from datetime import datetime
from typing import Any

import gradio as gr
import pandas as pd

from serve.client import CallFailed
from serve.console.calls import Calls, Json

LOOK_EVERY_S = 2
"""As often as a person looks; five small requests each time, and only while the page is open."""

EVENTS_PAGE = 100
JOBS_SHOWN = 20
CURVES = {"loss": "loss", "rewards/margins": "reward margin"}
OPEN = ("validating_files", "queued", "running")
JOB_COLUMNS = {"job": 260, "created": 170, "status": 110, "pairs": 70, "adapter": 170, "why": 300}
ADAPTER_COLUMNS = {"adapter": 170, "created": 170, "state": 100, "pairs": 70, "parent": 170, "gate": 360, "why": 240}
"""Names and widths in pixels: on a phone a table is scrolled, not squeezed."""

POINT = ["step", "value", "metric"]

Step = tuple[Any, ...]


class OperatePage:
    """Built inside a Blocks; its methods are what the events call."""

    def __init__(self, calls: Calls, page: gr.Blocks) -> None:
        self._calls = calls
        seen = gr.State({"job": "", "events": []})
        before = gr.State([])
        down = gr.Markdown(visible=False, elem_classes="heed-alert")
        with gr.Row():
            model = gr.Dropdown(["heed"], value="heed", label="Served model", scale=1)
            key = gr.Textbox("", label="Operator key", type="password", visible=False, scale=2)
        numbers = gr.Markdown()
        said = gr.Markdown(elem_classes="heed-said")

        gr.Markdown("## Jobs")
        with gr.Row(elem_classes="heed-row"):
            beta = gr.Number(0, label="Beta", info="Tie to the reference model; 0: the recipe's choice.", minimum=0)
            epochs = gr.Number(0, label="Epochs", info="Passes over the pairs; 0: the recipe's choice.", minimum=0)
            start = gr.Button("Start a job on the votes", variant="primary")
        jobs = _table("Jobs, newest first", JOB_COLUMNS)
        with gr.Row(elem_classes="heed-row"):
            job = gr.Dropdown([], label="Look at the job", scale=3)
            cancel = gr.Button("Cancel it", variant="stop", scale=1)
        progress = gr.Markdown()
        curves = gr.LinePlot(
            x="step", y="value", color="metric", label="Loss and reward margin", height=320, visible=False
        )

        gr.Markdown("## Adapters")
        adapters = _table("Adapters, newest first", ADAPTER_COLUMNS)
        with gr.Row(elem_classes="heed-row"):
            adapter = gr.Dropdown([], label="Adapter", scale=2)
            reason = gr.Textbox("", label="Reason", info="Kept in its history.", max_length=500, scale=2)
            promote = gr.Button("Promote it", scale=1)
            rollback = gr.Button("Roll back", variant="stop", scale=1)

        shown = [down, key, model, numbers, jobs, job, adapters, adapter]
        view = [*shown, progress, curves, seen, before]
        asked = [model, job, adapter, seen, before, key]
        looking = {"api_visibility": "private", "show_progress": "hidden"}
        gr.on([page.load, gr.Timer(LOOK_EVERY_S).tick, model.change, job.input], self.show, asked, view, **looking)
        start.click(self.start, [model, beta, epochs, key], said, api_name="start").then(
            self.show, asked, view, **looking
        )
        cancel.click(self.cancel, [job, key], said, api_name="cancel").then(self.show, asked, view, **looking)
        for button, act, name in (
            (promote, self.promote, "promote"),
            (rollback, self.roll_back, "roll_back"),
        ):
            button.click(act, [model, adapter, reason, key], [said, reason], api_name=name).then(
                self.show, asked, view, **looking
            )

    # -- looking -------------------------------------------------------------------------------------------------------

    async def show(self, model: str, job: str, adapter: str, seen: Json, before: list[Any], key: str) -> Step:
        """Everything on the page; what has not changed is left alone, so that nothing moves under a hand."""
        needs_key = gr.update(visible=self._calls.needs_key)
        try:
            names = _served([one["id"] for one in (await self._calls.get(key, "/models"))["data"]])
            model = model if model in names else names[0]
            stats = await self._calls.get(key, "/stats", model=model)
            found = (await self._calls.get(key, "/fine_tuning/jobs", model=model, limit=JOBS_SHOWN))["data"]
            listed = await self._calls.get(key, "/adapters", model=model, limit=100)
            ids = [one["id"] for one in found]
            job = job if job in ids else next(iter(ids), "")
            told = await self._told(key, job, seen)
        except CallFailed as failed:
            down = gr.update(value=str(failed), visible=True)
            return down, needs_key, *(gr.skip() for _ in range(8)), seen, before
        served = [one["id"] for one in listed["data"]] + [f"{model}-base"]
        now: list[Json] = [
            {"choices": names, "value": model},
            {"value": _numbers(stats)},
            {"value": [_job_row(one) for one in found]},
            {"choices": ids, "value": job or None},
            {"value": [_adapter_row(one) for one in listed["data"]]},
            {"choices": served, "value": adapter if adapter in served else served[0]},
            {"value": _progress(next((one for one in found if one["id"] == job), None), told)},
            {"value": _points(told)},
        ]
        updates: list[Any] = [
            gr.skip() if old == new else gr.update(**new)
            for new, old in zip(now, before or [None] * len(now), strict=True)
        ]
        if now[-1] != (before or [None])[-1]:
            updates[-1] = gr.update(value=pd.DataFrame(_points(told), columns=POINT), visible=bool(_points(told)))
        return gr.update(visible=False), needs_key, *updates, {"job": job, "events": told}, now

    async def _told(self, key: str, job: str, seen: Json) -> list[Json]:
        """The job's events, oldest first; those seen before are not asked for again."""
        if not job:
            return []
        old = seen["events"] if seen["job"] == job else []
        known = {event["id"] for event in old[-EVENTS_PAGE:]}
        fresh: list[Json] = []
        query: Json = {"limit": EVENTS_PAGE}
        while True:
            page = await self._calls.get(key, f"/fine_tuning/jobs/{job}/events", **query)
            fresh += [event for event in page["data"] if event["id"] not in known]
            if not page["has_more"] or known & {event["id"] for event in page["data"]}:
                return old + fresh[::-1]
            query["after"] = page["last_id"]

    # -- acting --------------------------------------------------------------------------------------------------------

    async def start(self, model: str, beta: float | None, epochs: float | None, key: str) -> str:
        wishes: Json = {"beta": beta} if beta else {}
        wishes |= {"n_epochs": int(epochs)} if epochs else {}
        body = {"model": model, "training_file": "ledger", "hyperparameters": wishes}
        try:
            return f"{(await self._calls.post(key, '/fine_tuning/jobs', body))['id']} is queued."
        except CallFailed as failed:
            return str(failed)

    async def cancel(self, job: str, key: str) -> str:
        if not job:
            return "There is no job to cancel."
        try:
            return f"{(await self._calls.post(key, f'/fine_tuning/jobs/{job}/cancel', {}))['id']} is cancelled."
        except CallFailed as failed:
            return str(failed)

    async def promote(self, model: str, adapter: str, reason: str, key: str) -> Step:
        if not adapter:
            return "There is no adapter to promote.", reason
        return await self._move(key, f"/adapters/{adapter}/promote", {"reason": reason}, reason)

    async def roll_back(self, model: str, adapter: str, reason: str, key: str) -> Step:
        if not reason.strip():
            return "Say why: a roll-back's reason is kept in the history.", reason
        return await self._move(key, "/adapters/rollback", {"model": model, "reason": reason}, reason)

    async def _move(self, key: str, path: str, body: Json, reason: str) -> Step:
        """A reason is spent once it is in the history."""
        try:
            return f"{(await self._calls.post(key, path, body))['live']} is live.", ""
        except CallFailed as failed:
            return str(failed), reason


def _table(label: str, columns: dict[str, int]) -> gr.Dataframe:
    widths: list[str | int] = [f"{width}px" for width in columns.values()]
    return gr.Dataframe(headers=list(columns), column_widths=widths, label=label, interactive=False, wrap=True)


def _served(names: list[str]) -> list[str]:
    """Served models are those that have a base by their name."""
    return [name for name in names if f"{name}-base" in names]


def _numbers(stats: Json) -> str:
    pairs, serving = stats["pairs"], stats["serving"]
    return (
        f"Votes **{stats['votes']}** · answers **{stats['completions']}** · pairs **{pairs['total']}**: "
        f"to train on {pairs['train']}, held out {pairs['held_out']}, new since the last job **{pairs['waiting']}** · "
        f"live {_code(serving['live'])}, before it {_code(serving['previous'])}"
    )


def _progress(job: Json | None, told: list[Json]) -> str:
    """The newest step in numbers, and the newest words."""
    if job is None:
        return "No job yet. One starts by itself when enough votes have come, or by the button."
    steps = [event["data"] for event in told if event["type"] == "metrics"]
    words = next((event["message"] for event in reversed(told) if event["type"] != "metrics"), "")
    parts = [f"**{job['status']}**"]
    if steps and job["status"] in OPEN:
        data = steps[-1]
        parts.append(f"step {data['step']} of {data['total_steps']}")
        parts += [f"{name} {data[metric]:.3f}" for metric, name in CURVES.items() if data.get(metric) is not None]
        parts += [f"{data['seconds_left']:.0f} s left"] if data.get("seconds_left") is not None else []
    return " · ".join([*parts, *([words] if words else [])])


def _points(told: list[Json]) -> list[Json]:
    return [
        {"step": event["data"]["step"], "value": event["data"][metric], "metric": name}
        for event in told
        if event["type"] == "metrics"
        for metric, name in CURVES.items()
        if event["data"].get(metric) is not None
    ]


def _job_row(job: Json) -> list[Any]:
    why = job["error"]["message"] if job["error"] else ""
    return [job["id"], _when(job["created_at"]), job["status"], job["pairs"], job["fine_tuned_model"] or "", why]


def _adapter_row(one: Json) -> list[Any]:
    why = one["history"][-1]["reason"] if one["history"] else ""
    gate = one["gate"]
    decision = gate.get("decision") or ("pass" if gate.get("passed") else "fail")
    verdict = f"{decision}: {'; '.join(gate.get('reasons') or [])}" if gate else ""
    return [one["id"], _when(one["created"]), one["state"], one["pairs"], one["parent"] or "", verdict, why]


def _code(name: str | None) -> str:
    return f"`{name}`" if name else "nothing"


def _when(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")
