"""The command `heed`: the commands of every room under one name, without a room that imports them all.

A room registers a typer app under the entry-point group `heed.commands`. A room whose libraries are not installed (the
trainer beside a gateway-only install) costs its commands and nothing else.
"""

import sys
from importlib.metadata import entry_points

import typer

ROOMS = {"serve", "feedback", "trainer"}


def rooms() -> tuple[typer.Typer, dict[str, str]]:
    """All commands in one app, and for each room that could not be loaded the module it lacks."""
    app = typer.Typer(
        name="heed",
        help="A chat service that improves from what its users say about its answers.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_show_locals=False,  # a traceback must not print somebody's prompt or key
    )
    absent: dict[str, str] = {}
    for entry in sorted(entry_points(group="heed.commands"), key=lambda entry: entry.name):
        try:
            room = entry.load()
        except ModuleNotFoundError as error:
            # Absent is a library, or the room's own door (a container may hold one room); anything else is a bug.
            if error.name is None or (error.name.split(".")[0] in ROOMS and not entry.value.startswith(error.name)):
                raise
            absent[entry.name] = error.name
            continue
        app.registered_commands.extend(room.registered_commands)
        app.registered_groups.extend(room.registered_groups)

    # With a single command typer would drop its name: `heed up` would have to be called as `heed`.
    app.callback()(lambda: None)
    return app, absent


def main() -> None:
    app, absent = rooms()
    if absent and len(sys.argv) > 1 and sys.argv[1] in {"--help", "-h"}:
        for room, module in absent.items():
            typer.echo(
                f"The {room}'s commands are not here: {module} is not installed (heed[cpu] and heed[gpu] have it)."
            )
    app()


if __name__ == "__main__":
    main()
