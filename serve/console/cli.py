"""`heed console`: the pages, started by hand or by `heed up`."""

import sys
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from serve.console.settings import ConsoleSettings


def console(
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1 (HEED_CONSOLE_PORT, default 7860).")] = None,
    url: Annotated[
        str | None, typer.Option(help="Address of the gateway (HEED_URL; default: the stack that runs here).")
    ] = None,
) -> None:
    """Serve the console: pages to chat, judge and operate, for this machine's browser."""
    asked: dict[str, Any] = {"console_port": port, "url": url}
    try:
        settings = ConsoleSettings(**{name: value for name, value in asked.items() if value is not None})
    except ValidationError as error:
        wrong = error.errors()[0]
        sys.exit(f"HEED_{str(wrong['loc'][0]).upper()} is {wrong['input']!r}: {wrong['msg']}.")
    try:
        # Gradio takes seconds to import: the other commands must not wait for it, nor a gateway-only install need it.
        from serve.console.app import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        sys.exit("Gradio is not installed. `make run` installs it; by hand: pip install 'heed[console]'.")
    typer.echo(f"The console is at http://127.0.0.1:{settings.console_port} (gateway: {settings.gateway_url}).")
    serve(settings)
