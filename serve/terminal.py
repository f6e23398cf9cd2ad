"""A chat in the terminal: answers as they come, `+` and `-` to say what they were worth."""

from collections.abc import Callable
from typing import Any

from rich.console import Console

from serve.client import CallFailed, Client

HELP = "+ or - votes on the last answer, ++TEXT corrects it, /new starts afresh, Ctrl-D ends."

Json = dict[str, Any]


class TerminalChat:
    def __init__(self, client: Client, model: str, voter: str, console: Console) -> None:
        self._client = client
        self._model = model
        self._voter = voter
        self._console = console
        self._messages: list[Json] = []
        self._answered = ""

    def run(self, read: Callable[[str], str] = input) -> None:
        self._console.print(f"You talk to {self._model} at {self._client.url}. {HELP}", style="dim")
        while True:
            try:
                line = read("> ").strip()
            except (EOFError, KeyboardInterrupt):
                self._console.print()
                return
            try:
                self._take(line)
            except CallFailed as failed:
                self._console.print(str(failed), style="red", markup=False)
            except KeyboardInterrupt:  # ends the answer and not the chat
                self._console.print()

    def _take(self, line: str) -> None:
        if line in ("+", "-"):
            self._vote({"rating": "up" if line == "+" else "down"})
        elif line.startswith("++"):
            self._vote({"rating": "down", "correction": line.removeprefix("++").strip()})
        elif line == "/new":
            self._messages, self._answered = [], ""
        elif line.startswith("/"):
            self._console.print(HELP, style="dim")
        elif line:
            self._ask(line)

    def _ask(self, line: str) -> None:
        """The turn is kept only when it was answered, so that a failure can be asked again."""
        turn = [*self._messages, {"role": "user", "content": line}]
        text = name = ""
        for event in self._client.stream("/chat/completions", {"model": self._model, "messages": turn, "stream": True}):
            name, completion_id = event["model"], event["id"]
            for choice in event["choices"]:
                part = choice["delta"].get("content") or ""
                text += part
                self._console.print(part, end="", markup=False, highlight=False, soft_wrap=True)
        self._console.print(f"\n[dim]{name}[/dim]")
        self._messages = [*turn, {"role": "assistant", "content": text}]
        self._answered = completion_id

    def _vote(self, opinion: Json) -> None:
        if not self._answered:
            self._console.print("There is no answer to vote on yet.", style="dim")
            return
        vote = self._client.post("/votes", {"completion_id": self._answered, "voter": self._voter, **opinion})
        kept = "kept" if vote["changed"] else "the same as before"
        self._console.print(f"Vote {vote['rating']} on an answer of {vote['model']}: {kept}.", style="dim")
