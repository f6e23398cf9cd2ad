"""Tasks that run recipes end whole: nobody leaves before the process has."""

import asyncio

import pytest

from trainer.child import ended


async def test_a_task_that_was_cancelled_with_its_gather_is_not_broken_off_while_it_ends() -> None:
    process_may_end, has_ended = asyncio.Event(), []

    async def runs(name: str, *, is_slow: bool) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            if is_slow:
                await process_may_end.wait()
            has_ended.append(name)

    async def measures() -> None:
        slow = asyncio.create_task(runs("slow", is_slow=True))
        quick = asyncio.create_task(runs("quick", is_slow=False))
        async with ended(slow, quick):
            await asyncio.gather(slow, quick)

    measuring = asyncio.create_task(measures())
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # both have begun
    measuring.cancel()
    _, waiting = await asyncio.wait([measuring], timeout=0.1)
    process_may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await measuring

    assert waiting == {measuring}
    assert has_ended == ["quick", "slow"]
