"""Swaps, rollbacks, a canary and the death of an engine, all under streaming clients (tests/load/swaps.py)."""

from pathlib import Path

import pytest

from feedback.check import violations
from feedback.connection import Ledger
from tests.fleet import gateway_process
from tests.gateways import registered, until
from tests.load.streams import references, unlike
from tests.load.swaps import SWAPS, swap_under_load
from tests.scripted_engine import Script, ScriptedEngine, scripted_engine

TOKENS = 12


class Scripted:
    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine

    async def freeze(self) -> None:
        self._engine.answers.clear()

    async def kill(self) -> None:
        await self._engine.stop()

    async def restart(self) -> None:
        self._engine.answers.set()
        await self._engine.start()


@pytest.mark.timeout(180)
async def test_sixteen_clients_stream_through_ten_swaps_two_rollbacks_a_canary_and_the_death_of_an_engine(
    ledger: Ledger, tmp_path: Path
) -> None:
    async with (
        scripted_engine(pace_s=0.01) as one,
        scripted_engine(pace_s=0.01) as two,
        gateway_process(ledger, tmp_path, [one, two], engine_check_s=10, spare_adapters=2) as gateway,
    ):
        ids = [await registered(ledger, tmp_path, number, b"%d" % number) for number in range(1, SWAPS + 1)]
        for engine in (one, two):
            engine.habits |= {name: Script(tokens=[f" {name}"] * TOKENS) for name in ("heed-base", *ids)}
        await until(lambda: all("heed-base" in engine.loaded for engine in (one, two)), "both engines take traffic")
        own = await references(gateway.http, ["heed-base", *ids], TOKENS)

        report = await swap_under_load(gateway.http, gateway.operator, ids, Scripted(two), tokens=TOKENS, stall_s=0.6)

        assert [what for what, _, _ in report.windows].count("promote") == SWAPS + 2
        assert not report.failed_before
        assert not report.named_twice
        assert not unlike(report.streams, own)
        assert set(map(id, report.failed_within)) == set(map(id, report.on_killed))
        assert report.on_killed
        assert {*ids, "heed-base"} == {name for stream in report.streams for name in stream.models}
        assert await gateway.live() == ids[-1]
    assert [sentence async for sentence in violations(ledger)] == []
