"""The broker's address, in Celery's words: one spelling of ours is three settings of its own."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

from feedback.address import ASK_ONCE, tls, watched

SENTINEL_TIMEOUT_S = 1.0
"""A Sentinel answers from memory; the next one is asked instead."""


def broker(url: str, authorities: Path | None) -> dict[str, Any]:
    """Raises ValueError as `watched` does."""
    place = watched(url)
    if place is None:
        is_secure = url.startswith("rediss:")
        return {"broker_url": url, **({"broker_use_ssl": tls(authorities)} if is_secure else {})}
    login = f"{quote(place.username or '', safe='')}:{quote(place.password or '', safe='')}@" if place.password else ""
    secure = {"ssl": True, **tls(authorities)} if place.is_secure else {}
    return {
        "broker_url": ";".join(
            f"sentinel://{login}{host if ':' not in host else f'[{host}]'}:{port}/{place.database}"
            for host, port in place.sentinels
        ),
        "broker_transport_options": {
            "master_name": place.name,
            "sentinel_kwargs": {
                "password": place.sentinel_password,
                "retry": ASK_ONCE,
                "socket_timeout": SENTINEL_TIMEOUT_S,
                "socket_connect_timeout": SENTINEL_TIMEOUT_S,
                **secure,
            },
        },
        **({"broker_use_ssl": tls(authorities)} if place.is_secure else {}),
    }
