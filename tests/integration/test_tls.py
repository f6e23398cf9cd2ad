"""Ledger and broker behind TLS, as managed Redis is: with a password, an authority of its own, and no word
about its settings."""

import asyncio
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis

from feedback import backup, votes
from feedback.check import violations
from feedback.connection import open_ledger
from feedback.errors import LedgerUnavailable
from feedback.settings import LedgerSettings
from tests.doors import door
from tests.integration.test_ledger import recorded
from tests.processes import free_port, ledger_server
from trainer.broker import broker

PASSWORD = "p@ss/w:rd"


@dataclass
class Managed:
    port: int
    server_port: int
    server: "subprocess.Popen[bytes]"
    ca: Path

    def url(self, database: int, host: str = "localhost") -> str:
        return f"rediss://:p%40ss%2Fw%3Ard@{host}:{self.port}/{database}"


@pytest.fixture
async def managed(tmp_path: Path) -> AsyncIterator[Managed]:
    """The server speaks no TLS itself; a door before it does, with a certificate for `localhost` alone."""
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    port = free_port()

    with ledger_server(tmp_path / "managed", port, {"requirepass": PASSWORD}) as server:
        with Redis(port=port, password=PASSWORD) as owner:
            owner.execute_command("ACL", "SETUSER", "default", "-config")
        async with door(lambda: port, context) as entrance:
            yield Managed(entrance, port, server, ca)


async def test_a_ledger_behind_tls_takes_votes_and_back_ups_and_an_answer_that_does_not_come_is_not_waited_for(
    managed: Managed, tmp_path: Path
) -> None:
    settings = LedgerSettings(ledger_url=managed.url(0), redis_ca=managed.ca, ledger_timeout_s=3, var=tmp_path)
    ledger = open_ledger(settings)
    asked = await recorded(ledger, "q", "one")

    managed.server.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(LedgerUnavailable, match="whether the request was stored is not known"):
            await votes.cast(ledger, completion_id=asked.id, rating="up", voter="ann")
    finally:
        managed.server.send_signal(signal.SIGCONT)

    vote, _ = await votes.cast(ledger, completion_id=asked.id, rating="down", voter="ann")
    assert vote.rating == "down"
    made = await backup.make(ledger, str(tmp_path / "kept"))
    assert made.counts["heed"]["votes"] == 1
    assert [sentence async for sentence in violations(ledger)] == []
    await ledger.close()


@pytest.mark.parametrize("wrong", ["authority", "name"])
async def test_a_certificate_of_somebody_else_is_not_spoken_to(managed: Managed, wrong: str) -> None:
    ca = None if wrong == "authority" else managed.ca
    url = managed.url(0, "127.0.0.1" if wrong == "name" else "localhost")
    ledger = open_ledger(LedgerSettings(ledger_url=url, redis_ca=ca))

    with pytest.raises(LedgerUnavailable, match="cannot be reached") as refused:
        await recorded(ledger, "q", "one")

    assert "CERTIFICATE_VERIFY_FAILED" in str(refused.value.__cause__)
    await ledger.close()


async def test_a_broker_behind_tls_takes_nudges(managed: Managed) -> None:
    await asyncio.to_thread(nudge, managed.url(1), managed.ca)

    with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        await asyncio.to_thread(nudge, managed.url(1), None)

    with Redis(port=managed.server_port, password=PASSWORD, db=1) as server:
        assert server.llen("schedule") == 1


def nudge(url: str, ca: Path | None) -> None:
    app = Celery("nudger")
    app.conf.update(broker(url, ca))
    with app.connection_for_write() as connection:  # of its own: Celery's pools would hand out that of a test before
        app.send_task("trainer.sweep", queue="schedule", retry=False, connection=connection)
    app.close()
