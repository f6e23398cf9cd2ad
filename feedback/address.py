"""Where Redis is, in one spelling for ledger and broker.

    redis://USER:PASSWORD@HOST:PORT/DB                           one server
    rediss://…                                                   one behind TLS, as managed services give it out
    redis+sentinel://USER:PASSWORD@HOST:PORT,HOST:PORT/NAME/DB   whatever Sentinel says is the primary of NAME
    rediss+sentinel://…                                          the same, with TLS to servers and Sentinels

USER and PASSWORD are the servers'; `?sentinel_password=` is the Sentinels' own, where they have one. What else stands
behind `?` is redis-py's. A Redis cluster is refused: a connection here is to one server.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.retry import Retry as BlockingRetry

SENTINEL_PORT = 26379
ASK_ONCE = BlockingRetry(NoBackoff(), 0)
"""For what blocks, as Celery does. redis-py else asks a Sentinel that is gone for seconds before it asks the next."""
_SERVERS = ("redis", "rediss", "unix")
_SENTINELS = ("redis+sentinel", "rediss+sentinel")
_WORKS = (
    "redis://HOST:PORT/DB, rediss://HOST:PORT/DB and redis+sentinel://HOST:PORT,HOST:PORT/NAME/DB work, with "
    "USER:PASSWORD@ before the host"
)


@dataclass(frozen=True)
class Watched:
    """A primary that Sentinels watch."""

    sentinels: tuple[tuple[str, int], ...]
    name: str
    database: int
    is_secure: bool
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)


def watched(url: str) -> Watched | None:
    """None where the URL is a server's own. Raises ValueError for one that is neither; it never quotes a password."""
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme in _SERVERS:
        if "," in urlsplit(url).netloc.rpartition("@")[2]:
            raise ValueError(
                f"it names several hosts. A Redis cluster cannot be the ledger or the broker; Sentinels can. {_WORKS}"
            )
        return None
    if scheme not in _SENTINELS:
        reason = "a Redis cluster cannot be the ledger or the broker" if "cluster" in scheme else "no such kind of URL"
        raise ValueError(f"it begins with {scheme[:20]!r}: {reason}. {_WORKS}")
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    name, _, database = parts.path.strip("/").partition("/")
    asked = dict(parse_qsl(parts.query))
    sentinel_password = asked.pop("sentinel_password", None)
    if not hosts or not name or not (database or "0").isdecimal() or asked:
        raise ValueError(f"it is not Sentinels, the name of what they watch, and a database's number. {_WORKS}")
    return Watched(
        tuple(_host(one) for one in hosts.split(",")),
        unquote(name),
        int(database or 0),
        scheme == "rediss+sentinel",
        unquote(username) or None,
        unquote(password) or None,
        sentinel_password,
    )


def _host(given: str) -> tuple[str, int]:
    try:
        found = urlsplit(f"//{given}")
        host, port = found.hostname, found.port or SENTINEL_PORT
    except ValueError:
        host, port = None, 0
    if host is None:
        raise ValueError(f"{given[:60]!r} is not a Sentinel's HOST:PORT")
    return host, port


def without_secrets(url: str) -> str:
    """For people to read: a password, of a server or of Sentinels, is not for logs."""
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    user = login.partition(":")[0]
    return parts._replace(netloc=f"{user}:…{at}{hosts}" if at else hosts, query="").geturl()


class PrimaryPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the primary, looked up for each new one. Blocks as the pool of one server does."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


def open_pool(
    url: str, timeout_s: float, authorities: Path | None = None, **options: Any
) -> BlockingConnectionPool | PrimaryPool:
    """Nothing is retried. `timeout_s` is the longest wait for a connection, of the pool and of the server.

    `options` are redis-py's of a connection. Raises ValueError as `watched` does.
    """
    place = watched(url)
    options = {"retry": Retry(NoBackoff(), 0), "socket_connect_timeout": timeout_s, **options}
    if place is None:
        return BlockingConnectionPool.from_url(
            url, timeout=timeout_s, **(tls(authorities) if url.startswith("rediss:") else {}), **options
        )
    secure = {"ssl": True, **tls(authorities)} if place.is_secure else {}
    # All Sentinels are asked within the time that one server has.
    share_s = timeout_s / (len(place.sentinels) + 1)
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        place.sentinels,
        sentinel_kwargs={
            "socket_timeout": share_s,
            "socket_connect_timeout": share_s,
            "retry": Retry(NoBackoff(), 0),
            "password": place.sentinel_password,
            **secure,
        },
    )
    login = {"username": place.username, "password": place.password, "db": place.database}
    return PrimaryPool(  # type: ignore[no-untyped-call]
        place.name, sentinel, timeout=timeout_s, **login, **secure, **options
    )


def tls(authorities: Path | None) -> Mapping[str, Any]:
    """Certificates are verified always, with the machine's authorities and those of the file."""
    return {"ssl_cert_reqs": "required"} | ({"ssl_ca_certs": str(authorities)} if authorities else {})
