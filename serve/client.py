"""The commands' way to the gateway: its address, the operator's key of this machine, and failures in its own words."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import httpx
import typer
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console

from feedback.settings import SECRETS

P = ParamSpec("P")
Json = dict[str, Any]

TIMEOUT_S = 120


class CallFailed(Exception):
    """The gateway said no, or nobody answered; the message says what would help."""


class CallRefused(CallFailed):
    """The gateway said that what was sent cannot be taken; something else may be."""


class CallUnknown(CallFailed):
    """The gateway knows nothing by that name."""


class ClientSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="HEED_", extra="ignore", env_ignore_empty=True, secrets_dir=SECRETS)

    url: str = Field(
        "", description="Address of the gateway; default: that of the running stack, or 127.0.0.1 and HEED_PORT."
    )
    port: int = Field(8000, description="Port of the gateway on this machine.")
    var: Path = Field(Path("var"), description="Where the stack of this machine keeps operator.key and stack.json.")
    operator_key: str = Field("", description="The operator's key; default: what is in operator.key.")

    @property
    def gateway_url(self) -> str:
        if self.url or "port" in self.model_fields_set:
            return self.url or f"http://127.0.0.1:{self.port}"
        try:
            return str(json.loads((self.var / "stack.json").read_text())["gateway_url"])
        except (OSError, ValueError, KeyError):
            return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        try:
            return self.operator_key or (self.var / "operator.key").read_text().strip()
        except OSError:
            return ""


class Client:
    def __init__(self, settings: ClientSettings) -> None:
        self.url = settings.gateway_url.rstrip("/")
        headers = {"authorization": f"Bearer {settings.key}"} if settings.key else {}
        # No proxies from the environment: the gateway is on this machine or named by its address.
        self._http = httpx.Client(base_url=f"{self.url}/v1", headers=headers, timeout=TIMEOUT_S, trust_env=False)

    def get(self, path: str, **query: Any) -> Json:
        return self._call("GET", path, params=query)

    def delete(self, path: str) -> Json:
        return self._call("DELETE", path)

    def post(self, path: str, body: Json) -> Json:
        return self._call("POST", path, json=body)

    def stream(self, path: str, body: Json) -> Iterator[Json]:
        """The events of a streamed answer. Raises CallFailed, also within the stream."""
        with self._reached(), self._http.stream("POST", path, json=body) as reply:
            if reply.status_code != 200:
                reply.read()
                raise failure_of(reply)
            for line in reply.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    event: Json = json.loads(line[6:])
                    if "error" in event:
                        raise CallFailed(event["error"]["message"])
                    yield event

    @contextmanager
    def lines(self, path: str, **query: Any) -> Iterator[tuple[httpx.Headers, Iterator[bytes]]]:
        """The headers and the lines of a long answer, as they come. Raises CallFailed, also when it breaks off."""
        with self._reached(), self._http.stream("GET", path, params=query) as reply:
            if reply.status_code != 200:
                reply.read()
                raise failure_of(reply)
            yield reply.headers, _lines(reply.iter_bytes())

    def send_lines(self, path: str, content: bytes, **query: Any) -> Json:
        headers = {"content-type": "application/jsonl"}
        return self._call("POST", path, params=query, content=content, headers=headers)

    def _call(self, method: str, path: str, **sent: Any) -> Json:
        with self._reached():
            reply = self._http.request(method, path, **sent)
        if reply.status_code != 200:
            raise failure_of(reply)
        answer: Json = reply.json()
        return answer

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise CallFailed(f"{self.url} does not answer ({type(error).__name__}); is `make run` running?") from error


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """httpx would also split at the separators that JSON texts may hold, such as U+2028."""
    begun = b""
    for chunk in chunks:
        *whole, begun = (begun + chunk).split(b"\n")
        yield from whole
    if begun:
        yield begun


def failure_of(reply: httpx.Response) -> CallFailed:
    kind = {400: CallRefused, 404: CallUnknown, 413: CallRefused}.get(reply.status_code, CallFailed)
    try:
        return kind(str(reply.json()["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        return CallFailed(f"the gateway answered with status {reply.status_code}; is it Heed that listens there?")


def spoken(act: Callable[P, None]) -> Callable[P, None]:
    """Let a command's failures be a sentence and exit code 1."""

    @wraps(act)
    def acting(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            act(*args, **kwargs)
        except CallFailed as failed:
            Console(highlight=False).print(str(failed), style="red", markup=False, soft_wrap=True)
            raise typer.Exit(1) from None

    return acting
