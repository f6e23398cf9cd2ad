"""The page "Operate": the circle in numbers and what an operator may do with it. For whoever has the operator's key.

Everything is asked anew every two seconds, and what has not changed is left alone, so that nothing moves under a hand.
"""

import asyncio
import html
from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr
import pandas as pd

from serve.client import CallFailed
from serve.console import circle, export, lineage, progress, quality, rows
from serve.console.calls import Calls, Json
from serve.console.lately import Lately
from serve.console.orders import CHOICE, METHODS, Orders, Said
from serve.console.progress import CURVES, OPEN

LOOK_EVERY_S = 2
"""As often as a person looks, and only while the page is open."""

FRESH_S, CALM_S = 1.5, 8.0
"""How old an answer may be: of what moves, and of what costs the gateway more or moves slowly."""

EVENTS_PAGE = 100
JOBS_SHOWN = 20
ADAPTERS_SHOWN = 100
VOTERS_SHOWN = 100

HEARD = {"quarantined": "Quarantined", "banned": "Banned", "released": "Released", "active": "Active"}

Now = dict[str, Json]
"""What each component should show, by its name."""

Update = dict[Any, Any]


class OperatePage:
    """Built inside a Blocks; its methods are what the events call, and return what changes by component."""

    def __init__(self, calls: Calls, page: gr.Blocks) -> None:
        self._calls = calls
        self._lately = Lately(calls)
        self._orders = Orders(self._lately, calls)
        self._seen = gr.State({"job": "", "events": []})
        self._before = gr.State({})
        gr.HTML("<h1>Operate</h1>", elem_classes="heed-unseen")
        self._down = gr.HTML(visible=False, elem_classes="heed-alert", elem_id="operate-down")
        with gr.Row(elem_classes="heed-row"):
            model = gr.Dropdown(["heed"], value="heed", label="Served model", scale=1, elem_id="operate-model")
            self._key = key = gr.Textbox(
                "", label="Operator key", type="password", visible=False, scale=2, elem_id="operate-key"
            )
        self._parts: dict[str, Any] = {"model": model}
        self._circle()
        job, starting = self._jobs()
        adapter, moving = self._adapters()
        self._votes()
        state, hearing = self._voters()
        self._rest()

        asked = [model, job, adapter, state, self._seen, self._before, key]
        view = [self._down, key, self._seen, self._before, *self._parts.values()]
        looking = {"api_visibility": "private", "show_progress": "hidden"}
        looks = [page.load, gr.Timer(LOOK_EVERY_S).tick, model.change, job.input, adapter.input, state.input]
        gr.on(looks, self.show, asked, view, api_name="operate_show", **looking)
        for said, orders in (starting, moving, hearing):
            for button, act, given, spent in orders:
                acting = _spoken(act, bool(spent))
                done = button.click(acting, [model, *given, key], [said, *spent], api_name=act.__name__)
                done.then(self.show, asked, view, **looking)

    # -- the page ------------------------------------------------------------------------------------------------------

    def _circle(self) -> None:
        with gr.Row():
            with gr.Column(min_width=320):
                self._html("circle", "operate-circle")
                self._html("triggers", "operate-triggers")
            with gr.Column(min_width=320):
                self._html("progress", "operate-progress")
        with gr.Row():
            for metric, name in CURVES.items():
                self._parts[metric] = gr.LinePlot(
                    x="step",
                    y=name,
                    label=name,
                    height=200,
                    min_width=250,
                    visible=False,
                    elem_id=f"operate-curve-{metric.rsplit('/', 1)[-1]}",
                )

    def _jobs(self) -> Any:
        gr.Markdown("## Jobs")
        with gr.Row(elem_classes="heed-row"):
            method = gr.Dropdown(list(METHODS), value=CHOICE, label="Learn by", min_width=220, elem_id="operate-method")
            beta = gr.Number(
                0, label="Beta", info="Tie to the reference; 0: the recipe's.", minimum=0, elem_id="operate-beta"
            )
            epochs = gr.Number(
                0, label="Epochs", info="Passes over the pairs; 0: the recipe's.", minimum=0, elem_id="operate-epochs"
            )
            preview = gr.Button("Preview a job", elem_id="operate-preview", min_width=150)
            start = gr.Button("Start a job on the votes", variant="primary", elem_id="operate-start", min_width=150)
        with gr.Row(elem_classes="heed-row"):
            job = self._parts["job"] = gr.Dropdown(
                [], label="Look at the job", scale=3, min_width=300, elem_id="operate-job"
            )
            cancel = gr.Button("Cancel it", variant="stop", scale=1, elem_id="operate-cancel", min_width=150)
        said = _said("operate-jobs-said")
        self._table("jobs", "Jobs, newest first", rows.JOB_COLUMNS)
        wishes = [method, beta, epochs]
        # A job that is asked for is the newest, and so the one that is looked at next.
        orders = [
            (start, self.start, wishes, [job]),
            (preview, self.preview, wishes, [job]),
            (cancel, self.cancel, [job], []),
        ]
        return job, (said, orders)

    def _adapters(self) -> Any:
        gr.Markdown("## Adapters")
        self._html("tree", "operate-tree")
        with gr.Row(elem_classes="heed-row"):
            adapter = self._parts["adapter"] = gr.Dropdown(
                [], label="Adapter", scale=2, min_width=260, elem_id="operate-adapter"
            )
            reason = gr.Textbox(
                "", label="Reason", info="Kept in its history.", max_length=500, scale=2, elem_id="operate-reason"
            )
        with gr.Row(elem_classes="heed-row"):
            promote = gr.Button("Promote it", variant="primary", elem_id="operate-promote", min_width=150)
            retire = gr.Button("Retire it", elem_id="operate-retire", min_width=150)
            rollback = gr.Button("Roll back", variant="stop", elem_id="operate-rollback", min_width=150)
        with gr.Row(elem_classes="heed-row"):
            percent = gr.Number(
                10, label="Percent of the people", minimum=0, maximum=100, elem_id="operate-percent", min_width=150
            )
            auto = gr.Checkbox(False, label="Live or back by itself", elem_id="operate-auto", min_width=150)
            canary = gr.Button("Try it on them", elem_id="operate-canary", min_width=150)
            end = gr.Button("End the trial", elem_id="operate-end-trial", min_width=150)
        said = _said("operate-adapters-said")
        self._html("verdict", "operate-verdict")
        self._table("gate", "What its gate found", rows.GATE_COLUMNS)
        gr.Markdown("## Canary")
        self._html("canary", "operate-trial")
        orders = [
            (promote, self.promote, [adapter, reason], [reason]),
            (retire, self.retire, [adapter, reason], [reason]),
            (rollback, self.roll_back, [reason], [reason]),
            (canary, self.try_it, [adapter, percent, auto, reason], [reason]),
            (end, self.end_trial, [reason], [reason]),
        ]
        return adapter, (said, orders)

    def _votes(self) -> None:
        gr.Markdown("## What the votes say")
        self._html("quality", "operate-quality")

    def _voters(self) -> Any:
        gr.Markdown("## Voters")
        self._html("electorate", "operate-electorate")
        with gr.Row(elem_classes="heed-row"):
            state = gr.Dropdown(
                [(words, name) for name, words in HEARD.items()],
                value="quarantined",
                label="Show those who are",
                elem_id="operate-voter-state",
            )
            voter = gr.Textbox("", label="Voter", max_length=200, elem_id="operate-voter")
            why = gr.Textbox(
                "", label="Reason", info="Kept in the voter's history.", max_length=500, elem_id="operate-voter-reason"
            )
        self._table("voters", "Voters in this state, by name", rows.VOTER_COLUMNS)
        with gr.Row():
            buttons = {
                act: gr.Button(words, elem_id=f"operate-{act}", min_width=150)
                for act, words in (("release", "Hear again"), ("quarantine", "Quarantine"), ("ban", "Ban"))
            }
        said = _said("operate-voters-said")
        self._parts["voters"].select(_picked, None, voter, api_name="pick_voter", show_progress="hidden")
        acts = {"release": self.release, "quarantine": self.quarantine, "ban": self.ban}
        return state, (said, [(buttons[name], act, [voter, why], [why]) for name, act in acts.items()])

    def _rest(self) -> None:
        gr.Markdown("## Replicas")
        self._html("ready", "operate-ready")
        self._table("engines", "vLLM servers, as the gateway sees them", rows.ENGINE_COLUMNS)
        gr.Markdown("## Export")
        self._html("export", "operate-export")

    def _html(self, name: str, elem_id: str) -> None:
        self._parts[name] = gr.HTML(elem_id=elem_id)

    def _table(self, name: str, label: str, columns: dict[str, int]) -> None:
        self._parts[name] = gr.Dataframe(
            headers=list(columns),
            column_widths=[f"{width}px" for width in columns.values()],
            label=label,
            interactive=False,
            wrap=True,
            elem_id=f"operate-{name}",
        )

    # -- looking -------------------------------------------------------------------------------------------------------

    async def show(
        self, model: str, job: str | None, adapter: str | None, state: str, seen: Json, before: Now, key: str
    ) -> Update:
        needs_key = {self._key: gr.update(visible=self._calls.needs_key)}
        try:
            # Who looks at the newest job goes on to the next when it comes. An adapter is not changed under a hand that
            # may be about to promote it, unless it is the base for want of another.
            job = None if [job] == _choices(before, "job")[:1] else job
            adapter = None if [adapter] == _choices(before, "adapter") else adapter
            now, seen = await self._look(key, model, job, adapter, state, seen)
        except CallFailed as failed:
            return {**needs_key, self._down: gr.update(value=_line(str(failed), "alert"), visible=True)}
        changed = {name: told for name, told in now.items() if before.get(name) != told}
        updates = {self._parts[name]: _update(name, told) for name, told in changed.items()}
        return {
            **needs_key,
            **updates,
            self._down: gr.update(visible=False),
            self._seen: seen,
            self._before: now,
        }

    async def _look(
        self, key: str, model: str, job: str | None, adapter: str | None, state: str, seen: Json
    ) -> tuple[Now, Json]:
        """Raises CallFailed."""
        names = _served([one["id"] for one in (await self._lately.get(CALM_S, key, "/models"))["data"]])
        model = model if model in names else names[0]

        async def look(age_s: float, path: str, **query: Any) -> Json:
            return await self._lately.get(age_s, key, path, model=model, **query)

        jobs, listed, canary, stats, voters, engines, ready = await asyncio.gather(
            look(FRESH_S, "/fine_tuning/jobs", limit=JOBS_SHOWN),
            look(FRESH_S, "/adapters", limit=ADAPTERS_SHOWN),
            look(FRESH_S, "/canary"),
            look(CALM_S, "/stats"),
            look(CALM_S, "/voters", state=state, limit=VOTERS_SHOWN),
            self._lately.get(FRESH_S, key, "/engines"),
            self._lately.readiness(FRESH_S),
        )
        # The pointer moves at once, the report a moment later.
        stats = stats | {"serving": listed["serving"]}

        ids = [one["id"] for one in jobs["data"]]
        job = job if job in ids else next(iter(ids), None)
        told = await self._told(key, job, seen)
        open_job = next((one for one in jobs["data"] if one["status"] in OPEN), None)
        steps = progress.steps_of(told) if open_job and open_job["id"] == job else []
        step = steps[-1] if steps else None
        chosen = next((one for one in jobs["data"] if one["id"] == job), None)
        base = f"{model}-base"
        made = {one["id"]: one for one in listed["data"]}
        adapter = adapter if adapter in (*made, base) else next(iter(made), base)
        examined = made.get(adapter)
        now: Now = {
            "model": {"choices": names, "value": model},
            "circle": {"value": circle.circle(stats, open_job, step, canary["running"], engines["data"])},
            "triggers": {"value": circle.triggers(stats)},
            "progress": {"value": progress.progress(chosen, told)},
            **{metric: {"value": progress.points(told, metric)} for metric in CURVES},
            "job": {"choices": ids, "value": job},
            "jobs": {"value": [rows.job_row(one) for one in jobs["data"]]},
            "tree": {"value": lineage.tree(listed["data"], listed["serving"], stats["versions"], base)},
            "adapter": {"choices": [*made, base], "value": adapter},
            "verdict": {"value": lineage.verdict(examined) if examined else ""},
            "gate": {"value": rows.gate_rows(examined), "visible": bool(rows.gate_rows(examined))},
            "canary": {"value": quality.trial(canary)},
            "quality": {"value": quality.quality(stats)},
            "electorate": {"value": rows.electorate(stats)},
            "voters": {"value": [rows.voter_row(one) for one in voters["data"]], "visible": bool(voters["data"])},
            "ready": {"value": rows.readiness(ready)},
            "engines": {"value": [rows.engine_row(one) for one in engines["data"]]},
            "export": {"value": export.form(model, self._calls.needs_key)},
        }
        return now, {"job": job, "events": told}

    async def _told(self, key: str, job: str | None, seen: Json) -> list[Json]:
        """The job's events, oldest first; those seen before are not asked for again."""
        if not job:
            return []
        old = seen["events"] if seen["job"] == job else []
        known = {event["id"] for event in old[-EVENTS_PAGE:]}
        fresh: list[Json] = []
        query: Json = {"limit": EVENTS_PAGE}
        while True:
            page = await self._lately.get(FRESH_S, key, f"/fine_tuning/jobs/{job}/events", **query)
            fresh += [event for event in page["data"] if event["id"] not in known]
            if not page["has_more"] or known & {event["id"] for event in page["data"]}:
                return old + fresh[::-1]
            query["after"] = page["last_id"]

    # -- acting --------------------------------------------------------------------------------------------------------

    async def start(self, model: str, method: str, beta: float | None, epochs: float | None, key: str) -> Said:
        return await self._orders.job(key, model, method, beta, epochs, is_dry=False)

    async def preview(self, model: str, method: str, beta: float | None, epochs: float | None, key: str) -> Said:
        return await self._orders.job(key, model, method, beta, epochs, is_dry=True)

    async def cancel(self, model: str, job: str | None, key: str) -> Said:
        return await self._orders.cancel(key, job or "")

    async def promote(self, model: str, adapter: str | None, reason: str, key: str) -> Said:
        return await self._orders.promote(key, adapter or "", reason)

    async def retire(self, model: str, adapter: str | None, reason: str, key: str) -> Said:
        return await self._orders.retire(key, adapter or "", reason)

    async def roll_back(self, model: str, reason: str, key: str) -> Said:
        return await self._orders.roll_back(key, model, reason)

    async def try_it(
        self, model: str, adapter: str | None, percent: float | None, auto: bool, reason: str, key: str
    ) -> Said:
        return await self._orders.try_it(key, adapter or "", percent, auto, reason)

    async def end_trial(self, model: str, reason: str, key: str) -> Said:
        return await self._orders.end_trial(key, model, reason)

    async def release(self, model: str, voter: str, reason: str, key: str) -> Said:
        return await self._orders.hear(key, model, voter, "release", reason)

    async def quarantine(self, model: str, voter: str, reason: str, key: str) -> Said:
        return await self._orders.hear(key, model, voter, "quarantine", reason)

    async def ban(self, model: str, voter: str, reason: str, key: str) -> Said:
        return await self._orders.hear(key, model, voter, "ban", reason)


def _said(elem_id: str) -> Any:
    """Where the outcome of a section's orders is told."""
    return gr.HTML(elem_classes="heed-said", elem_id=elem_id)


def _picked(cell: gr.SelectData) -> str:
    """The voter of the row."""
    return str(cell.row_value[0])


def _spoken(act: Callable[..., Awaitable[Said]], is_spent: bool) -> Callable[..., Awaitable[Any]]:
    """What an order came to, as its line on the page. What was given for it is emptied once it is done."""

    async def acting(*given: Any) -> Any:
        words, is_done = await act(*given)
        line = _line(words, "status" if is_done else "alert")
        return (line, gr.update(value=None) if is_done else gr.skip()) if is_spent else line

    return acting


def _update(name: str, told: Json) -> Any:
    if name not in CURVES:
        return gr.update(**told)
    points = pd.DataFrame(told["value"], columns=["step", CURVES[name]])
    return gr.update(value=points, visible=not points.empty)


def _choices(before: Now, name: str) -> list[str]:
    return list(before.get(name, {}).get("choices", []))


def _served(names: list[str]) -> list[str]:
    """Served models are those that have a base by their name."""
    return [name for name in names if f"{name}-base" in names]


def _line(words: str, role: str) -> str:
    return f'<p role="{role}">{html.escape(words)}</p>'
