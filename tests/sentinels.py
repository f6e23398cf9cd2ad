"""A primary, its replicas and three Sentinels that watch it: real servers, each with a password."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from tests.processes import free_port, ledger_server, redis_server, running, wait_for

PASSWORD = "p@ss/w:rd"
IN_URL = "p%40ss%2Fw%3Ard"
WATCHERS = "watchers"
"""The Sentinels' own password."""
DOWN_AFTER_MS = 1000
AT_ONCE = {"shutdown-timeout": "0"}
"""A primary that ends waits for no replica to catch up; 10 s else."""
CONFIG = """
port {port}
bind 127.0.0.1
dir {directory}
requirepass {watchers}
sentinel monitor heed 127.0.0.1 {primary} 2
sentinel auth-pass heed {password}
sentinel down-after-milliseconds heed {down_after_ms}
sentinel failover-timeout heed 6000
"""


@dataclass
class House:
    servers: dict[int, subprocess.Popen[bytes]]
    sentinels: list[int]

    def url(self, database: int) -> str:
        """The first Sentinel of it is none."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in (free_port(), *self.sentinels))
        return f"redis+sentinel://:{IN_URL}@{hosts}/heed/{database}?sentinel_password={WATCHERS}"

    def primary(self) -> int:
        """Its port, as all Sentinels say it."""
        told = {int(_sentinel(port)["port"]) for port in self.sentinels}
        return told.pop() if len(told) == 1 else 0


@contextmanager
def replicated(directory: Path, replicas: int) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    """Servers by their ports, the primary first; its replicas have caught up."""
    ports = [free_port() for _ in range(replicas + 1)]
    options = {"requirepass": PASSWORD, "masterauth": PASSWORD, "repl-diskless-sync-delay": "0", **AT_ONCE}
    with ExitStack() as house:
        servers = {}
        for port in ports:
            role = {} if port == ports[0] else {"replicaof": f"127.0.0.1 {ports[0]}"}
            servers[port] = house.enter_context(ledger_server(directory / str(port), port, {**options, **role}))
        for port in ports[1:]:
            wait_for(lambda port=port: _is_caught_up(port), "the replica has caught up", 30)  # type: ignore[misc]
        yield servers


@contextmanager
def watched(directory: Path, replicas: int = 2) -> Iterator[House]:
    with replicated(directory, replicas) as servers, ExitStack() as house:
        sentinels = []
        for number in range(3):
            port, own = free_port(), directory / f"sentinel-{number}"
            own.mkdir()
            config = own / "sentinel.conf"
            config.write_text(
                CONFIG.format(
                    port=port,
                    directory=own,
                    watchers=WATCHERS,
                    primary=next(iter(servers)),
                    password=PASSWORD,
                    down_after_ms=DOWN_AFTER_MS,
                )
            )
            house.enter_context(running([redis_server(), str(config), "--sentinel"], own / "sentinel.log"))
            sentinels.append(port)
        for port in sentinels:
            wait_for(lambda port=port: _knows_all(port, replicas), "the Sentinel knows the house", 30)  # type: ignore[misc]
        yield House(servers, sentinels)


def _is_caught_up(port: int) -> bool:
    with Redis(port=port, password=PASSWORD) as server:
        try:
            return str(server.info("replication").get("master_link_status")) == "up"
        except RedisError:
            return False


def _knows_all(port: int, replicas: int) -> bool:
    try:
        known = _sentinel(port)
    except RedisError:
        return False
    return (known["num-slaves"], known["num-other-sentinels"]) == (replicas, 2)


def _sentinel(port: int) -> dict[str, int]:
    with Redis(port=port, password=WATCHERS) as sentinel:
        return dict(sentinel.sentinel_master("heed"))
