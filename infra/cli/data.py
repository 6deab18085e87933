"""``driftline data``: list, prepare, import and show datasets."""

from __future__ import annotations

import json as json_module
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli._console import table_console

if TYPE_CHECKING:
    from rich.console import JustifyMethod

    from streams.datasets import Manifest, Prepared

app = typer.Typer(help="List, prepare and import datasets.", no_args_is_help=True)

YEAR_MS = 365 * 86_400_000
"""Event times below it are hardly meant: seconds that were read as milliseconds, or days as seconds."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="As `driftline data list` shows it.")]


class TableFormat(StrEnum):
    """What a file holds; auto goes by its name."""

    auto = "auto"
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"


class Unit(StrEnum):
    """Of the time column."""

    auto = "auto"
    s = "s"
    ms = "ms"
    us = "us"
    ns = "ns"
    iso = "iso"


@app.command("list")
def list_command(json: Json = False) -> None:
    """Show every dataset that can be named, and what is prepared of it."""
    from streams.datasets import list_datasets
    from streams.settings import load_settings

    settings = load_settings()
    rows: list[dict[str, Any]] = [
        {
            "name": each.name,
            "prepared": each.prepared is not None,
            "events": each.prepared.events if each.prepared else None,
            "devices": each.prepared.devices if each.prepared else None,
            "items": each.prepared.items if each.prepared else None,
            "origin": each.origin,
            "title": each.title,
            "terms": each.terms,
            "problem": each.problem,
        }
        for each in list_datasets(settings)
    ]
    if json:
        meta = {"data": None if settings.data is None else str(settings.data), "home": str(settings.home.absolute())}
        typer.echo(json_module.dumps({"meta": meta, "rows": rows}))
        return
    for row in rows:
        row["prepared"] = "yes" if row["prepared"] else "no"
        row["about"] = row["problem"] or row["title"]
    _table(rows, ("name", "prepared", "events", "devices", "items", "origin", "about"))


@app.command()
def prepare(name: Name, json: Json = False) -> None:
    """Read a dataset's files, fetching them where that is possible, check them and cache the result."""
    from streams.datasets import find_dataset, sources_of
    from streams.datasets import prepare as prepare_dataset
    from streams.settings import load_settings

    settings = load_settings()
    prepared = prepare_dataset(find_dataset(name), sources_of(settings), settings.home)
    _show(prepared.manifest, prepared.path, json=json)


@app.command("import")
def import_command(
    name: Annotated[str, typer.Option("--name", help="How commands call it from now on.")],
    events: Annotated[Path, typer.Option("--events", metavar="FILE", help="Who took what, when.")],
    items: Annotated[
        Path | None, typer.Option("--items", metavar="FILE", help="Titles and categories of the items.")
    ] = None,
    mapping: Annotated[
        str,
        typer.Option(
            "--map",
            metavar="ROLE=COLUMN,…",
            help="Columns of the events: user, item, time, rating, order, kind; of the items: id, title, categories.",
        ),
    ] = "",
    table_format: Annotated[TableFormat, typer.Option("--format", help="Of both files.")] = TableFormat.auto,
    time_unit: Annotated[Unit, typer.Option("--time-unit", help="Of the time column.")] = Unit.auto,
    kind: Annotated[str, typer.Option("--kind", help="What the events are, where no column says so.")] = "view",
    repeats: Annotated[
        bool | None,
        typer.Option("--repeats/--no-repeats", help="Whether a user may take an item again; else as the events say."),
    ] = None,
    terms: Annotated[str, typer.Option("--terms", help="Under which terms the data may be used.")] = "",
    json: Json = False,
) -> None:
    """Make a dataset of your own tables: CSV, TSV or Parquet, gzipped or not."""
    from streams.datasets import prepare as prepare_dataset
    from streams.datasets import sources_of
    from streams.datasets.prepared import read_manifest
    from streams.datasets.registry import built_in
    from streams.datasets.tabular import Tabular, parse_map
    from streams.errors import DatasetError
    from streams.settings import load_settings

    if name in built_in():
        raise DatasetError(f"{name} is the name of a built-in dataset", remedy="choose another --name")
    settings = load_settings()
    dataset = Tabular(
        name=name,
        events=events.absolute(),
        items=None if items is None else items.absolute(),
        mapping=parse_map(mapping),
        format=table_format.value,
        time_unit=time_unit.value,
        kind=kind,
        title=f"imported from {events.name}",
        terms=terms or "as its owner says",
        repeats=repeats,
    )
    try:
        before = read_manifest(settings.home, name)
    except DatasetError:  # damaged: it is what is to be replaced
        before = None
    prepared = prepare_dataset(dataset, sources_of(settings), settings.home)
    if before is not None and before.hash != prepared.manifest.hash:
        typer.echo(f"note: it replaces the {name} of {before.events:,} events that was there", err=True)
    if items is not None and (untitled := _taken_without_title(prepared)):
        note = f"note: {untitled:,} items that were taken have no title in {items.name}; does it have the same ids?"
        typer.echo(note, err=True)
    if prepared.manifest.end_ms < YEAR_MS:
        typer.echo("note: all of it happened in 1970; was --time-unit meant to be another?", err=True)
    _show(prepared.manifest, prepared.path, json=json)


@app.command()
def show(name: Name, json: Json = False) -> None:
    """Show what a prepared dataset is, after verifying every byte of it."""
    from streams.datasets import load_prepared
    from streams.settings import load_settings

    prepared = load_prepared(load_settings().home, name)
    _show(prepared.manifest, prepared.path, json=json)


def _show(manifest: Manifest, path: Path, *, json: bool) -> None:
    import msgspec

    if json:
        typer.echo(json_module.dumps({"meta": {"path": str(path.absolute())}, "rows": [msgspec.to_builtins(manifest)]}))
        return
    left_out = ", ".join(f"{count:,} × {reason}" for reason, count in manifest.left_out.items())
    rows = [
        ("name", manifest.name),
        ("title", manifest.title),
        ("terms", manifest.terms),
        ("events", f"{manifest.events:,}"),
        ("devices", f"{manifest.devices:,}"),
        ("items", f"{manifest.items:,}"),
        ("first event", _date(manifest.start_ms)),
        ("last event", _date(manifest.end_ms)),
        ("repeats", "a user may take an item again" if manifest.repeats else "a user takes an item once"),
        ("left out", left_out or "nothing"),
        ("hash", manifest.hash),
        ("source", manifest.source),
        ("prepared", f"{manifest.created} in {path}"),
    ]
    _table([{"key": key, "value": value} for key, value in rows], ("key", "value"), header=False)


def _taken_without_title(prepared: Prepared) -> int:
    """Items that go by their id, where somebody took them."""
    taken = prepared.items.join(prepared.events, on="item_id", how="semi")
    return int((taken["title"] == taken["item_id"]).sum())


def _date(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...], *, header: bool = True) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=header)
    numbers = {column for column in columns if any(isinstance(row[column], int) for row in rows)}
    for column in columns:
        justify: JustifyMethod = "right" if column in numbers else "left"
        table.add_column(column, overflow="fold", no_wrap=column == "name", justify=justify)
    for row in rows:
        shown = (row[column] for column in columns)
        # Text, not markup: a path may hold square brackets.
        table.add_row(*(Text("" if v is None else f"{v:,}" if isinstance(v, int) else str(v)) for v in shown))
    table_console().print(table)
