"""How soon do all gateway processes answer by a flip? `python -m tests.load.flips [--swaps 30] [--gateways 3]`

Real processes and a real ledger beside two scripted engines. Every process is asked again and again; told is the time
from the operator's request to the first answer by the new adapter, of the process where that comes last, and to the
reply to the operator.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

from feedback.connection import Ledger, open_ledger
from feedback.settings import LedgerSettings
from tests.fleet import GatewayProcess, gateway_process
from tests.gateways import registered
from tests.processes import free_port, ledger_server
from tests.scripted_engine import scripted_engine


async def measure(ledger: Ledger, var: Path, swaps: int, gateways: int) -> None:
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(scripted_engine()) for _ in range(2)]
        starting = [gateway_process(ledger, var, engines, f"gateway-{n}") for n in range(gateways)]
        fleet = [await stack.enter_async_context(one) for one in starting]
        ids = [await registered(ledger, var, n, b"%d" % n) for n in range(1, swaps + 1)]
        kinds: dict[str, list[tuple[float, float]]] = {"promote": [], "roll back": []}
        live = "heed-base"
        for nth, adapter in enumerate(ids):
            asked = fleet[nth % gateways]
            kinds["promote"].append(await timed(asked, fleet, adapter))
            kinds["roll back"].append(await timed(asked, fleet, live, is_back=True))
            kinds["promote"].append(await timed(asked, fleet, adapter))
            live = adapter
    print(f"{gateways} processes, {swaps} adapters")
    for kind, times in kinds.items():
        everywhere, told = (sorted(one[at] for one in times) for at in (0, 1))
        print(f"{kind:10} answered by all after {shown(everywhere)}; the operator was told after {shown(told)}")


async def timed(
    asked: GatewayProcess, fleet: Sequence[GatewayProcess], adapter: str, *, is_back: bool = False
) -> tuple[float, float]:
    began = time.perf_counter()
    asking = asyncio.create_task(asked.roll_back() if is_back else asked.promote(adapter))
    last = max(await asyncio.gather(*(first_answer(gateway, adapter) for gateway in fleet)))
    reply = await asking
    assert reply.json()["live"] == adapter, reply.text
    return last - began, time.perf_counter() - began


async def first_answer(gateway: GatewayProcess, adapter: str) -> float:
    while await gateway.live() != adapter:  # noqa: ASYNC110 (polled: it is another process)
        await asyncio.sleep(0.005)
    return time.perf_counter()


def shown(times: Sequence[float]) -> str:
    return f"{median(times):.2f} s (p95 {times[int(0.95 * (len(times) - 1))]:.2f}, most {times[-1]:.2f})"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=30)
    parser.add_argument("--gateways", type=int, default=3)
    asked, port = parser.parse_args(), free_port()
    with tempfile.TemporaryDirectory() as folder, ledger_server(Path(folder) / "ledger", port):
        ledger = open_ledger(LedgerSettings(ledger_url=f"redis://127.0.0.1:{port}/0", var=Path(folder)))
        await measure(ledger, Path(folder), asked.swaps, asked.gateways)
        await ledger.close()


if __name__ == "__main__":
    asyncio.run(main())
