"""A ledger that cannot take a vote: the answer is 503 and true, nothing is half-written, and it mends by itself."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest

from feedback import completions, votes
from feedback.check import violations
from feedback.connection import Ledger, open_ledger
from feedback.errors import LedgerUnavailable
from feedback.settings import LedgerSettings
from serve.stack import Stack, StackSettings, services
from serve.supervisor import Service, Supervisor
from tests.gateways import RunningGateway, running_gateway, until
from tests.integration.test_ledger import recorded
from tests.processes import free_port, ledger_server
from tests.scripted_engine import scripted_engine

TIMEOUT_S = 1


def settings_of(port: int) -> LedgerSettings:
    return LedgerSettings(ledger_url=f"redis://127.0.0.1:{port}/0", ledger_timeout_s=TIMEOUT_S)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[tuple[LedgerSettings, subprocess.Popen[bytes]]]:
    """A server that a test may stop, starve and end without harm to others."""
    port = free_port()
    with ledger_server(tmp_path / "ledger", port) as process:
        yield settings_of(port), process


@pytest.fixture
async def own_ledger(own_server: tuple[LedgerSettings, subprocess.Popen[bytes]]) -> AsyncIterator[Ledger]:
    ledger = open_ledger(own_server[0])
    yield ledger
    await ledger.close()


async def broken(ledger: Ledger) -> list[str]:
    return [sentence async for sentence in violations(ledger)]


@pytest.mark.parametrize(
    ("setting", "value", "before", "word"),
    [("maxmemory", "1", "0", "OutOfMemoryError"), ("min-replicas-to-write", "1", "0", "NOREPLICAS")],
)
async def test_a_server_that_refuses_to_write_has_stored_nothing(
    own_ledger: Ledger, setting: str, value: str, before: str, word: str
) -> None:
    asked = await recorded(own_ledger, "q", "one")
    await own_ledger.redis.config_set(setting, value)

    with pytest.raises(LedgerUnavailable, match=rf"refused the request \({word}\); nothing was stored"):
        await votes.cast(own_ledger, completion_id=asked.id, rating="up", voter="ann")
    with pytest.raises(LedgerUnavailable, match="nothing was stored"):
        await recorded(own_ledger, "q", "two")

    await own_ledger.redis.config_set(setting, before)
    assert [one.id for one in (await completions.page(own_ledger))[0]] == [asked.id]
    assert (await votes.page(own_ledger))[0] == []
    assert await own_ledger.redis.hgetall(own_ledger.keys.unsettled) == {}
    assert (await votes.cast(own_ledger, completion_id=asked.id, rating="up", voter="ann"))[1]
    assert await broken(own_ledger) == []


async def test_an_answer_that_does_not_come_is_not_called_a_vote_that_was_not_stored(
    own_ledger: Ledger, own_server: tuple[LedgerSettings, subprocess.Popen[bytes]]
) -> None:
    _, process = own_server
    asked = await recorded(own_ledger, "q", "one")
    await votes.cast(own_ledger, completion_id=asked.id, rating="down", voter="ann")

    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(LedgerUnavailable, match="whether the request was stored is not known"):
            await votes.cast(own_ledger, completion_id=asked.id, rating="up", voter="ann")
    finally:
        process.send_signal(signal.SIGCONT)

    vote, _ = await votes.cast(own_ledger, completion_id=asked.id, rating="up", voter="ann")
    assert vote.rating == "up"
    assert await own_ledger.redis.zcard(own_ledger.keys.votes) == 1
    assert await broken(own_ledger) == []


class Cable:
    """Between one client and a server; unplugged, it takes nothing in, and what is sent waits at the sender."""

    def __init__(self, port: int) -> None:
        self._server = port
        self.plugged = asyncio.Event()
        self.plugged.set()
        self._door = socket.socket()
        self._door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._door.bind(("127.0.0.1", 0))
        self._door.listen()
        self._door.setblocking(False)
        self.port: int = self._door.getsockname()[1]

    async def carry_one(self) -> None:
        """Until the client has nothing more to say, and the server has all of it."""
        loop = asyncio.get_running_loop()
        client, _ = await loop.sock_accept(self._door)
        with self._door, client, socket.socket() as server:
            server.setblocking(False)
            await loop.sock_connect(server, ("127.0.0.1", self._server))
            answers = asyncio.create_task(self._carry(server, client))
            await self._carry(client, server)
            server.shutdown(socket.SHUT_WR)
            await answers

    async def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            while data := await loop.sock_recv(source, 1024):
                await self.plugged.wait()
                await loop.sock_sendall(sink, data)


async def test_a_script_that_was_under_way_when_a_cable_was_pulled_does_not_come_late(ledger: Ledger) -> None:
    cable = Cable(int(ledger.settings.ledger_url.rpartition(":")[2].split("/")[0]))
    carrying = asyncio.create_task(cable.carry_one())
    cut_off = open_ledger(settings_of(cable.port))
    script = "return redis.call('SET', KEYS[1], #ARGV[1])"
    await cut_off.run(script, ["before"], ["x"])

    cable.plugged.clear()
    with pytest.raises(LedgerUnavailable, match="is not known"):
        await cut_off.run(script, ["late"], ["x" * 30_000])  # more than the far side takes in
    cable.plugged.set()
    await carrying

    assert await ledger.redis.exists("before") == 1
    assert await ledger.redis.exists("late") == 0
    await cut_off.close()


async def test_where_no_connection_comes_about_nothing_was_stored() -> None:
    nowhere = open_ledger(settings_of(free_port()))

    with pytest.raises(LedgerUnavailable, match=r"cannot be reached .*; nothing was stored"):
        await votes.cast(nowhere, completion_id="chatcmpl-1", rating="up", voter="ann")
    await nowhere.close()


async def test_one_refused_script_takes_no_other_of_its_group_along(ledger: Ledger) -> None:
    asked = [await recorded(ledger, f"q{i}", "one") for i in range(20)]
    await ledger.redis.script_flush()

    outcomes = await asyncio.gather(
        *(votes.cast(ledger, completion_id=one.id, rating="up", voter="ann") for one in asked),
        ledger.run("return redis.call('NOSUCHCOMMAND', KEYS[1])", ["k"], []),
        return_exceptions=True,
    )

    *cast, refused = outcomes
    assert isinstance(refused, LedgerUnavailable)
    assert "'k'" not in str(refused)
    assert [outcome[0].completion_id for outcome in cast if isinstance(outcome, tuple)] == [one.id for one in asked]


async def test_a_caller_who_leaves_takes_no_other_along(ledger: Ledger) -> None:
    asked = await recorded(ledger, "q", "one")
    some = [
        asyncio.create_task(votes.cast(ledger, completion_id=asked.id, rating="up", voter=f"v{i}")) for i in range(20)
    ]
    await asyncio.sleep(0)  # each has begun

    for task in some[::2]:
        task.cancel()
    outcomes = await asyncio.gather(*some, return_exceptions=True)

    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[::2])
    assert all(isinstance(outcome, tuple) for outcome in outcomes[1::2])


@pytest.fixture
def var_with_a_small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder for `heed up`'s state whose ledger has two megabytes."""
    disk = tmp_path / "ledger"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        # CI runs as root, so there it is a failure; a person need not be root to run the tests.
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("a disk that fills up is a small tmpfs here, and only root may mount one")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@asynccontextmanager
async def supervised(ledger: Service, logs: Path) -> AsyncIterator[list[str]]:
    """A service as `heed up` runs it; yields what its supervisor says, line by line."""
    said: list[str] = []
    ready = asyncio.Event()
    supervisor = Supervisor([ledger], logs, lambda _, words: said.append(words))
    running = asyncio.create_task(supervisor.run(ready.set))
    await ready.wait()
    try:
        yield said
    finally:
        supervisor.stop()
        await running


async def test_a_full_disk_loses_no_acknowledged_vote_and_needs_nobody_to_mend_it(
    var_with_a_small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.supervisor.BACKOFF_S", 0.05)
    var, port = var_with_a_small_disk, free_port()
    *_, service = services(Stack(StackSettings(var=var), "cpu", port, (free_port(),)))
    ledger = open_ledger(settings_of(port))
    acknowledged: dict[str, str] = {}
    refused: list[httpx.Response] = []

    async def vote(gateway: RunningGateway, completion_id: str, voters: range) -> None:
        for voter in voters:
            body = {"completion_id": completion_id, "rating": "up", "voter": f"v{voter}", "comment": "c" * 5000}
            reply = await gateway.http.post("/v1/votes", json=body)
            if reply.status_code == 200:
                acknowledged[reply.json()["id"]] = reply.json()["voter"]
            else:
                refused.append(reply)

    async with (
        supervised(service, var) as said,
        scripted_engine() as engine,
        running_gateway(ledger, var, engine, ready=False) as gateway,
    ):
        asked = await recorded(ledger, "q", "one")
        # Far more than fits, by eight voters at once; the server ends itself several times over.
        await asyncio.gather(*(vote(gateway, asked.id, range(i * 100, i * 100 + 100)) for i in range(8)))
        given_while_full = len(acknowledged)
        restarts = sum(line.startswith("ended with") for line in said)

        await asyncio.to_thread(resize, var / "ledger", "64m")
        await until(lambda: accepts(gateway, asked.id), "votes are taken again")
        await vote(gateway, asked.id, range(10_000, 10_010))
        await ledger.redis.connection_pool.disconnect()  # this process's, from before the restarts
        standing = set(await ledger.redis.zrange(ledger.keys.votes, 0, -1))
        found = await broken(ledger)
    await ledger.close()

    assert {(reply.status_code, reply.json()["error"]["code"]) for reply in refused} == {(503, "ledger_unavailable")}
    assert {reply.headers["retry-after"] for reply in refused} == {"1"}
    assert restarts >= 1
    assert len(acknowledged) >= given_while_full + 10
    assert set(acknowledged) <= standing
    assert found == []


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


async def accepts(gateway: RunningGateway, completion_id: str) -> bool:
    body = {"completion_id": completion_id, "rating": "down", "voter": "ann"}
    return (await gateway.http.post("/v1/votes", json=body)).status_code == 200
