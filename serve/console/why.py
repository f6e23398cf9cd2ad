"""The page "Why this word": how likely base and adapter find each word of an answer, and where they differ.

Of an answer that the gateway has recorded, or of any text; nothing of it is recorded.
"""

import html
import re
from collections.abc import Iterable
from typing import Any

import gradio as gr

from serve.client import CallFailed
from serve.console import ribbon
from serve.console.calls import Calls, Json
from serve.console.chat import LOOK_EVERY_S
from serve.console.compare import alert, served_model, told
from serve.console.reading import Answered, Reading, reading, stored

ANSWER_ID = re.compile(r"chatcmpl-[\w-]{1,64}")
"""What may become a part of an address."""

LINKED = "(_, ...others) => [new URLSearchParams(window.location.search).get('answer') || '', ...others]"
"""The answer that this page was opened for goes with its first call."""

ABOUT = """
A model gives every word a probability before it says it. **Base** is the model before anybody voted, **live** the same
model with the adapter that was trained on the votes; here both read the same answer, and what differs is what the votes
taught. Choose a token to see what else could have stood there.
"""

Step = tuple[Any, ...]


class WhyPage:
    """Built inside a Blocks; its methods are what the events call."""

    def __init__(self, calls: Calls, page: gr.Blocks) -> None:
        self._calls = calls
        gr.HTML("<h1>Why this word</h1>", elem_classes="heed-unseen")
        down = gr.HTML(visible=False, elem_classes="heed-alert", elem_id="why-down")
        gr.Markdown(ABOUT)
        with gr.Row(elem_classes="heed-row"):
            answer = gr.Textbox(
                "", label="Answer's id", placeholder="chatcmpl-…", max_length=80, scale=3, elem_id="why-answer"
            )
            model = gr.Dropdown(["heed"], value="heed", label="Compare base with", scale=2, elem_id="why-model")
            key = gr.Textbox("", label="Key", type="password", visible=False, scale=2, elem_id="why-key")
            read = gr.Button("Read it", variant="primary", scale=1, min_width=150, elem_id="why-read")
        # Open: what is typed at once into fields that only now are shown is lost now and then.
        with gr.Accordion("Or a text of your own", elem_id="why-own"):
            question = gr.Textbox("", label="What was asked", lines=1, max_lines=8, max_length=20_000)
            text = gr.Textbox("", label="The answer to read", lines=3, max_lines=12, max_length=20_000)
            read_text = gr.Button("Read the text", min_width=150, elem_id="why-read-text")
        said = gr.HTML(elem_classes="heed-said", elem_id="why-said")
        shown = gr.HTML(elem_id="why-shown")

        view = [shown, said, model]
        waiting = {"show_progress": "minimal", "show_progress_on": shown, "trigger_mode": "once"}
        unseen = {"api_visibility": "private", "show_progress": "hidden"}
        gr.on([read.click, answer.submit], self.read, [answer, model, key], view, api_name="why_read", **waiting)
        given = [question, text, model, key]
        read_text.click(self.read_text, given, view, api_name="why_read_text", **waiting)
        page.load(None, js=ribbon.JS)
        page.load(self.open, [answer, model, key], [answer, *view], js=LINKED, **unseen)
        looks = [page.load, gr.Timer(LOOK_EVERY_S).tick]
        gr.on(looks, self.look, [model, key], [model, key, down], api_name="why_look", **unseen)

    async def open(self, answer: str, model: str, key: str) -> Step:
        return answer, *(await self.read(answer, model, key) if answer else (gr.skip(),) * 3)

    async def read(self, answer: str, model: str, key: str) -> Step:
        if not ANSWER_ID.fullmatch(answer := answer.strip()):
            return "", told("An answer's id begins with chatcmpl-: the API tells it with each answer."), gr.skip()
        try:
            completion = await self._calls.get(key, f"/chat/completions/{answer}")
            served = served_model(completion["model"])
            return await self._drawn(stored(completion), model if served_model(model) == served else served, key)
        except CallFailed as failed:
            return "", alert(str(failed)), gr.skip()

    async def read_text(self, question: str, text: str, model: str, key: str) -> Step:
        if not question.strip() or not text.strip():
            words = "Write both what was asked and the answer: a model reads one after the other."
            return "", told(words), gr.skip()
        asked = [{"role": "user", "content": question.strip()}]
        try:
            return await self._drawn(Answered(asked, {"role": "assistant", "content": text.strip()}), model, key)
        except CallFailed as failed:
            return "", alert(str(failed)), gr.skip()

    async def look(self, model: str, key: str) -> Step:
        """Which models there are, and whether the gateway answers."""
        needs_key = gr.update(visible=self._calls.needs_key)
        try:
            names = _adapters(await self._roots(key))
        except CallFailed as failed:
            return gr.skip(), needs_key, gr.update(value=alert(str(failed)), visible=True)
        chosen = {} if model in names else {"value": names[0]}
        return gr.update(choices=names, **chosen), needs_key, gr.update(visible=False)

    async def _drawn(self, answered: Answered, model: str, key: str) -> Step:
        """Raises CallFailed."""
        roots = await self._roots(key)
        # By its concrete name: a canary must not read for what is live, nor be judged by what it reads.
        name, base = roots.get(model, model), _base(model)
        names = dict.fromkeys([base, name])
        # One after the other: together, vLLM on a CPU has taken half a minute for what takes a tenth of a second.
        opened = await self._ask(key, answered.opened(base))
        wholes = [await self._ask(key, answered.whole(one)) for one in names]
        readings = [reading(opened, whole, answered.text) for whole in wholes]
        chosen = gr.update(choices=_adapters(roots), value=model)
        return _page(answered, readings[0], readings[-1]), told(f"Read by {' and '.join(names)}."), chosen

    async def _ask(self, key: str, body: Json) -> Json:
        return await self._calls.post(key, "/chat/completions", body)

    async def _roots(self, key: str) -> dict[str, str]:
        """The concrete name behind each that may be asked for."""
        return {one["id"]: one["root"] for one in (await self._calls.get(key, "/models"))["data"]}


def _adapters(names: Iterable[str]) -> list[str]:
    """Those that base can be compared with."""
    return [name for name in names if name != _base(name)]


def _base(name: str) -> str:
    return f"{served_model(name)}-base"


def _page(answered: Answered, base: Reading, policy: Reading) -> str:
    asked = html.escape(answered.question)
    return f"<p>Asked: <q><bdi>{asked}</bdi></q></p>{ribbon.drawn(base, policy)}"
