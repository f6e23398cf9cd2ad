"""What the console costs: `python -m tests.load.bench_console` prints how soon it is drawn, and what open pages do.

First paint: the console is started anew, and once it answers a browser that has never seen it opens the page "Chat".
Latency: one client asks the gateway (before an engine that answers at once) while ten pages are open. In each round
once with the console turned to that gateway and once turned away from it, in random order, so that what ten tabs cost
a machine by being drawn is on both sides.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, expect

from tests.browser.chromium import MISSING, find_chromium, running_chromium
from tests.browser.page import PAGES, Trouble, opened
from tests.consoles import running_console
from tests.load.bench_hop import spread
from tests.load.contestants import KEY, started
from tests.processes import free_port

OPEN = ("/", "/", "/", "/", "/compare", "/compare", "/compare", "/operate", "/operate", "/operate")
ANSWERS = 2000
SETTLE_S = 5
"""Longer than the pages that look most often wait between two looks."""

PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


async def first_paint(browser: Browser, folder: Path) -> tuple[float, float]:
    """Seconds from the start of the process until it answers, and from then to the first paint."""
    began = time.monotonic()
    with running_console(folder) as console:
        ready = time.monotonic()
        async with opened(browser, console.url, Trouble()) as page:
            asked = time.monotonic()
            await page.goto("/", wait_until="commit")
            await page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint').length")
            return ready - began, asked - ready + await page.evaluate(PAINT) / 1000


@asynccontextmanager
async def many_open(browser: Browser, url: str) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for path in OPEN:
            page = await stack.enter_async_context(opened(browser, url, Trouble()))
            await page.goto(path)
            await expect(page.get_by_label(PAGES[path], exact=True).first).to_be_visible(timeout=60_000)
        yield


async def p50_us(port: int) -> float:
    command = [sys.executable, "-m", "tests.load.askers", str(port), "1", str(ANSWERS), KEY]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    told, _ = await process.communicate()
    return float(json.loads(told)["p50_us"])


async def measure(binary: str, folder: Path, starts: int, rounds: int) -> None:
    async with running_chromium(binary) as browser:
        paints = [await first_paint(browser, folder) for _ in range(starts)]
    ready, paint = (spread(found, ".2f") for found in zip(*paints, strict=True))
    print(f"## The console\n\n{starts} starts, medians (least to most): {ready} s until it answers,")
    print(f"{paint} s from then to the first paint.\n")

    dice, waits = random.Random(0), {True: list[float](), False: list[float]()}
    with started(folder, ["serve"], False) as contestants, running_console(folder) as console:
        gateway = contestants[-1]
        async with running_chromium(binary) as browser, many_open(browser, console.url):
            for nth in range(rounds + 1):  # the first one warms up
                for is_turned in dice.sample((True, False), 2):
                    port = gateway.port if is_turned else free_port()
                    (folder / "stack.json").write_text(json.dumps({"gateway_url": f"http://127.0.0.1:{port}"}))
                    await asyncio.sleep(SETTLE_S)
                    wait = await p50_us(gateway.port)
                    if nth:
                        waits[is_turned].append(wait)
    added = [with_it - without for with_it, without in zip(waits[True], waits[False], strict=True)]
    print(f"{rounds} rounds of {ANSWERS} answers, p50: {spread(waits[True], ',.0f')} µs with {len(OPEN)} pages open, ")
    print(f"{spread(waits[False], ',.0f')} µs with the same pages turned elsewhere; ")
    print(f"difference within a round {spread(added, ',.0f')} µs.\n")
    print(f"Load average at the end {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    binary = find_chromium()
    if binary is None:
        sys.exit(MISSING)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(binary, Path(folder), asked.starts, asked.rounds))


if __name__ == "__main__":
    main()
