"""Tether: no service of `heed up` outlives it, whatever kills it.

Run as a plain script, without site-packages, so that it costs a service 20 ms:

    tether.py run PARENT COMMAND...   becomes COMMAND, which gets SIGTERM when PARENT dies (PR_SET_PDEATHSIG)
    tether.py keep                    reads lines "+SESSION" and "-SESSION"; when its input ends, as it does when its
                                      parent is killed, ends whatever is left of the sessions it was told

The kernel's signal reaches the service and not the service's own children (vLLM's EngineCore); the keeper ends those.
Each service leads a session of its own, so its family is found by session and no pid file can be stale.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterable

PR_SET_PDEATHSIG = 1
PATIENCE_S = 10.0  # the ledger's last write and vLLM's shutdown took under 1 s each


def members(session: int) -> list[int]:
    """Living processes of a session; a zombie has ended and only waits for its parent."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    # The name may hold anything, so fields are counted after it: state, parent, group, session.
                    state, _, _, sid = stat.read().rpartition(b")")[2].split()[:4]
            except OSError:
                continue  # it ended while the folder was read
            if int(sid) == session and state not in (b"Z", b"X"):
                found.append(int(name))
    return found


def send(number: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it ended by itself


def run(parent: int, command: list[str]) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("heed: the stack ended before this service began")
    os.execvp(command[0], command)


def keep() -> None:
    sessions: set[int] = set()
    for line in sys.stdin:
        session = int(line[1:])
        if line[0] == "+":
            sessions.add(session)
        else:
            sessions.discard(session)

    end = time.monotonic() + PATIENCE_S
    send(signal.SIGTERM, sessions)
    while left := [pid for session in sessions for pid in members(session)]:
        if time.monotonic() > end:
            send(signal.SIGKILL, left)
        time.sleep(0.1)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(int(sys.argv[2]), sys.argv[3:])
    else:
        keep()
