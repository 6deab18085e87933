"""``driftline doctor``: what is well on this machine and what is not."""

from __future__ import annotations

import json as json_module
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli._console import table_console

if TYPE_CHECKING:
    from infra.doctor import Check


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Say what is well on this machine and what is not, with a remedy on each line that needs one."""
    from infra.broker import pinned_version
    from infra.doctor import Check, examine, healthy
    from streams.errors import SettingsError
    from streams.settings import KafkaSettings, Settings, load_settings

    checks: list[Check] = []
    home, kafka = Path(Settings.model_fields["home"].default), KafkaSettings()
    try:
        settings = load_settings()
    except SettingsError as problem:
        checks.append(Check("settings", False, problem.message, problem.remedy or "correct the setting"))
    else:
        home, kafka = settings.home, settings.kafka
        checks.append(Check("settings", True, "no unknown keys, all values fit"))
    checks += examine(home, kafka)
    well = healthy(checks)
    if json:
        meta = {
            "ok": well,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "kafka_pinned": pinned_version(),
            "home": str(home.absolute()),
        }
        rows = [{"check": c.name, "ok": c.ok, "detail": c.detail, "remedy": c.remedy} for c in checks]
        typer.echo(json_module.dumps({"meta": meta, "rows": rows}))
    else:
        _show(checks)
    raise typer.Exit(0 if well else 1)


def _show(checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("", "check", "found", "remedy"):
        table.add_column(column, overflow="fold")
    for check in checks:
        if check.ok:
            mark = Text("well", style="green")
        else:
            mark = Text("amiss", style="bold red") if check.required else Text("note", style="yellow")
        # Text, not markup: a path may hold square brackets.
        table.add_row(mark, check.name, Text(check.detail), Text(check.remedy))
    table_console().print(table)
