"""Group commit: what comes in while the ledger is busy goes to it together, and each caller gets their own reply.

Redis writes to disk once for all it finds waiting, and a trip costs this side many times what a script costs Redis, so
one trip for many is cheaper for everybody. Nobody waits for company: a script that finds no trip under way leaves at
once. A script is atomic, a group is not: one that is refused takes no other along.

Replication comes after the reply, so a primary that dies takes along what its replicas had not got. What is to be kept
has its reply when enough of them have it; others do not wait for that.
"""

import asyncio
import hashlib
import math
import socket
import struct
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from feedback.errors import LedgerUnavailable
from feedback.failures import FAILURES, at_one_place_only, refused_or_lost, unreachable

MOST = 128
"""Scripts in one trip: four times the 32 clients of `make bench`, and not enough to hold Redis up for 10 ms."""

PATIENCE = 0.5
"""Share of the ledger's timeout that replicas have: whoever waits is told so before they give up."""

Argument = str | int | float | bytes


@dataclass(eq=False)
class Act:
    """A script that somebody awaits the reply of."""

    script: str
    keys: Sequence[str]
    args: Sequence[Argument]
    reply: asyncio.Future[Any]
    is_kept: bool = False
    by_source: bool = False

    def answer(self, reply: Any) -> None:
        if not self.reply.done():
            self.reply.set_result(reply)

    def packed(self) -> bytes:
        """As it goes over the wire (RESP). redis-py's own packing of a vote took 17 µs; this takes 6."""
        name, script = ("EVAL", self.script) if self.by_source else ("EVALSHA", _digest(self.script))
        parts = [name, script, len(self.keys), *self.keys, *self.args]
        wire = [b"*%d\r\n" % len(parts)]
        for part in parts:
            text = part if isinstance(part, bytes) else str(part).encode()
            wire.append(b"$%d\r\n%b\r\n" % (len(text), text))
        return b"".join(wire)

    def refuse(self, refusal: LedgerUnavailable, cause: BaseException | None = None) -> None:
        if not self.reply.done():
            refusal.__cause__ = cause
            self.reply.set_exception(refusal)


def _break_off(writer: asyncio.StreamWriter) -> None:
    """What has not reached the server by now never shall.

    The kernel goes on sending for a closed socket, for minutes. Where a cable was pulled for a while, a vote whose
    voter was told to try again would come after the one that they gave since, and take its place. So the socket is
    closed with a reset (SO_LINGER of no time), for which redis-py has no call.
    """
    with suppress(OSError):  # it was closed already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@cache
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


class Commits:
    """One trip to Redis after the other, for all served models of a process."""

    def __init__(self, redis: "Redis", timeout_s: float, replicas: int) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        self._replicas = replicas
        self._keeping: set[asyncio.Task[None]] = set()
        self._waiting: deque[Act] = deque()
        self._trips: asyncio.Task[None] | None = None

    @property
    def _pool(self) -> Any:  # redis-py does not type its methods
        return self._redis.connection_pool

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Argument], *, is_kept: bool = False) -> Any:
        """Raises LedgerUnavailable."""
        loop = asyncio.get_running_loop()
        if self._trips is None or self._trips.done() or self._trips.get_loop() is not loop:
            # What is left here belongs to an event loop that has ended, as have those who waited for it.
            self._waiting.clear()
            self._trips = loop.create_task(self._travel())
        act = Act(script, keys, args, loop.create_future(), is_kept and self._replicas > 0)
        self._waiting.append(act)
        return await act.reply

    async def close(self) -> None:
        here = asyncio.get_running_loop()
        keeping = [task for task in self._keeping if task.get_loop() is here]
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)

    async def _travel(self) -> None:
        while self._waiting:
            group = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
            group = [act for act in group if not act.reply.done()]  # done before it left: its caller was cancelled
            try:
                unknown = await self._commit(group)
            except BaseException as error:  # this task was ended, or has a bug: nobody is to wait for ever
                for act in (*group, *self._waiting):
                    act.refuse(refused_or_lost(error), error)
                raise
            for act in unknown:
                act.by_source = True
            self._waiting.extendleft(reversed(unknown))

    async def _commit(self, group: Sequence[Act]) -> list[Act]:
        """Those whose script the server does not know yet; all others have their reply."""
        pool = self._pool
        try:
            connection = await pool.get_connection()
        except FAILURES as error:
            for act in group:
                act.refuse(unreachable(error), error)
            return []
        unknown, kept, is_demoted = [], [], False
        writer = connection._writer  # redis-py forgets it as soon as something fails
        try:
            await connection.send_packed_command(b"".join([act.packed() for act in group]))
            # One limit around all replies: one around each, as redis-py sets it, costs more than the reading.
            async with asyncio.timeout(self._timeout_s):
                for act in group:
                    try:
                        reply = await connection.read_response(timeout=math.inf, disconnect_on_error=False)
                    except NoScriptError:
                        unknown.append(act)
                    except ResponseError as error:
                        is_demoted = is_demoted or isinstance(error, ReadOnlyError)
                        act.refuse(refused_or_lost(error), error)
                    else:
                        if act.is_kept:
                            kept.append((act, reply))
                        else:
                            act.answer(reply)
            if is_demoted:  # the address may lead to another server by now, and these connections never would
                await connection.disconnect()
                await pool.disconnect(inuse_connections=False)
        except FAILURES as error:
            kept.clear()
            # Where one connection broke, those that lie idle in the pool have most likely broken too, and the pool may
            # hand one out before the event loop has seen that: after a restart each would cost somebody a refusal.
            _break_off(writer)
            await connection.disconnect()
            await pool.disconnect(inuse_connections=False)
            for act in group:
                if act not in unknown:
                    act.refuse(refused_or_lost(error), error)
        finally:
            if kept:
                keeping = asyncio.create_task(self._keep(connection, kept))
                self._keeping.add(keeping)
                keeping.add_done_callback(self._keeping.discard)
            else:
                await pool.release(connection)
        return unknown

    async def _keep(self, connection: Any, kept: Sequence[tuple[Act, Any]]) -> None:
        """Answer when the replicas have what was written until now.

        Here, on the connection that wrote: after a failover another one would ask the new primary, which knows of
        nothing that it lacks. The message goes to nobody and to all replicas, so that there is something to wait for
        also where a vote was given again, which writes nothing: it may be the first time that got no answer.
        """
        refusal, cause = at_one_place_only(), None
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.send_command("PUBLISH", "heed:kept", "")
                await connection.read_response(timeout=math.inf, disconnect_on_error=False)
                await connection.send_command("WAIT", self._replicas, int(self._timeout_s * PATIENCE * 1000))
                reached = await connection.read_response(timeout=math.inf, disconnect_on_error=False)
            if reached >= self._replicas:
                for act, reply in kept:
                    act.answer(reply)
        except FAILURES as error:
            cause = error
            await connection.disconnect()
        finally:
            for act, _ in kept:
                act.refuse(refusal, cause)
            await self._pool.release(connection)
