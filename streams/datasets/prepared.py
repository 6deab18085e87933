"""The prepared form of a dataset: checked, in event-time order, cached with a manifest, verified when read.

::

    <home>/datasets/<name>/
        manifest.json     what it is, and the SHA-256 of the two others
        events.parquet    device_id, item_id, event_time_ms, kind, rating; row number = position in time
        items.parquet     item_id, title, categories

Two events are the same when device, item and event time are; the first is kept. Events of one time keep the order of
the file. Every item that occurs has a row, and every item a title: at worst its id.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import polars as pl

from streams.datasets.base import EVENT_SCHEMA, ITEM_SCHEMA, Dataset, RawData, Sources
from streams.datasets.columns import LATEST_MS
from streams.errors import DatasetError
from streams.events import BACKFILL

SCHEMA: Final = 1
MANIFEST: Final = "manifest.json"
EVENTS: Final = "events.parquet"
ITEMS: Final = "items.parquet"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a prepared dataset is."""

    schema: int
    name: str
    title: str
    terms: str
    source: str
    """The files it was made from."""
    created: str
    """ISO 8601, UTC."""
    events: int
    devices: int
    items: int
    start_ms: int
    """Event time of the first event."""
    end_ms: int
    """Event time of the last event."""
    repeats: bool
    """Whether a user may take an item again."""
    hash: str
    """SHA-256 of the content; it does not depend on how it is stored."""
    left_out: dict[str, int]
    """Rows that are not in it: reason to count."""
    files: dict[str, str]
    """SHA-256 of the files."""


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset in memory."""

    path: Path
    manifest: Manifest
    events: pl.DataFrame
    """Columns of `EVENT_SCHEMA`, by event time."""
    items: pl.DataFrame
    """Columns of `ITEM_SCHEMA`, no nulls, item_id unique; items that have no event may be among them."""

    @property
    def exclude_seen(self) -> bool:
        """What a user took is not recommended again."""
        return not self.manifest.repeats


def prepared_path(home: Path, name: str) -> Path:
    """Where a dataset's prepared form lies.

    Raises
    ------
    DatasetError
        The name is not one that a folder can bear.
    """
    if not _NAME.fullmatch(name):
        raise DatasetError(f"{name!r} is no dataset name", remedy="use a-z, 0-9, dot, dash and underscore")
    return home / "datasets" / name


def prepare(dataset: Dataset, sources: Sources, home: Path) -> Prepared:
    """Read, check, order and cache a dataset; an earlier preparation is replaced once the new one is whole.

    Raises
    ------
    DatasetError
        The files are not there or cannot be used; the message names file, column and row.
    """
    path = prepared_path(home, dataset.name)
    raw = dataset.load(sources)
    _check(dataset.name, raw)
    left_out = dict(raw.left_out)
    events = _ordered(raw.events, left_out)
    items = _catalogue(raw.items, events, left_out)
    repeats = dataset.repeats
    if repeats is None:
        repeats = bool(events.select(pl.struct("device_id", "item_id").is_duplicated().any()).item())
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
    except OSError as exc:
        raise DatasetError(
            f"prepared data cannot be written to {path.parent}: {exc.strerror}",
            remedy="set DRIFTLINE_HOME (or --home) to a folder of yours",
        ) from exc
    try:
        events.write_parquet(scratch / EVENTS)
        items.write_parquet(scratch / ITEMS)
        manifest = Manifest(
            schema=SCHEMA,
            name=dataset.name,
            title=dataset.title,
            terms=dataset.terms,
            source=raw.source,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            events=len(events),
            devices=events["device_id"].n_unique(),
            items=len(items),
            start_ms=int(events["event_time_ms"][0]),
            end_ms=int(events["event_time_ms"][-1]),
            repeats=repeats,
            hash=_content_hash(events, items),
            left_out=left_out,
            files={name: _sha256(scratch / name) for name in (EVENTS, ITEMS)},
        )
        (scratch / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        _put_in_place(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Prepared(path, manifest, events, items)


def read_manifest(home: Path, name: str) -> Manifest | None:
    """Return the manifest of a prepared dataset, or None where there is none.

    Raises
    ------
    DatasetError
        It cannot be read, or another version made it.
    """
    path = prepared_path(home, name)
    try:
        blob = (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise DatasetError(f"dataset {name}: {path / MANIFEST} cannot be read: {exc}") from exc
    try:
        schema = msgspec.json.decode(blob).get("schema")
        if schema == SCHEMA:
            return msgspec.json.decode(blob, type=Manifest)
    except (msgspec.MsgspecError, AttributeError) as exc:
        raise DatasetError(f"dataset {name}: {path / MANIFEST} is damaged: {exc}", remedy=_again(name)) from exc
    raise DatasetError(f"dataset {name}: prepared in form {schema}, this version reads {SCHEMA}", remedy=_again(name))


def load_prepared(home: Path, name: str) -> Prepared:
    """Read a prepared dataset and verify every byte of it.

    Raises
    ------
    DatasetError
        It was not prepared, or was changed since.
    """
    path = prepared_path(home, name)
    manifest = read_manifest(home, name)
    if manifest is None:
        raise DatasetError(f"dataset {name} is not prepared (nothing in {path})", remedy=_again(name))
    tables = []
    for file in (EVENTS, ITEMS):
        try:
            found = _sha256(path / file)
            if found != manifest.files.get(file):
                raise DatasetError(
                    f"dataset {name}: {path / file} was changed after it was prepared (SHA-256 {found[:12]}…)",
                    remedy=_again(name),
                )
            tables.append(pl.read_parquet(path / file))
        except (OSError, pl.exceptions.PolarsError) as exc:
            raise DatasetError(f"dataset {name}: {path / file} cannot be read: {exc}", remedy=_again(name)) from exc
    return Prepared(path, manifest, *tables)


def _again(name: str) -> str:
    return f"prepare it again: `driftline data prepare {name}`, or `driftline data import` if it came from there"


def _check(name: str, raw: RawData) -> None:
    """An adapter may come from anybody: what it promised is checked here."""
    for frame, schema, optional, what in (
        (raw.events, EVENT_SCHEMA, {"rating"}, "events"),
        (raw.items, ITEM_SCHEMA, {"title", "categories"}, "items"),
    ):
        for column, dtype in schema.items():
            if column not in frame.columns:
                if column == "rating":
                    continue
                raise DatasetError(f"dataset {name}: its {what} from {raw.source} have no column {column}")
            if frame[column].dtype != dtype and frame[column].dtype != pl.Null:
                raise DatasetError(
                    f"dataset {name}: column {column} of its {what} is {frame[column].dtype}, it must be {dtype()}"
                )
            bad = frame[column].is_null() if column not in optional else pl.Series([], dtype=pl.Boolean)
            if column in {"device_id", "item_id", "kind"}:
                bad = bad | (frame[column] == "") | frame[column].str.contains("\x00", literal=True)
            if column == "event_time_ms":
                bad = bad | ~frame[column].is_between(0, LATEST_MS)
            if bad.any():
                row = int(bad.arg_true()[0])
                raise DatasetError(
                    f"dataset {name}: column {column} of its {what} holds {frame[column][row]!r} in row {row + 1} "
                    f"({raw.source})"
                )
    if raw.events.is_empty():
        raise DatasetError(f"dataset {name} is empty: {raw.source} holds no events")
    if (raw.events["kind"] == BACKFILL).any():
        raise DatasetError(f"dataset {name}: the kind {BACKFILL!r} is reserved for history that a replay sends ahead")


def _ordered(raw: pl.DataFrame, left_out: dict[str, int]) -> pl.DataFrame:
    if "rating" not in raw.columns:
        raw = raw.with_columns(rating=pl.lit(None, dtype=pl.Float32))
    events = raw.select(pl.col(name).cast(dtype) for name, dtype in EVENT_SCHEMA.items())
    events = events.sort("event_time_ms", maintain_order=True)
    once = events.unique(["device_id", "item_id", "event_time_ms"], keep="first", maintain_order=True)
    if len(once) < len(events):
        left_out["duplicate event"] = len(events) - len(once)
    return once.rechunk()


def _catalogue(raw: pl.DataFrame, events: pl.DataFrame, left_out: dict[str, int]) -> pl.DataFrame:
    items = raw.select(pl.col(name).cast(dtype) for name, dtype in ITEM_SCHEMA.items())
    once = items.unique("item_id", keep="first", maintain_order=True)
    if len(once) < len(items):
        left_out["duplicate item"] = len(items) - len(once)
    unlisted = events.select("item_id").unique(maintain_order=True).join(once, on="item_id", how="anti")
    if len(unlisted):
        once = pl.concat([once, unlisted.with_columns(title=pl.lit(""), categories=pl.lit(""))])
    title = pl.col("title").fill_null("").str.strip_chars()
    return once.with_columns(
        title=pl.when(title == "").then("item_id").otherwise(title), categories=pl.col("categories").fill_null("")
    ).rechunk()


def _content_hash(events: pl.DataFrame, items: pl.DataFrame) -> str:
    digest = hashlib.sha256()
    for frame in (events, items):
        digest.update(frame.write_csv().encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put_in_place(scratch: Path, path: Path) -> None:
    """Swap the new directory in; another process may be doing the same, and then either will do."""
    old = path.with_name(f".{path.name}.old.{os.getpid()}")
    for _ in range(10):
        shutil.rmtree(old, ignore_errors=True)
        try:
            if path.exists():
                path.rename(old)
            scratch.rename(path)
        except OSError:
            continue
        else:
            shutil.rmtree(old, ignore_errors=True)
            return
    raise DatasetError(
        f"{path} cannot be replaced", remedy="see whether another process is preparing it, and try again"
    )
