"""The reference: pages that the site's build makes from the code, so that they cannot tell of another version.

A hook of MkDocs. Settings come from the rooms' settings classes, calls from the gateway's OpenAPI description, commands
from typer. Nothing is written into docs/.
"""

import html
import tempfile
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic_settings import BaseSettings
from typer.cli import get_docs_for_click

from feedback.settings import LedgerSettings
from heed import rooms
from serve.app import create_app
from serve.client import ClientSettings
from serve.console.settings import ConsoleSettings
from serve.settings import GatewaySettings
from serve.stack import StackSettings
from trainer.settings import WorkshopSettings

ROOMS: dict[str, type[BaseSettings]] = {
    "Gateway": GatewaySettings,
    "Ledger": LedgerSettings,
    "Workshop": WorkshopSettings,
    "The embedded stack": StackSettings,
    "Commands": ClientSettings,
    "Console": ConsoleSettings,
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for name, content in (("settings", settings()), ("calls", calls()), ("commands", commands())):
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def settings() -> str:
    lines = ["# Settings", "", "Read from the environment when a process starts.", ""]
    for title, room in ROOMS.items():
        prefix = room.model_config.get("env_prefix", "").upper()
        lines += [f"## {title}", "", "| setting | default | |", "|---|---|---|"]
        for name, field in room.model_fields.items():
            default = "" if field.is_required() else _told(field.get_default(call_default_factory=True))
            alias = field.validation_alias
            known = alias if isinstance(alias, str) else prefix + name.upper()
            lines.append(f"| `{known}` | {default} | {_cell(field.description or '')} |")
        lines.append("")
    return "\n".join(lines)


def calls() -> str:
    # The description is all that is asked of this app: it is never started, and what it writes goes away.
    with tempfile.TemporaryDirectory() as var:
        described: dict[str, Any] = create_app(GatewaySettings(var=Path(var)), LedgerSettings()).openapi()
    lines = ["# Calls", "", "Fields and replies are at a running gateway's `/docs` and in its `/openapi.json`.", ""]
    lines += ["| call | |", "|---|---|"]
    for path, methods in described["paths"].items():
        for method, call in methods.items():
            told = call.get("description") or call.get("summary", "")
            lines.append(f"| `{method.upper()} {path}` | {_cell(told)} |")
    return "\n".join(lines)


def commands() -> str:
    app, absent = rooms()
    if absent:
        raise RuntimeError(f"The commands of {', '.join(absent)} are missing: `make docs` wants what tests want.")
    command = typer.main.get_command(app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="heed", title="Commands")


def _told(value: object) -> str:
    if isinstance(value, tuple | list | set | frozenset):
        value = ",".join(map(str, value))
    return "" if value in ("", None) else f"`{_cell(str(value))}`"


def _cell(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
