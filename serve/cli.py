"""The gateway's part of the command `heed`."""

import typer

from serve.up import up

app = typer.Typer()
app.command()(up)
