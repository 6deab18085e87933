"""``driftline config``: every setting, its value, where it comes from and what it means."""

from __future__ import annotations

import json as json_module
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.cli._console import table_console


def config(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Show every setting with the value that a process started here would have; secrets are masked."""
    from streams.settings import CONFIG_VARIABLE, DEFAULT_FILE, describe, load_settings

    settings = load_settings()
    file = Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_FILE)
    document = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    rows = [
        {"key": key, "value": value, "from": _source(key, document), "meaning": " ".join(meaning.split())}
        for key, value, meaning in describe(settings)
    ]
    shown = str(file.absolute()) if document else ""
    if json:
        typer.echo(json_module.dumps({"meta": {"file": shown}, "rows": rows}))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"settings (file: {shown or 'none'})", box=None, pad_edge=False)
    for column in ("key", "value", "from", "meaning"):
        table.add_column(column, overflow="fold", no_wrap=column == "key")
    for row in rows:
        # Text, not markup: a path may hold square brackets.
        table.add_row(*(Text(text) for text in row.values()))
    table_console().print(table)


def _source(key: str, document: dict[str, Any]) -> str:
    """Where a value comes from; the global options travel in the environment and cannot be told from it."""
    from streams.settings import ENV_PREFIX

    variable = ENV_PREFIX + key.upper().replace(".", "__")
    group = key.partition(".")[0]
    upper = {name.upper() for name in os.environ}
    # A whole group may also be given as JSON in one variable.
    if variable in upper or f"{ENV_PREFIX}{group.upper()}" in upper:
        return "environment"
    branch: Any = document
    for part in key.split("."):
        if not isinstance(branch, dict) or part not in branch:
            return "default"
        branch = branch[part]
    return "file"
