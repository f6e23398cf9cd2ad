"""The page "Chat": ask, read, judge. A thumb is a vote, two answers to one prompt are a comparison."""

import time
from collections.abc import AsyncIterator
from secrets import token_hex
from typing import Any

import gradio as gr

from serve.client import CallFailed
from serve.console.calls import Calls, Json
from serve.console.conversation import (
    Turn,
    answer,
    is_comparable,
    last_answer,
    messages,
    question,
    shown,
    thumbs,
    with_vote,
)
from serve.console.prose import prose

SHOW_EVERY_S = 0.05
"""A browser draws no faster than it reads; without a pause each token would send the conversation."""

LOOK_EVERY_S = 10
"""For new adapters, and for a gateway that is back."""

FORMULAS = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]

REASONS = ("correct", "clear", "wrong", "not what I asked", "too long", "too short", "unsafe")
"""Of both thumbs. The gateway takes any words; these few are one touch on a phone."""

Step = tuple[Any, ...]


def browser_memory() -> gr.BrowserState:
    """What this browser keeps of its visits, the same on every page."""
    # The secret only keeps the browser's copy readable after a restart of the console; it guards nothing.
    nothing = {"voter": "", "turns": [], "votes": []}
    return gr.BrowserState(nothing, storage_key="heed-chat", secret="heed")


class ChatPage:
    """Built inside a Blocks; its methods are what the events call."""

    def __init__(self, calls: Calls, page: gr.Blocks) -> None:
        self._calls = calls
        turns = gr.State([])
        memory = browser_memory()
        unseen = {"api_visibility": "private", "show_progress": "hidden"}
        down = gr.Markdown(visible=False, elem_classes="heed-alert")
        with gr.Row(elem_classes="heed-row"):
            model = gr.Dropdown(["heed"], value="heed", label="Model", scale=3, elem_id="heed-model")
            key = gr.Textbox("", label="Key", type="password", visible=False, scale=2, elem_id="heed-key")
            new = gr.Button("New conversation", scale=1, min_width=200, elem_id="heed-new")
        chatbot = gr.Chatbot(
            label="Conversation",
            elem_id="heed-conversation",
            height="56vh",
            latex_delimiters=FORMULAS,
            sanitize_html=True,
            allow_tags=False,
            buttons=["copy"],
            placeholder="Ask something, then say by a thumb whether the answer was good.",
        )
        with gr.Column(visible=False) as choice:
            older = gr.Markdown(container=True, latex_delimiters=FORMULAS, sanitize_html=True)
            with gr.Row():
                newer_wins = gr.Button("The new one is better", elem_id="heed-newer-wins")
                older_wins = gr.Button("The old one was better", elem_id="heed-older-wins")
        text = gr.Textbox(
            "",
            label="Your message",
            elem_id="heed-message",
            placeholder="Enter sends, Shift-Enter is a new line",
            lines=1,
            max_lines=8,
            submit_btn=True,
            autofocus=True,
        )
        said = gr.Markdown(elem_classes="heed-said", elem_id="heed-said")
        with gr.Accordion("Say more about the last answer", open=False):
            comment = gr.Textbox("", label="Comment", max_length=20_000, elem_id="heed-comment")
            correction = gr.Textbox(
                "", label="The answer you wanted", lines=3, max_length=20_000, elem_id="heed-correction"
            )
            reasons = gr.CheckboxGroup(list(REASONS), label="Reasons", elem_id="heed-reasons")
            more = gr.Button("Send", elem_id="heed-send-more")

        talk = [turns, chatbot, said, choice, older]
        view = [memory, *talk]
        waiting = {"show_progress": "minimal", "show_progress_on": chatbot}
        asking = text.submit(self.ask, [text, turns, model, key], [text, *talk], api_name="ask", **waiting)
        again = chatbot.retry(self.ask_again, [turns, model, key], [text, *talk], api_name="ask_again", **waiting)
        for answering in (asking, again):
            answering.then(self.remember, [turns, memory], memory, **unseen)
        text.stop(self.stop, [turns, memory], [text, memory], cancels=[asking, again], **unseen)
        noted = {"show_progress": "hidden"}
        chatbot.like(self.judge, [turns, memory, key], view, api_name="judge", **noted)
        newer_wins.click(self.prefer_newer, [turns, memory, key], view, api_name="prefer_newer", **noted)
        older_wins.click(self.prefer_older, [turns, memory, key], view, api_name="prefer_older", **noted)
        words = [comment, correction, reasons]
        more.click(self.say_more, [*words, turns, memory, key], [*words, *view], api_name="say_more", **noted)
        gr.on([new.click, chatbot.clear], self.forget, memory, view, **unseen)
        page.load(self.recall, memory, view, **unseen)
        gr.on([page.load, gr.Timer(LOOK_EVERY_S).tick], self.look, [model, key], [model, key, down], **unseen)

    # -- asking --------------------------------------------------------------------------------------------------------

    async def ask(self, text: str, turns: list[Turn], model: str, key: str) -> AsyncIterator[Step]:
        """A failure before the first token gives the text back, so that Enter asks again."""
        if not text.strip():
            yield gr.skip(), *_talk(turns)
            return
        asked = now = [*turns, question(text)]
        problem = ""
        yield _buttons(is_busy=True, value=""), *_talk(asked)
        async for now, problem in self._answer(asked, answer(), model, key):
            yield gr.skip(), *_talk(now, problem)
        if now == asked:
            yield _buttons(is_busy=False, value=text), *_talk(turns, problem)
        else:
            yield _buttons(is_busy=False), *_talk(now, problem)

    async def ask_again(self, turns: list[Turn], model: str, key: str) -> AsyncIterator[Step]:
        """The last answer gives way to another, and is kept beside it to be compared."""
        before = last_answer(turns)
        asked = now = turns[:-1] if before else turns
        problem = ""
        yield _buttons(is_busy=True), *_talk(asked)
        async for now, problem in self._answer(asked, answer(before), model, key):
            yield gr.skip(), *_talk(now, problem)
        yield _buttons(is_busy=False), *_talk(turns if problem or now == asked else now, problem)

    async def _answer(
        self, asked: list[Turn], reply: Turn, model: str, key: str
    ) -> AsyncIterator[tuple[list[Turn], str]]:
        """The conversation as it grows, and in the end what went wrong; without a token it ends as it was asked."""
        body = {"model": model, "messages": messages(asked), "stream": True}
        completion_id, told = None, 0.0
        try:
            async for event in self._calls.stream(key, "/chat/completions", body):
                completion_id, reply["model"] = event["id"], event["model"]
                for choice in event["choices"]:
                    reply["content"] += choice["delta"].get("content") or ""
                if reply["content"] and time.monotonic() - told > SHOW_EVERY_S:
                    told = time.monotonic()
                    yield [*asked, dict(reply)], ""
        except CallFailed as failed:
            yield [*asked, reply] if reply["content"] else asked, str(failed)
            return
        reply["id"] = completion_id
        yield [*asked, reply], ""

    # -- judging -------------------------------------------------------------------------------------------------------

    async def judge(self, turns: list[Turn], memory: Json, key: str, thumb: gr.LikeData) -> Step:
        index = thumb.index[0] if isinstance(thumb.index, (list, tuple)) else thumb.index
        rating = {True: "up", False: "down"}.get(thumb.liked)
        problem = await self._vote(turns[index], memory["voter"], key, rating=rating)
        memory = _noted(memory, turns, index)
        return _view(memory, turns, problem or ("Noted, thank you." if rating else "Taken back."))

    async def say_more(
        self, comment: str, correction: str, reasons: list[str], turns: list[Turn], memory: Json, key: str
    ) -> Step:
        given = comment, correction, reasons
        last = last_answer(turns)
        if not last:
            return *given, *_view(memory, turns, "There is no answer to say something about yet.")
        if not (comment.strip() or correction.strip() or reasons):
            return *given, *_view(memory, turns, "Write a comment or the answer you wanted, or pick a reason.")
        if not (rating := last["rating"] or ("down" if correction.strip() else None)):
            say = "Give the answer a thumb first: a comment or a reason belongs to a vote."
            return *given, *_view(memory, turns, say)
        words = {"comment": comment.strip() or None, "correction": correction.strip() or None, "reasons": reasons}
        if problem := await self._vote(last, memory["voter"], key, rating=rating, **words):
            return *given, *_view(memory, turns, problem)
        memory = _noted(memory, turns, len(turns) - 1)
        return "", "", [], *_view(memory, turns, "Noted, thank you.")

    async def prefer_newer(self, turns: list[Turn], memory: Json, key: str) -> Step:
        return await self._prefer(turns, memory, key, is_newer=True)

    async def prefer_older(self, turns: list[Turn], memory: Json, key: str) -> Step:
        return await self._prefer(turns, memory, key, is_newer=False)

    async def _prefer(self, turns: list[Turn], memory: Json, key: str, is_newer: bool) -> Step:
        """The better answer stays in the conversation."""
        if not is_comparable(turns):
            return _view(memory, turns, "There are no two answers to compare.")
        newer, older = turns[-1], turns[-1]["older"]
        better, worse = (newer, older) if is_newer else (older, newer)
        chosen, rejected = ({"completion_id": turn["id"]} for turn in (better, worse))
        body = {"chosen": chosen, "rejected": rejected, "voter": memory["voter"]}
        try:
            preference = await self._calls.post(key, "/preferences", body)
        except CallFailed as failed:
            return _view(memory, turns, str(failed))
        memory = with_vote(memory, preference["id"], turns[:-1], "better of two")
        return _view(memory, [*turns[:-1], better | {"older": None}], "Noted, thank you.")

    async def _vote(self, turn: Turn, voter: str, key: str, rating: str | None, **words: Any) -> str:
        """Cast, change or take back; what went wrong, in words, and then the turn is as it was."""
        if not turn.get("id"):
            return "This answer was stopped before its end, so there is no vote on it."
        words = {name: words.get(name) or turn.get(name) for name in ("comment", "correction")} | {
            "reasons": words.get("reasons") or turn.get("reasons") or []
        }
        try:
            if rating:
                body = {"completion_id": turn["id"], "rating": rating, "voter": voter, **words}
                vote = await self._calls.post(key, "/votes", body)
                turn |= {"rating": rating, "vote": vote["id"], **words}
            elif turn["vote"]:
                await self._calls.delete(key, f"/votes/{turn['vote']}")
                turn |= {"rating": None, "vote": None, "comment": None, "correction": None, "reasons": []}
        except CallFailed as failed:
            return str(failed)
        return ""

    # -- remembering ---------------------------------------------------------------------------------------------------

    def recall(self, memory: Json) -> Step:
        """What this browser knew; a new one gets a name for its votes."""
        return _view({**memory, "voter": memory["voter"] or f"browser-{token_hex(8)}"}, memory["turns"])

    def remember(self, turns: list[Turn], memory: Json) -> Json:
        return {**memory, "turns": turns}

    def stop(self, turns: list[Turn], memory: Json) -> Step:
        """What has been said so far stays; the engine's work on the rest ends with our connection."""
        return _buttons(is_busy=False), self.remember(turns, memory)

    def forget(self, memory: Json) -> Step:
        return _view(memory, [])

    async def look(self, model: str, key: str) -> Step:
        """Which models there are, and whether the gateway answers."""
        needs_key = gr.update(visible=self._calls.needs_key)
        try:
            names = [one["id"] for one in (await self._calls.get(key, "/models"))["data"]]
        except CallFailed as failed:
            return gr.skip(), needs_key, gr.update(value=str(failed), visible=True)
        chosen = model if model in names else names[0]
        return gr.update(choices=names, value=chosen), needs_key, gr.update(visible=False)


def _talk(turns: list[Turn], said: str = "") -> Step:
    can_choose = is_comparable(turns)
    chat = gr.update(value=shown(turns), feedback_value=thumbs(turns))
    older = f"**Before:** {prose(turns[-1]['older']['content'])}" if can_choose else ""
    return turns, chat, said, gr.update(visible=can_choose), older


def _noted(memory: Json, turns: list[Turn], index: int) -> Json:
    """With the vote on that answer among this browser's; one taken back stays listed, for it may have taught."""
    turn = turns[index]
    if not turn.get("vote"):
        return memory
    said = f"{turn['rating']}, corrected" if turn.get("correction") else turn["rating"]
    return with_vote(memory, turn["vote"], turns[:index], said)


def _view(memory: Json, turns: list[Turn], said: str = "") -> Step:
    return {**memory, "turns": turns}, *_talk(turns, said)


def _buttons(is_busy: bool, **text: str) -> Any:
    """Send or stop; without `text` what is being written stays."""
    return gr.update(submit_btn=not is_busy, stop_btn=is_busy, **text)
