"""What the gateway's processes agree on through the ledger, a few times a second: keys, limits, the tokens' secret.

A key that is made or revoked, and what is taken of a limit, is known everywhere one interval later. While the ledger
is down each process goes on with what it knows.
"""

import asyncio
import logging
import math

from feedback import credentials
from feedback.connection import Ledger
from feedback.errors import LedgerUnavailable
from serve.keyring import Keyring
from serve.limits import Limits
from serve.vote_tokens import VoteTokens

log = logging.getLogger("heed.gateway")


class Accord:
    def __init__(self, ledger: Ledger, keys: Keyring, limits: Limits, tokens: VoteTokens, every_s: float) -> None:
        self._ledger = ledger
        self._keys = keys
        self._limits = limits
        self._tokens = tokens
        self._every_s = every_s
        self._version: str | None = None
        self._began = 0.0
        self._trip = asyncio.Lock()
        self._is_lost = False

    async def run(self) -> None:
        while True:
            await self._agree()
            await asyncio.sleep(self._every_s)

    async def look(self) -> None:
        """Hear of what was changed before this call; while the ledger does not answer, wait for nothing."""
        if not self._is_lost:
            await self._agree(asyncio.get_running_loop().time())

    async def _agree(self, since: float = math.inf) -> None:
        """One trip for all who wait: none where one began after `since`."""
        async with self._trip:
            if self._began > since:
                return
            self._began = asyncio.get_running_loop().time()
            try:
                used, self._keys.used = self._keys.used, set()
                agreed = await credentials.agree(self._ledger, used, self._limits.untold())
                if agreed.version != self._version:
                    self._keys.learn(await credentials.everyone(self._ledger))
                    self._version = agreed.version
            except LedgerUnavailable as error:
                if not self._is_lost:
                    log.warning("keys and limits are this process's own while the ledger is away: %s", error)
                self._is_lost = True
                return
            self._is_lost = False
            self._limits.learn(agreed.filled_ms)
            self._tokens.secret = agreed.secret
