"""`python -m serve`: the gateway as one process."""

import gc
import sys

import uvicorn
from pydantic import ValidationError

from feedback.redaction import CannotRedact
from feedback.settings import LedgerSettings
from serve.app import create_app
from serve.auth import CannotBind
from serve.connections import connection_of, raise_file_limit
from serve.logs import configure
from serve.settings import GatewaySettings
from serve.tracing import CannotTrace

SHUTDOWN_S = 10
"""For answers that are being given when the gateway is told to stop; then their clients see the connection end."""

GC_THRESHOLD = 10_000
"""New objects between two searches for cycles. Votes leave none; at Python's 700, searching took 12 % of their time."""


def main() -> None:
    try:
        settings = GatewaySettings()
        configure(settings.log_format, settings.access_log)
        app = create_app(settings, LedgerSettings())
    except ValidationError as error:
        wrong = error.errors()[0]
        sys.exit(f"HEED_{str(wrong['loc'][0]).upper()}: {wrong['msg']}; got {wrong['input']!r}")
    except (CannotBind, CannotRedact, CannotTrace, OSError) as error:
        sys.exit(str(error))
    raise_file_limit(settings.connection_limit)
    gc.collect()
    gc.freeze()  # what the start has made stays until the end, and need not be searched
    gc.set_threshold(GC_THRESHOLD)
    uvicorn.run(
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
        timeout_graceful_shutdown=SHUTDOWN_S,
    )


if __name__ == "__main__":
    main()
