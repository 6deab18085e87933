"""``driftline config``: every setting, its value and what it means."""

from __future__ import annotations

import json as json_module
import os
from typing import Annotated

import typer


def config(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Show every setting with the value that a process started here would have; secrets are masked."""
    from streams.settings import CONFIG_VARIABLE, DEFAULT_FILE, describe, load_settings

    rows = describe(load_settings())
    named = os.environ.get(CONFIG_VARIABLE, "")
    file = named or (str(DEFAULT_FILE.absolute()) if DEFAULT_FILE.is_file() else "")
    if json:
        table_rows = [{"key": key, "value": value, "meaning": meaning} for key, value, meaning in rows]
        typer.echo(json_module.dumps({"meta": {"file": file}, "rows": table_rows}))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"settings (file: {file or 'none'})", box=None, pad_edge=False)
    for column in ("key", "value", "meaning"):
        table.add_column(column, overflow="fold")
    for key, value, meaning in rows:
        table.add_row(Text(key, style="bold"), Text(value), Text(" ".join(meaning.split())))
    Console().print(table)
