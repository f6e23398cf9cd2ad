"""When a service is ready: it has answered, and not merely been started."""

from collections.abc import Awaitable, Callable

import httpx

from feedback.connection import open_ledger
from feedback.errors import LedgerUnavailable
from feedback.settings import LedgerSettings
from serve.supervisor import Started

IsReady = Callable[[Started], Awaitable[bool]]


def http_answers(url: str) -> IsReady:
    async def is_ready(_: Started) -> bool:
        try:
            # trust_env: a proxy named in the environment must not be asked for a port of this machine.
            async with httpx.AsyncClient(trust_env=False, verify=False, timeout=5) as client:
                return (await client.get(url)).status_code == 200
        except httpx.HTTPError:
            return False

    return is_ready


def ledger_answers(url: str) -> IsReady:
    """A server that is still reading its append-only file refuses the ping, so it is not ready."""

    async def is_ready(_: Started) -> bool:
        ledger = open_ledger(LedgerSettings(ledger_url=url))
        try:
            return bool(await ledger.reply(ledger.redis.ping()))
        except LedgerUnavailable:
            return False
        finally:
            await ledger.close()

    return is_ready


def log_says(text: str) -> IsReady:
    async def is_ready(started: Started) -> bool:
        return started.has_said(text)

    return is_ready
