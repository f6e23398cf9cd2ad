"""`python -m serve.console`: the console as one process, as `heed up` and compose.yaml start it."""

import typer

from serve.console.cli import console

if __name__ == "__main__":
    typer.run(console)
