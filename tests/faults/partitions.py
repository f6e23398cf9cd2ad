"""The archive's files themselves, read without the archive's own code: is every row there once?"""

import asyncio
from collections import Counter
from pathlib import Path

from pyarrow import parquet

from feedback import archive
from feedback.connection import open_ledger
from tests.faults.house import House


async def are_being_written(house: House) -> bool:
    """Whether an archiver holds the lease now."""
    ledger = open_ledger(house.ledger_settings)
    try:
        return bool(await ledger.reply(ledger.redis.exists(ledger.keys.archive_lease)))
    finally:
        await ledger.close()


async def broken(house: House) -> list[str]:
    """After one more archiver, beside the one that runs, has moved whatever is left."""
    ledger = open_ledger(house.ledger_settings)
    try:
        await archive.run(ledger)
    finally:
        await ledger.close()
    rows = await asyncio.to_thread(_rows, house.stack.var / "archive")
    doubled = [
        f"{completion_id} is in {times} rows of the archive" for completion_id, times in rows.items() if times > 1
    ]
    return doubled if rows else ["nothing was archived at all"]


def _rows(folder: Path) -> Counter[str]:
    files = sorted(folder.rglob("*.parquet"))
    return Counter(one for file in files for one in parquet.read_table(file, columns=["id"])["id"].to_pylist())
