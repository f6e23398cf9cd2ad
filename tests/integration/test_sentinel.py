"""A ledger with replicas: an acknowledged vote outlives the server that took it, and who asks finds the next one."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from celery import Celery

from feedback import completions, credentials, votes
from feedback.ballots import Opinion
from feedback.check import violations
from feedback.connection import Ledger, open_ledger
from feedback.errors import LedgerUnavailable
from feedback.settings import LedgerSettings
from tests.doors import door
from tests.integration.test_ledger import recorded
from tests.processes import free_port, ledger_server, running, wait_for
from tests.sentinels import AT_ONCE, IN_URL, replicated, watched
from trainer.broker import broker

TIMEOUT_S = 2
VOTERS = 4
AFTERWARDS = 40
"""Votes that must be acknowledged by the next primary."""


class Voters:
    """Each asks and votes without a pause, and knows which votes were acknowledged."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.acknowledged: list[str] = []
        self.refused = 0

    async def vote(self, name: str) -> None:
        while True:
            try:
                asked = await recorded(self.ledger, "q", "one")
                vote, _ = await votes.cast(self.ledger, completion_id=asked.id, rating="up", voter=name)
                self.acknowledged.append(vote.id)
            except LedgerUnavailable:
                self.refused += 1
                await asyncio.sleep(0.02)

    async def reach(self, count: int) -> None:
        await asyncio.to_thread(wait_for, lambda: len(self.acknowledged) >= count, f"{count} votes are acknowledged")


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
async def test_votes_and_nudges_go_on_after_a_failover_and_no_acknowledged_vote_is_lost(
    tmp_path: Path, harm: signal.Signals
) -> None:
    with watched(tmp_path) as house:
        settings = LedgerSettings(
            ledger_url=house.url(0), ledger_timeout_s=TIMEOUT_S, ledger_replicas=1, voter_votes_per_minute=0
        )
        env = {"HEED_LEDGER_URL": house.url(0), "HEED_BROKER_URL": house.url(1), "HEED_VAR": str(tmp_path)}
        line = [sys.executable, "-m", "celery", "-A", "trainer.worker", "worker"]
        log = tmp_path / "worker.log"
        ledger = open_ledger(settings)
        with running([*line, "--pool", "solo", "-Q", "schedule", "--loglevel", "INFO"], log, env):
            await asyncio.to_thread(wait_for, lambda: " ready." in log.read_text(), "the worker is ready")
            voters = Voters(ledger)
            voting = [asyncio.create_task(voters.vote(f"voter {number}")) for number in range(VOTERS)]
            await voters.reach(AFTERWARDS)
            first = house.primary()

            house.servers[first].send_signal(harm)
            await asyncio.to_thread(wait_for, lambda: house.primary() not in (0, first), "there is a new primary", 30)
            if harm == signal.SIGSTOP:
                house.servers[first].send_signal(signal.SIGCONT)
            await voters.reach(len(voters.acknowledged) + AFTERWARDS)
            for task in voting:
                task.cancel()
            await asyncio.gather(*voting, return_exceptions=True)

            nudger = Celery("nudger")
            nudger.conf.update(broker(house.url(1), None))
            with nudger.connection_for_write() as connection:
                nudger.send_task("trainer.sweep", queue="schedule", connection=connection)
            nudger.close()
            is_swept = "Task trainer.sweep["
            await asyncio.to_thread(
                wait_for,
                lambda: any(is_swept in one and "succeeded" in one for one in log.read_text().splitlines()),
                "swept",
            )
        assert voters.refused > 0
        kept = {vote.id for vote in await every(ledger)}
        assert set(voters.acknowledged) - kept == set()
        assert [sentence async for sentence in violations(ledger)] == []
        await ledger.close()


async def every(ledger: Ledger) -> list[Opinion]:
    found: list[Opinion] = []
    after = None
    while True:
        page, more = await votes.page(ledger, after=after, limit=100)
        found += page
        if not more:
            return found
        after = page[-1].id


async def test_a_vote_is_acknowledged_when_the_replica_has_it_and_one_given_again_no_sooner(tmp_path: Path) -> None:
    with replicated(tmp_path, 1) as servers:
        primary, replica = servers
        url = f"redis://:{IN_URL}@127.0.0.1:{primary}/0"
        settings = LedgerSettings(ledger_url=url, ledger_timeout_s=1, ledger_replicas=1)
        one, another = open_ledger(settings), open_ledger(settings)
        asked = await recorded(one, "q", "one")
        credential, _ = await credentials.create(one, "the web shop", "client")
        servers[replica].send_signal(signal.SIGSTOP)
        try:
            for ledger in (one, another):
                with pytest.raises(LedgerUnavailable, match="a failover could lose it"):
                    await votes.cast(ledger, completion_id=asked.id, rating="up", voter="ann")
                with pytest.raises(LedgerUnavailable, match="a failover could lose it"):
                    await credentials.revoke(ledger, credential.id)
            assert (await completions.get(one, (await recorded(one, "q", "two")).id)).choices
        finally:
            servers[replica].send_signal(signal.SIGCONT)

        assert (await credentials.revoke(another, credential.id)).revoked is not None
        _, is_changed = await votes.cast(another, completion_id=asked.id, rating="up", voter="ann")
        assert not is_changed
        assert [sentence async for sentence in violations(one)] == []
        await one.close()
        await another.close()


async def test_a_server_that_became_a_replica_is_left_for_the_one_that_its_address_leads_to_now(tmp_path: Path) -> None:
    before, after = free_port(), free_port()
    with ledger_server(tmp_path / "before", before), ledger_server(tmp_path / "after", after, AT_ONCE):
        leads_to = [before]

        async with door(lambda: leads_to[0]) as port:
            ledger = open_ledger(LedgerSettings(ledger_url=f"redis://127.0.0.1:{port}/0"))
            asked = await recorded(ledger, "q", "one")
            await ledger.redis.replicaof("127.0.0.1", str(after))
            leads_to[0] = after

            with pytest.raises(LedgerUnavailable, match="nothing was stored"):
                await votes.cast(ledger, completion_id=asked.id, rating="up", voter="ann")
            assert (await completions.get(ledger, (await recorded(ledger, "q", "two")).id)).choices
            await ledger.close()


async def test_a_cluster_is_refused_with_a_sentence(tmp_path: Path) -> None:
    port = free_port()
    with ledger_server(tmp_path / "cluster", port, {"cluster-enabled": "yes", "cluster-port": str(free_port())}):
        ledger = open_ledger(LedgerSettings(ledger_url=f"redis://127.0.0.1:{port}/0"))
        with pytest.raises(LedgerUnavailable, match=r"a Redis cluster .* cannot be the ledger; nothing was stored"):
            await recorded(ledger, "q", "one")
        await ledger.close()
