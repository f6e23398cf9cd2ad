"""One door to Redis: a blocking pool with a timeout, scripts by their source, failures by one name.

Nothing here retries: the caller knows whether its act may be repeated.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from feedback.errors import LedgerUnavailable
from feedback.keys import Keys
from feedback.settings import LedgerSettings


@dataclass
class Ledger:
    """One served model's part of the ledger.

    Errors: every call raises LedgerUnavailable when Redis cannot be reached in time or refuses to write.
    """

    redis: "Redis"
    keys: Keys
    settings: LedgerSettings
    clock: Callable[[], float] = time.time
    _scripts: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def model(self) -> str:
        return self.keys.model

    def of(self, model: str) -> "Ledger":
        """The same server, another served model."""
        return Ledger(self.redis, Keys(model), self.settings, self.clock, self._scripts)

    async def run(self, script: str, keys: Iterable[str], args: Iterable[str | int | float | bytes]) -> Any:
        """Run a Lua script atomically; it is sent once and then called by its digest."""
        if script not in self._scripts:
            self._scripts[script] = self.redis.register_script(script)
        return await self.reply(self._scripts[script](keys=list(keys), args=list(args), client=self.redis))

    async def reply(self, command: Any) -> Any:
        """Await a redis command, turning its failures into the ledger's own."""
        try:
            return await command
        except (RedisError, OSError, TimeoutError) as error:
            raise LedgerUnavailable(
                f"the ledger did not take the request ({type(error).__name__}); nothing was stored; try again"
            ) from error

    async def close(self) -> None:
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
    return Ledger(Redis(connection_pool=pool), Keys(model), settings, clock)
