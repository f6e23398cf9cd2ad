"""One door to Redis: a blocking pool with a timeout, scripts in groups, failures by one name.

Nothing here retries: the caller knows whether its act may be repeated.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from feedback.commits import Argument, Commits
from feedback.failures import FAILURES, refused_or_lost
from feedback.keys import Keys
from feedback.redaction import Redaction
from feedback.settings import LedgerSettings


@dataclass
class Ledger:
    """One served model's part of the ledger.

    Errors: every call raises LedgerUnavailable when Redis cannot be reached in time or refuses to write.
    """

    redis: "Redis"
    keys: Keys
    settings: LedgerSettings
    commits: Commits
    redaction: Redaction
    clock: Callable[[], float] = time.time

    @property
    def model(self) -> str:
        return self.keys.model

    def of(self, model: str) -> "Ledger":
        """The same server, another served model."""
        return Ledger(self.redis, Keys(model), self.settings, self.commits, self.redaction, self.clock)

    async def run(self, script: str, keys: Iterable[str], args: Iterable[Argument]) -> Any:
        """Run a Lua script atomically, in one trip with others that are waiting to be run."""
        return await self.commits.run(script, list(keys), list(args))

    async def reply(self, command: Any) -> Any:
        """Await a redis command, turning its failures into the ledger's own."""
        try:
            return await command
        except FAILURES as error:
            raise refused_or_lost(error) from error

    async def close(self) -> None:
        self.redaction.close()
        await self.redis.aclose()
        await self.redis.connection_pool.disconnect()


def open_ledger(settings: LedgerSettings, model: str = "heed", clock: Callable[[], float] = time.time) -> Ledger:
    """A ledger whose connections are made when first used, in whichever event loop uses them."""
    pool = BlockingConnectionPool.from_url(
        settings.ledger_url,
        max_connections=settings.ledger_connections,
        timeout=settings.ledger_timeout_s,
        socket_timeout=settings.ledger_timeout_s,
        socket_connect_timeout=settings.ledger_timeout_s,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )
    redis = Redis(connection_pool=pool)
    commits = Commits(redis, settings.ledger_timeout_s)
    return Ledger(redis, Keys(model), settings, commits, Redaction(settings), clock)
