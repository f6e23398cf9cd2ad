"""The page "Compare": two answers side by side, nobody knows whose; a vote, then the names, then the next prompt.

Prompts come from the gateway's queue (an operator's file, recent traffic where the gateway may offer it), or from
whoever sits here. Left is the API's side `a`: the gateway has shuffled the sides already.
"""

import html
import re
import time
from collections.abc import AsyncIterator
from functools import partial
from io import BytesIO
from secrets import token_hex
from typing import Any

import gradio as gr

from serve.client import CallFailed, CallRefused
from serve.console.calls import Calls, Json
from serve.console.chat import FORMULAS, LOOK_EVERY_S, SHOW_EVERY_S
from serve.console.prose import prose
from serve.exchange import prompts_of

QUEUE, OWN = "the queue", "me"
ITSELF = "itself, asked twice"

BUTTONS = {
    "a": ("left", "Left is better (1)"),
    "b": ("right", "Right is better (2)"),
    "tie": ("tie", "Both are as good (3)"),
    "both_bad": ("both-bad", "Both are bad (4)"),
}
SPOKEN = {"a": "left is better", "b": "right is better", "tie": "both are as good", "both_bad": "both are bad"}

# A key without Ctrl or Alt may be one that somebody's reader or hand strikes by chance, so it can be switched off.
KEYS = """() => {
  const named = {1: "left", 2: "right", 3: "tie", 4: "both-bad"};
  for (const [key, name] of Object.entries(named))
    document.getElementById(`compare-${name}`)?.setAttribute("aria-keyshortcuts", key);
  if (window.heedKeys) return;
  window.heedKeys = true;
  document.addEventListener("keydown", (event) => {
    const at = event.target;
    const isWriting = at.isContentEditable || /^(TEXTAREA|SELECT)$/.test(at.tagName)
      || (at.tagName === "INPUT" && !/^(checkbox|radio)$/.test(at.type));
    if (isWriting || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const button = document.getElementById(`compare-${named[event.key]}`);
    if (!button || button.disabled || !document.querySelector("#compare-keys input")?.checked) return;
    event.preventDefault();
    button.click();
  });
}"""

# Each chat can be emptied by a button of Gradio's; what is judged here is not the browser's to empty.
CSS = """
#compare-prompt button[aria-label="Clear"], #compare-left-answer button[aria-label="Clear"],
#compare-right-answer button[aria-label="Clear"] { display: none; }
"""

JUDGED_COLUMNS = {"prompt": 320, "left": 190, "right": 190, "you said": 160}
JUDGED_SHOWN = 20
REFUSALS_SHOWN = 5

Step = tuple[Any, ...]
Update = dict[Any, Any]


class ComparePage:
    """Built inside a Blocks; its methods are what the events call, and return what changes by component."""

    def __init__(self, calls: Calls, page: gr.Blocks) -> None:
        self._calls = calls
        self._now = gr.State({})
        self._rows = gr.State([])
        gr.HTML("<h1>Compare two answers</h1>", elem_classes="heed-unseen")
        # The same as the page "Chat" remembers: a person votes under one name on both.
        memory = gr.BrowserState({"voter": "", "turns": []}, storage_key="heed-chat", secret="heed")
        unseen = {"api_visibility": "private", "show_progress": "hidden"}
        self._down = gr.HTML(visible=False, elem_classes="heed-alert", elem_id="compare-down")
        with gr.Row(elem_classes="heed-row"):
            source = gr.Radio(
                [("Prompts of the queue", QUEUE), ("My own prompts", OWN)],
                value=QUEUE,
                label="What is asked",
                elem_id="compare-source",
            )
            model = self._model = gr.Dropdown(["heed"], value="heed", label="Compare", elem_id="compare-model")
            against = self._against = gr.Dropdown(
                [ITSELF], value=ITSELF, label="with", elem_id="compare-against", info="Sides are shuffled and hidden."
            )
            key = self._key = gr.Textbox("", label="Key", type="password", visible=False, elem_id="compare-key")
        own = self._own = gr.Textbox(
            "",
            label="Your prompt",
            placeholder="Enter asks, Shift-Enter is a new line",
            max_lines=8,
            visible=False,
            submit_btn="Ask",
            elem_id="compare-own",
        )
        chat: Json = {"latex_delimiters": FORMULAS, "sanitize_html": True, "allow_tags": False, "buttons": []}
        self._prompt = gr.Chatbot(
            label="Prompt",
            height=None,
            min_height=110,
            max_height=220,
            placeholder="No prompt yet",
            elem_id="compare-prompt",
            **chat,
        )
        with gr.Row():
            sides = {
                "height": None,
                "min_height": 160,
                "max_height": "44vh",
                "min_width": 280,
                "placeholder": " ",
                **chat,
            }
            self._left = gr.Chatbot(label="Left", elem_id="compare-left-answer", **sides)
            self._right = gr.Chatbot(label="Right", elem_id="compare-right-answer", **sides)
        with gr.Row():
            self._buttons = {
                preferred: gr.Button(words, interactive=False, min_width=150, elem_id=f"compare-{name}")
                for preferred, (name, words) in BUTTONS.items()
            }
        with gr.Row(elem_classes="heed-row"):
            more = self._more = gr.Button("Next prompt", variant="primary", elem_id="compare-next", min_width=150)
            gr.Checkbox(True, label="Keys 1 to 4 vote", elem_id="compare-keys", min_width=150)
        self._said = gr.HTML(elem_classes="heed-said", elem_id="compare-said")
        self._judged = gr.Dataframe(
            headers=list(JUDGED_COLUMNS),
            column_widths=[f"{width}px" for width in JUDGED_COLUMNS.values()],
            label="What you judged here, newest first",
            interactive=False,
            wrap=True,
            visible=False,
            elem_id="compare-judged",
        )
        with gr.Accordion("Prompts for annotators, from a file (operator)", open=False, elem_id="compare-annotators"):
            gr.Markdown(
                'JSON Lines: `{"prompt": …}` is a prompt, a line with `chosen` and `rejected` as well a honeypot. '
                "Every voter gets each prompt once; a line that is there already changes nothing."
            )
            file = gr.UploadButton(
                "Add a file to the queue", type="binary", file_types=[".jsonl", ".json"], elem_id="compare-file"
            )
            file.example_payload = dict  # Gradio's, which it tells every page, is a file on another host
            self._queued = gr.HTML(elem_classes="heed-said", elem_id="compare-queued")

        asked = [source, own, model, against, memory, key]
        shown = [self._now, self._prompt, self._left, self._right, self._said, self._rows, self._judged, own, more]
        view = [*shown, *self._buttons.values()]
        busy = {"show_progress": "hidden", "trigger_mode": "once"}
        gr.on([more.click, own.submit], self.ask, [self._now, *asked], view, api_name="compare_ask", **busy)
        for preferred, button in self._buttons.items():
            judge = partial(self.judge, preferred)
            button.click(judge, [self._now, self._rows, *asked], view, api_name=f"compare_{preferred}", **busy)
        source.change(self.turn, source, [own, more], **unseen)
        file.upload(self.enqueue, [file, model, key], self._queued, api_name="compare_enqueue")
        page.load(None, js=KEYS)
        page.load(self.recall, memory, memory, **unseen)
        looked = [model, against, key, self._down]
        looks = [page.load, gr.Timer(LOOK_EVERY_S).tick]
        gr.on(looks, self.look, [model, against, key], looked, api_name="compare_look", **unseen)

    # -- asking --------------------------------------------------------------------------------------------------------

    async def ask(
        self, now: Json, source: str, own: str, model: str, against: str, memory: Json, key: str
    ) -> AsyncIterator[Update]:
        """Both answers as they come. They can be judged once both are whole, for then they are in the ledger."""
        if source == OWN and not own.strip():
            yield {self._said: _told("Write a prompt first.")}
            return
        names = {"model": model} if against in ("", None, ITSELF) else {"models": [model, against]}
        body: Json = {"stream": True, **names}
        path = "/comparisons/next"
        if source == OWN:
            path, body["messages"] = "/comparisons", [{"role": "user", "content": own.strip()}]
        else:
            body["voter"] = memory["voter"] or None
        asked, texts = body.get("messages", []), {"a": "", "b": ""}
        yield self._opened(asked)
        drawn_at, found = 0.0, ""
        try:
            async for event in self._calls.stream(key, path, body):
                if event["object"] == "comparison.prompt":
                    asked = event["messages"]
                elif event["object"] == "comparison.chunk":
                    texts[event["side"]] += event["delta"].get("content") or ""
                else:
                    found = event["id"]
                if time.monotonic() - drawn_at > SHOW_EVERY_S:
                    drawn_at = time.monotonic()
                    yield self._drawn(asked, texts)
        except CallFailed as failed:
            yield {**self._drawn(asked, texts), **self._closed(is_ready=False), self._said: _alert(str(failed))}
            return
        ready = {self._now: {"id": found, "prompt": _last(asked)}, self._own: ""}
        yield {**self._drawn(asked, texts), **self._closed(is_ready=True), **ready}

    def _opened(self, asked: list[Json]) -> Update:
        """Nothing to judge while it is answered. The names of the last sides stay in what was said."""
        return {
            **self._drawn(asked, {"a": "", "b": ""}),
            **{button: gr.update(interactive=False) for button in self._buttons.values()},
            self._now: {},
            self._more: gr.update(interactive=False),
        }

    def _drawn(self, asked: list[Json], texts: dict[str, str]) -> Update:
        sides = {"a": (self._left, "Left"), "b": (self._right, "Right")}
        drawn: Update = {
            chat: gr.update(label=name, value=[_said_by("assistant", texts[side])] if texts[side] else [])
            for side, (chat, name) in sides.items()
        }
        return {**drawn, self._prompt: [_said_by(one["role"], _text(one)) for one in asked]}

    def _closed(self, is_ready: bool) -> Update:
        enabled = {button: gr.update(interactive=is_ready) for button in self._buttons.values()}
        return {**enabled, self._more: gr.update(interactive=True)}

    # -- judging -------------------------------------------------------------------------------------------------------

    async def judge(
        self,
        preferred: str,
        now: Json,
        rows: list[list[str]],
        source: str,
        own: str,
        model: str,
        against: str,
        memory: Json,
        key: str,
    ) -> AsyncIterator[Update]:
        """The vote, then who was who, then the queue's next prompt at once."""
        if not now.get("id"):
            yield {self._said: _told("There are no two answers to judge; ask for the next prompt.")}
            return
        body = {"preferred": preferred, "voter": memory["voter"] or None}
        try:
            vote = await self._calls.post(key, f"/comparisons/{now['id']}/vote", body)
        except CallFailed as failed:
            yield {self._said: _alert(str(failed))}
            return
        left, right = vote["a"]["adapter"], vote["b"]["adapter"]
        rows = [[now["prompt"], left, right, SPOKEN[preferred]], *rows][:JUDGED_SHOWN]
        yield {
            **{button: gr.update(interactive=False) for button in self._buttons.values()},
            self._now: {},
            self._rows: rows,
            self._judged: gr.update(value=rows, visible=True),
            self._left: gr.update(label=f"Left: {left}"),
            self._right: gr.update(label=f"Right: {right}"),
            self._said: _told(f"You said that {SPOKEN[preferred]}. Left was {left}, right was {right}."),
        }
        if source == QUEUE:
            async for update in self.ask(now, source, own, model, against, memory, key):
                yield update

    # -- around it -----------------------------------------------------------------------------------------------------

    def turn(self, source: str) -> Step:
        return gr.update(visible=source == OWN), gr.update(visible=source == QUEUE)

    def recall(self, memory: Json) -> Any:
        """A browser that has not chatted yet gets its name for votes here."""
        return gr.skip() if memory.get("voter") else {**memory, "voter": f"browser-{token_hex(8)}"}

    async def look(self, model: str, against: str, key: str) -> Step:
        """Which models there are, and whether the gateway answers."""
        needs_key = gr.update(visible=self._calls.needs_key)
        try:
            names = [one["id"] for one in (await self._calls.get(key, "/models"))["data"]]
        except CallFailed as failed:
            return gr.skip(), gr.skip(), needs_key, gr.update(value=_alert(str(failed)), visible=True)
        model = model if model in names else names[0]
        others = [ITSELF, *names]
        chosen = gr.update(choices=others, value=against if against in others else ITSELF)
        return gr.update(choices=names, value=model), chosen, needs_key, gr.update(visible=False)

    async def enqueue(self, content: bytes, model: str, key: str) -> str:
        """The first refusals by their line; the others by their number."""
        new = known = 0
        refused: list[str] = []
        try:
            for number, prompt in prompts_of(BytesIO(content), len(content)):
                try:
                    if isinstance(prompt, str):
                        raise CallRefused(prompt)
                    added = await self._calls.post(key, "/prompts", {**prompt, "model": _served(model)})
                except CallRefused as reason:
                    refused.append(f"line {number}: {reason}")
                else:
                    new, known = new + added["changed"], known + (not added["changed"])
        except CallFailed as failed:
            refused.append(str(failed))
        words = [f"{new} prompts are new in the queue, {known} were there, {len(refused)} lines were refused."]
        return "".join(_told(line) for line in words + refused[:REFUSALS_SHOWN])


def _served(name: str) -> str:
    """The served model of a concrete name."""
    return re.sub(r"-(base|v\d+-[0-9a-f]{8})$", "", name)


def _text(message: Json) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or f"({part.get('type')})") for part in content)
    return str(content or "")


def _said_by(role: str, text: str) -> Json:
    """A chat knows two roles; whatever is neither is told by its name."""
    if role in ("user", "assistant"):
        return {"role": role, "content": prose(text)}
    return {"role": "user", "content": prose(f"{role}: {text}")}


def _last(asked: list[Json]) -> str:
    return _text(asked[-1]) if asked else ""


def _told(words: str) -> str:
    return f'<p role="status">{html.escape(words)}</p>'


def _alert(words: str) -> str:
    return f'<p role="alert">{html.escape(words)}</p>'
