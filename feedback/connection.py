"""One door to Redis: a blocking pool with a timeout, scripts in groups, failures by one name.

Nothing here retries: the caller knows whether its act may be repeated.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from feedback.address import open_pool
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

    async def keep(self, script: str, keys: Iterable[str], args: Iterable[Argument]) -> Any:
        """As `run`, and the reply comes when HEED_LEDGER_REPLICAS replicas have all that was written until then."""
        return await self.commits.run(script, list(keys), list(args), is_kept=True)

    async def reply(self, command: Any) -> Any:
        """Await a redis command, turning its failures into the ledger's own."""
        try:
            return await command
        except FAILURES as error:
            raise refused_or_lost(error) from error

    async def close(self) -> None:
        self.redaction.close()
        await self.commits.close()
        await self.redis.aclose()
        await self.redis.connection_pool.aclose()


def open_ledger(settings: LedgerSettings, model: str = "heed", clock: Callable[[], float] = time.time) -> Ledger:
    """A ledger whose connections are made when first used, in whichever event loop uses them."""
    pool = open_pool(
        settings.ledger_url,
        settings.ledger_timeout_s,
        settings.redis_ca,
        max_connections=settings.ledger_connections,
        socket_timeout=settings.ledger_timeout_s,
        decode_responses=True,
    )
    redis = Redis(connection_pool=pool)
    commits = Commits(redis, settings.ledger_timeout_s, settings.ledger_replicas)
    return Ledger(redis, Keys(model), settings, commits, Redaction(settings), clock)
