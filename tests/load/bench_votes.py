"""What a vote costs: 32 clients, `appendfsync always`, one gateway process. `make bench` prints the table.

Beside it, in the same rounds: the same Lua call without a gateway, pipelined, and FastAPI answering an empty body that
it has validated. CPU is the firm figure, each process's own; wall times share the machine with the clients.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from feedback import completions
from feedback.connection import Ledger, open_ledger
from feedback.records import Choice, Completion, new_id, prompt_digest
from feedback.settings import LedgerSettings
from tests.processes import answers, free_port, ledger_server, running, wait_for

MESSAGES = [
    {"role": "system", "content": "You answer questions of people who build and fly kites. " * 4},
    {"role": "user", "content": "How do I build a kite that flies in little wind, and what do I need for it? " * 3},
]
ANSWER = "Tie two light sticks into a cross, stretch paper over them, and add a tail of ribbon. " * 8


def asked() -> Completion:
    """A completion of some 1.5 KB, as chats are."""
    return Completion(
        id=new_id("chatcmpl"),
        served_model="heed",
        adapter="heed-v3-0a1b2c3d",
        created=time.time(),
        messages=MESSAGES,
        prompt_hash=prompt_digest(MESSAGES),
        choices=[Choice(index=0, message={"role": "assistant", "content": ANSWER}, finish_reason="stop")],
        usage={"prompt_tokens": 120, "completion_tokens": 180, "total_tokens": 300},
        params={"temperature": 0.7},
    )


async def record(ledger: Ledger, count: int) -> list[str]:
    made = [asked() for _ in range(count)]
    for start in range(0, count, 50):
        await asyncio.gather(*(completions.record(ledger, one) for one in made[start : start + 50]))
    return [one.id for one in made]


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def clients(port: int, path: str, count: int, bodies: Sequence[bytes]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.load.voters", str(port), path, str(count)]
    done = subprocess.run(command, input=b"\n".join(bodies), capture_output=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["statuses"] == {"200": len(bodies)}, found["statuses"]
    return found


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--votes", type=int, default=3000)
    p.add_argument("--rounds", type=int, default=3)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        lp, gp = free_port(), free_port()
        with ledger_server(d / "l", lp) as ls:
            url = f"redis://127.0.0.1:{lp}/0"
            env = {
                "HEED_LEDGER_URL": url,
                "HEED_PORT": str(gp),
                "HEED_VAR": str(d),
                "HEED_RECONCILE_EVERY_S": "60",
                "HEED_ENGINE_URL": "http://127.0.0.1:9",
            }
            with running([sys.executable, "-m", "serve"], d / "g.log", env) as g:
                wait_for(lambda: answers(gp), "gw")

                async def rec():
                    ledger = open_ledger(LedgerSettings(ledger_url=url))
                    ids = await record(ledger, a.votes)
                    await ledger.close()
                    return ids

                for r in range(a.rounds):
                    ids = asyncio.run(rec())
                    bodies = [
                        json.dumps({"completion_id": i, "rating": "up", "voter": f"voter-{n}"}).encode()
                        for n, i in enumerate(ids)
                    ]
                    c0, l0 = cpu_s(g.pid), cpu_s(ls.pid)
                    f = clients(gp, "/v1/votes", 32, bodies)
                    c1, l1 = cpu_s(g.pid), cpu_s(ls.pid)
                    print(
                        f"{(c1 - c0) / a.votes * 1e6:.0f} us gw, {(l1 - l0) / a.votes * 1e6:.0f} us redis, {a.votes / f['wall_s']:.0f}/s",
                        f,
                    )


if __name__ == "__main__":
    main()
