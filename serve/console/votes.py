"""The page "Your votes": each vote of this browser, and what became of it."""

import asyncio
from typing import Any

import gradio as gr

from serve.client import CallFailed
from serve.console.calls import Calls, Json
from serve.console.chat import browser_memory
from serve.console.fate import fate

LOOK_EVERY_S = 10
"""A training takes minutes, so nobody waits long to read what it did with a vote."""

COLUMNS = ["Question", "Your vote", "What became of it"]


class VotesPage:
    """Built inside a Blocks; its methods are what the events call."""

    def __init__(self, calls: Calls, page: gr.Blocks) -> None:
        self._calls = calls
        memory = browser_memory()
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
            [memory, key],
            [table, key, down],
            api_name="look_at_votes",
            show_progress="hidden",
        )

    async def look(self, memory: Json, key: str) -> tuple[Any, ...]:
        """A gateway that is down leaves the table as it was."""
        needs_key = gr.update(visible=self._calls.needs_key)
        try:
            await self._calls.get(key, "/models")
        except CallFailed as failed:
            return gr.skip(), needs_key, gr.update(value=str(failed), visible=True)
        rows = await asyncio.gather(*(self._row(vote, key) for vote in memory.get("votes", [])))
        return list(rows), needs_key, gr.update(visible=False)

    async def _row(self, vote: Json, key: str) -> list[str]:
        """One that the ledger no longer knows was withdrawn or erased; its row says so in the gateway's words."""
        try:
            became = fate(await self._calls.get(key, f"/votes/{vote['id']}/lineage"))
        except CallFailed as failed:
            became = str(failed)
        return [vote["about"], vote["said"], became]
