"""Many clients that each post one body after the other; a process of its own, so that its work counts for nobody else.

`python -m tests.load.voters PORT PATH CLIENTS < BODIES`, a JSON body a line; prints one line of JSON when all are
answered. HTTP by hand: the load must cost less than what it measures.
"""

import asyncio
import json
import sys
import time
from collections import Counter, deque

import uvloop

BEHIND_HEAD = b"\r\n\r\n"


async def vote(port: int, path: str, bodies: deque[bytes], statuses: Counter[str], waits_s: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: "
    while bodies:
        body = bodies.popleft()
        started = time.perf_counter()
        writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body)
        answered = await reader.readuntil(BEHIND_HEAD)
        length = next(line for line in answered.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        waits_s.append(time.perf_counter() - started)
        statuses[answered.split(b" ", 2)[1].decode()] += 1
    writer.close()


async def main() -> None:
    port, path, clients = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    bodies = deque(sys.stdin.buffer.read().splitlines())
    statuses: Counter[str] = Counter()
    waits_s: list[float] = []
    started = time.perf_counter()
    await asyncio.gather(*(vote(port, path, bodies, statuses, waits_s) for _ in range(clients)))
    wall_s = time.perf_counter() - started
    waits_s.sort()
    p50_ms, p99_ms = (1000 * waits_s[int(len(waits_s) * share)] for share in (0.5, 0.99))
    print(json.dumps({"wall_s": wall_s, "statuses": statuses, "p50_ms": p50_ms, "p99_ms": p99_ms}))


if __name__ == "__main__":
    uvloop.run(main())
