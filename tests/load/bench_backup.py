"""How long writers wait for a back-up: `python -m tests.load.bench_backup ENTRIES COMPLETIONS`.

Lists with so many entries, which every completion and vote changes, and one writer that never stops.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from feedback import backup
from feedback.connection import Ledger, open_ledger
from feedback.settings import LedgerSettings
from tests.processes import free_port, ledger_server

AT_ONCE = 1000
FIRST = 1.7e9


async def fill(ledger: Ledger, entries: int, records: int) -> None:
    keys = ledger.keys
    for listed, kind in ((keys.completions, "chatcmpl"), (keys.completions_live, "chatcmpl"), (keys.votes, "vote")):
        for start in range(0, entries, AT_ONCE):
            await ledger.redis.zadd(listed, {f"{kind}-{n:024x}": FIRST + n for n in range(start, start + AT_ONCE)})
    for start in range(0, records, AT_ONCE):
        pipe = ledger.redis.pipeline(transaction=False)
        for number in range(start, start + AT_ONCE):
            pipe.hset(keys.completion(f"chatcmpl-{number:024x}"), "body", f"{number:x}" * 250)
        await pipe.execute()


async def measure(port: int, entries: int, records: int, folder: Path) -> str:
    ledger = open_ledger(LedgerSettings(ledger_url=f"redis://127.0.0.1:{port}/0", var=folder / "var"))
    await fill(ledger, entries, records)
    waits: list[float] = []
    is_over = asyncio.Event()

    async def write() -> None:
        while not is_over.is_set():
            began = time.monotonic()
            await ledger.redis.zadd(ledger.keys.votes, {f"vote-{len(waits)}": FIRST})
            waits.append(time.monotonic() - began)

    writing = asyncio.create_task(write())
    began = time.monotonic()
    made = await backup.make(ledger, str(folder / "backup"))
    took_s = time.monotonic() - began
    is_over.set()
    await writing
    await ledger.close()
    return (
        f"{entries:,} entries in each list, {records:,} completions: {made.total / 1e6:.0f} MB in {took_s:.1f} s; "
        f"writers waited for {made.waited_s:.3f} s, the longest of {len(waits)} writes took {max(waits):.3f} s"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made_in:
        its_port = free_port()
        with ledger_server(Path(made_in) / "ledger", its_port):
            print(asyncio.run(measure(its_port, int(sys.argv[1]), int(sys.argv[2]), Path(made_in))))
