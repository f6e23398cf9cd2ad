"""`python -m serve`: the gateway, as one process or as HEED_WORKERS of them."""

import argparse
import gc
import socket
import sys
from contextlib import suppress
from pathlib import Path

import uvicorn
from pydantic import ValidationError

from feedback.redaction import CannotRedact
from feedback.settings import LedgerSettings
from serve import workers
from serve.app import create_app
from serve.auth import CannotBind
from serve.connections import connection_of, raise_file_limit
from serve.drain import DrainingServer
from serve.logs import configure
from serve.settings import GatewaySettings
from serve.siblings import Siblings
from serve.tracing import CannotTrace

GC_THRESHOLD = 10_000
"""New objects between two searches for cycles. Votes leave none; at Python's 700, searching took 12 % of their time."""


def main() -> None:
    asked = parsed()
    try:
        settings = GatewaySettings()
        configure(settings.log_format, settings.access_log)
        if settings.workers > 1 and asked.worker is None:
            workers.run(settings)
        else:
            answer(settings, asked)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = f"HEED_{str(wrong['loc'][0]).upper()}"
        is_secret = name.endswith(("_URL", "_KEY", "_KEYS"))  # a URL may hold a password
        sys.exit(f"{name}: {wrong['msg']}" + ("" if is_secret else f"; got {wrong['input']!r}"))
    except (CannotBind, CannotRedact, CannotTrace, OSError) as error:
        sys.exit(str(error))
    except workers.CannotStart:
        sys.exit(1)


def answer(settings: GatewaySettings, asked: argparse.Namespace) -> None:
    """Raises CannotBind, CannotRedact, CannotTrace."""
    siblings = Siblings(asked.siblings, asked.worker) if asked.worker is not None else None
    app = create_app(settings, LedgerSettings(), siblings)
    raise_file_limit(settings.connection_limit)
    gc.collect()
    gc.freeze()  # what the start has made stays until the end, and need not be searched
    gc.set_threshold(GC_THRESHOLD)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=connection_of(settings),
        ws="none",
        timeout_keep_alive=settings.keep_alive_s,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks for the client's address
        log_config=None,
    )
    go = app.state.gateway.hotswap.go
    if siblings is None:
        server = DrainingServer(config, settings.drain_s, on_start=lambda: None, on_go=go)
        sockets = None
    else:

        def stop() -> None:
            server.should_exit = True

        server = DrainingServer(config, settings.drain_s, workers.tie(asked.tether_fd, stop), go)
        sockets = [socket.socket(fileno=asked.port_fd), siblings.listen()]
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has ended
        server.run(sockets)
    if not server.started:
        sys.exit(uvicorn.config.STARTUP_FAILURE)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m serve", description="The gateway; its settings are HEED_….")
    given = parser.add_argument_group("given to a worker by its parent (serve/workers.py)")
    given.add_argument("--worker", type=int, help="its number")
    given.add_argument("--port-fd", type=int, help="the socket that all workers take connections from")
    given.add_argument("--tether-fd", type=int, help="where it says that it is ready, and sees its parent's end")
    given.add_argument("--siblings", type=Path, help="folder with a socket for each worker")
    return parser.parse_args()


if __name__ == "__main__":
    main()
