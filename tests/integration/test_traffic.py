"""Gateways tell a workshop that listens how much is asked and how long first tokens take."""

import asyncio
from pathlib import Path

import pytest

from feedback import gpu
from feedback.connection import Ledger
from feedback.gpu import Traffic
from serve.traffic import LONG_S, Lately
from tests.gateways import running_gateway, until
from tests.scripted_engine import scripted_engine


async def test_what_all_gateways_saw_is_heard_together_by_who_listens(ledger: Ledger, tmp_path: Path) -> None:
    async with (
        scripted_engine() as engine,
        running_gateway(ledger, tmp_path, engine) as one,
        running_gateway(ledger, tmp_path, engine) as other,
    ):
        for gateway in (one, other):
            for _ in range(3):
                await gateway.stream()
            await gateway.chat()
        is_unheard = await ledger.redis.exists(ledger.keys.gpu_traffic)

        async def is_all_heard() -> bool:
            return (await gpu.hear(ledger)).requests == 8

        await until(is_all_heard, "both gateways are heard")
        heard = await gpu.hear(ledger)

        assert is_unheard == 0
        assert sum(heard.first_tokens.values()) == 6
        assert (heard.p95_s() or 99) < 2
        assert heard.per_minute == 8 * 60 / gpu.WINDOW_S


async def test_an_engine_that_gives_no_first_token_is_heard_of_by_how_long_it_has_not(
    ledger: Ledger, tmp_path: Path
) -> None:
    async with scripted_engine() as engine, running_gateway(ledger, tmp_path, engine) as gateway:
        engine.works.clear()
        asked = [asyncio.create_task(gateway.stream()) for _ in range(gpu.FEWEST)]

        async def is_late() -> bool:
            return ((await gpu.hear(ledger)).p95_s() or 0) > LONG_S

        await until(is_late, "the waiting streams are heard of")
        engine.works.set()
        await asyncio.gather(*asked)


async def test_the_word_of_a_gateway_that_died_is_forgotten(ledger: Ledger) -> None:
    await gpu.hear(ledger)
    await gpu.tell(ledger, "dead", Traffic(requests=5))
    await ledger.redis.hset(ledger.keys.gpu_traffic, "dead", f"1 {Traffic(requests=5).model_dump_json()}")

    before = (await gpu.hear(ledger)).requests
    await gpu.tell(ledger, "alive", Traffic(requests=1))

    assert before == 0
    assert await ledger.redis.hkeys(ledger.keys.gpu_traffic) == ["alive"]


def test_what_is_older_than_the_window_is_forgotten() -> None:
    now = [100.0]
    lately = Lately(lambda: now[0])
    lately.came(lately, is_stream=True)
    lately.began(lately, 0.2)

    now[0] += gpu.WINDOW_S - 1
    still = lately.told()
    now[0] += 1

    assert (still.requests, sum(still.first_tokens.values())) == (1, 1)
    assert lately.told() == Traffic()


@pytest.mark.parametrize("seconds", [0.0005, 0.02, 0.3, 1.0, 7.5, 100])
def test_a_p95_is_right_to_five_percent(seconds: float) -> None:
    many = {gpu.bucket_of(seconds): 96, gpu.bucket_of(1000): 4}

    assert Traffic(first_tokens=many).p95_s() == pytest.approx(max(seconds, gpu.SHORTEST_S), rel=0.051)
    assert Traffic(first_tokens={5: gpu.FEWEST - 1}).p95_s() is None
