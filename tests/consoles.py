"""A console for tests: the real process, pressed as a browser presses it, by the requests of Gradio's own client."""

import json
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.processes import free_port, running, wait_for

Json = dict[str, Any]
START_S = 120  # its imports take five CPU seconds, and the machine may be busy


@dataclass
class RunningConsole:
    url: str
    var: Path

    def turn_to(self, gateway_url: str, operator_key: str = "") -> None:
        """What `heed up` and the gateway leave in var/ for the clients of their machine."""
        (self.var / "stack.json").write_text(json.dumps({"gateway_url": gateway_url}))
        (self.var / "operator.key").write_text(operator_key)


@contextmanager
def running_console(var: Path) -> Iterator[RunningConsole]:
    port = free_port()
    env = {"HEED_VAR": str(var), "HEED_CONSOLE_PORT": str(port)}
    console = RunningConsole(f"http://127.0.0.1:{port}", var)
    log = var / "console.log"

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(httpx.HTTPError):
            return httpx.get(console.url, timeout=5, trust_env=False).status_code == 200
        return False

    with running([sys.executable, "-m", "serve.console"], log, env) as process:
        wait_for(is_ready, "the console answers", START_S)
        yield console


class Browser:
    """One open page: a session of its own, and what it would show."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._session = secrets.token_hex(6)
        self._config: Json = {}

    async def press(self, name: str, *given: Any, event: Json | None = None) -> list[Any]:
        """What the event changed on the page, once it is over."""
        *_, last = [output async for output in self.watch(name, *given, event=event)]
        assert last["success"], last
        return [_shown(one) for one in last["output"]["data"]]

    async def watch(self, name: str, *given: Any, event: Json | None = None) -> AsyncIterator[Json]:
        """The messages of an event as they come: `process_generating` for each step, `process_completed` in the end."""
        if not self._config:
            self._config = (await self._http.get("/config")).json()
        number = next(one["id"] for one in self._config["dependencies"] if one["api_name"] == name)
        body = {"data": given, "fn_index": number, "session_hash": self._session, "event_data": event}
        joined = await self._http.post("/gradio_api/queue/join", json=body)
        assert joined.status_code == 200, joined.text
        query = {"session_hash": self._session}
        async with self._http.stream("GET", "/gradio_api/queue/data", params=query) as told:
            async for line in told.aiter_lines():
                message: Json = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") in ("process_generating", "process_completed"):
                    yield message


def _shown(output: Any) -> Any:
    """An update of a component is its new value, where it has one."""
    is_update = isinstance(output, dict) and output.get("__type__") == "update"
    return output.get("value", output) if is_update else output
