"""The page "Your votes": each vote of this browser, and what became of it."""

import asyncio
from typing import Any

import gradio as gr

from serve.client import CallFailed, CallUnknown
from serve.console.calls import Calls, Json
from serve.console.chat import browser_memory
from serve.console.fate import fate, is_settled

LOOK_EVERY_S = 10
"""A training takes minutes, so nobody waits long to read what it did with a vote."""

WATCHED = "(memory, ...others) => [{...memory, is_hidden: document.hidden}, ...others]"
"""Whether anybody can see the page goes with each look."""

COLUMNS = ["Question", "Your vote", "What became of it"]


class VotesPage:
    """Built inside a Blocks; its methods are what the events call."""

    def __init__(self, calls: Calls, page: gr.Blocks) -> None:
        self._calls = calls
        memory = browser_memory()
        settled = gr.State({})
        down = gr.Markdown(visible=False, elem_classes="heed-alert", elem_id="heed-votes-down")
        key = gr.Textbox("", label="Key", type="password", visible=False, elem_id="heed-votes-key")
        table = gr.Dataframe(
            label="Your votes, newest first",
            headers=COLUMNS,
            datatype="str",
            interactive=False,
            wrap=True,
            elem_id="heed-votes",
        )
        gr.on(
            [page.load, gr.Timer(LOOK_EVERY_S).tick],
            self.look,
            [memory, settled, key],
            [table, settled, key, down],
            js=WATCHED,
            api_name="look_at_votes",
            show_progress="hidden",
        )

    async def look(self, memory: Json, settled: dict[str, str], key: str) -> tuple[Any, ...]:
        """A gateway that is down leaves the table as it was. What is settled is asked for once while the page is open,
        and nothing while nobody can see it."""
        if memory.get("is_hidden"):
            return (gr.skip(),) * 4
        needs_key = gr.update(visible=self._calls.needs_key)
        try:
            await self._calls.get(key, "/models")
        except CallFailed as failed:
            return gr.skip(), gr.skip(), needs_key, gr.update(value=str(failed), visible=True)
        votes = memory.get("votes", [])
        found = await asyncio.gather(*(self._fate(vote["id"], key) for vote in votes if vote["id"] not in settled))
        known = settled | {vote: words for vote, words, _ in found}
        rows = [[vote["about"], vote["said"], known[vote["id"]]] for vote in votes]
        settled = settled | {vote: words for vote, words, is_last in found if is_last}
        return rows, settled, needs_key, gr.update(visible=False)

    async def _fate(self, vote: str, key: str) -> tuple[str, str, bool]:
        """The vote, what became of it, and whether that is settled. Of one that the ledger no longer knows, which was
        withdrawn or erased, the gateway's own words say so."""
        try:
            lineage = await self._calls.get(key, f"/votes/{vote}/lineage")
        except CallFailed as failed:
            return vote, str(failed), isinstance(failed, CallUnknown)
        return vote, fate(lineage), is_settled(lineage)
