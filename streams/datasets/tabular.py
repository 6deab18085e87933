"""Any table of events, and maybe one of items: CSV, TSV or Parquet, gzipped or not, with a column mapping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import polars as pl

from streams.datasets import columns
from streams.datasets.base import ITEM_SCHEMA, RawData, Sources
from streams.datasets.columns import TimeUnit
from streams.errors import DatasetError

Format = Literal["auto", "csv", "tsv", "parquet"]

USUAL: Final[Mapping[str, tuple[str, ...]]] = {
    "user": ("user_id", "user", "userId", "device_id", "customer_id", "reviewerID", "user_id:token"),
    "item": ("item_id", "item", "itemId", "product_id", "asin", "movieId", "item_id:token"),
    "time": ("unix_time", "timestamp", "time", "event_time", "event_time_ms", "unixReviewTime", "timestamp:float"),
    "rating": ("rating", "overall", "rating:float"),
    "order": ("seq_pos",),
    "kind": ("kind", "event_type"),
    "id": ("item_id", "item", "itemId", "product_id", "asin", "movieId", "item_id:token"),
    "title": ("title", "name", "item_title"),
    "categories": ("categories", "category", "genres"),
}
"""Roles, and the column names that are taken for them where the mapping says nothing.

``user``, ``item``, ``time``, ``rating``, ``order`` (of events of one user at one time) and ``kind`` are columns of
the events; ``id``, ``title`` and ``categories`` of the items. Without an items file, title and categories are looked
for among the events, if they are mapped.
"""


def parse_map(text: str) -> dict[str, str]:
    """Read a mapping such as ``user=customer,item=sku,time=at``.

    Raises
    ------
    DatasetError
        It is not of this form, names a role that does not exist or one twice, or gives one column to two of user, item
        and time.
    """
    mapping: dict[str, str] = {}
    roles = f"the roles are {', '.join(USUAL)}"
    for part in filter(None, text.split(",")):
        role, equals, column = (each.strip() for each in part.partition("="))
        if not equals or not column:
            raise DatasetError(f"column mapping {part!r} is not ROLE=COLUMN", remedy=roles)
        if role not in USUAL:
            raise DatasetError(f"column mapping {part!r}: there is no role {role!r}", remedy=roles)
        if role in mapping:
            raise DatasetError(f"column mapping: {role} is given twice", remedy="give each role one column")
        mapping[role] = column
    of_events = [mapping[role] for role in ("user", "item", "time") if role in mapping]
    if len(set(of_events)) < len(of_events):
        raise DatasetError(
            "column mapping: one column is two of user, item and time", remedy="give each role a column of its own"
        )
    return mapping


@dataclass(frozen=True)
class Tabular:
    """A dataset in tables of any column names.

    Parameters
    ----------
    events, items
        The files. Values are read as text, so an id keeps its leading zeros; TSV has no quoting.
    mapping
        Role to column (see `USUAL`).
    time_unit
        Of the time column; ``auto`` tells numbers from dates, and seconds from milliseconds by their size.
    kind
        What the events are, where no column says so.
    """

    name: str
    events: Path
    items: Path | None = None
    mapping: Mapping[str, str] = field(default_factory=dict)
    format: Format = "auto"
    time_unit: TimeUnit = "auto"
    kind: str = "view"
    title: str = ""
    terms: str = "as its owner says"
    repeats: bool | None = None

    def load(self, sources: Sources) -> RawData:  # noqa: ARG002 - it knows its files
        """Read the tables."""
        if self.items is None and "id" in self.mapping:
            raise DatasetError(
                f"dataset {self.name}: id is a column of an items file, and there is none",
                remedy="name the file with --items, or map item alone",
            )
        table, where = read_table(self.events, self.format), str(self.events)
        roles = {role: self._column(table, role, where) for role in ("user", "item", "time")}
        events = pl.DataFrame(
            {
                "device_id": columns.ids(table, roles["user"], where),
                "item_id": columns.ids(table, roles["item"], where),
                "event_time_ms": columns.millis(table, roles["time"], where, self.time_unit),
            }
        )
        rating = self._optional(table, "rating", where)
        kind = self._optional(table, "kind", where)
        events = events.with_columns(
            table[kind].cast(pl.String).alias("kind") if kind else pl.lit(self.kind).alias("kind"),
            (table[rating].cast(pl.Float32, strict=False) if rating else pl.lit(None, dtype=pl.Float32)).alias(
                "rating"
            ),
        )
        if order := self._optional(table, "order", where):
            position = table[order].cast(pl.Float64, strict=False)
            if position.null_count():
                columns.complain(table, order, position.is_null(), where, "a number")
            # Position in the user's own history: it settles what came first among events of one time.
            events = events.with_columns(position.alias("order")).sort("event_time_ms", "order", maintain_order=True)
            events = events.drop("order")
        source = where if self.items is None else f"{where}, {self.items}"
        return RawData(events, self._items(table), source)

    def _items(self, table: pl.DataFrame) -> pl.DataFrame:
        if self.items is not None:
            items, where = read_table(self.items, self.format), str(self.items)
            key = self._column(items, "id", where)
        elif "title" in self.mapping or "categories" in self.mapping:
            items, where, key = table, str(self.events), self._column(table, "item", str(self.events))
        else:
            return pl.DataFrame(schema=ITEM_SCHEMA)
        title, categories = self._optional(items, "title", where), self._optional(items, "categories", where)
        found = pl.DataFrame(
            {
                "item_id": columns.ids(items, key, where),
                "title": items[title].cast(pl.String) if title else pl.Series([None] * len(items), dtype=pl.String),
                "categories": (
                    items[categories].cast(pl.String) if categories else pl.Series([""] * len(items), dtype=pl.String)
                ),
            }
        )
        return found if self.items is not None else found.unique("item_id", keep="first", maintain_order=True)

    def _column(self, table: pl.DataFrame, role: str, where: str) -> str:
        column = self._optional(table, role, where)
        if column is None:
            raise DatasetError(
                f"{where} has no column for {role}: none of {', '.join(USUAL[role])}; "
                f"it has {', '.join(table.columns)}",
                remedy=f"name it with --map {role}=COLUMN",
            )
        return column

    def _optional(self, table: pl.DataFrame, role: str, where: str) -> str | None:
        if role in self.mapping:
            columns.require(table, [self.mapping[role]], where)
            return self.mapping[role]
        return next((each for each in USUAL[role] if each in table.columns), None)


def read_table(path: Path, form: Format = "auto") -> pl.DataFrame:
    """Read a table; everything but Parquet comes as text.

    Raises
    ------
    DatasetError
        It is missing, empty, or not of its format.
    """
    if form == "auto":
        suffixes = [each for each in path.suffixes if each not in {".gz", ".zst"}]
        form = {".tsv": "tsv", ".tab": "tsv", ".inter": "tsv", ".parquet": "parquet", ".pq": "parquet"}.get(  # type: ignore[assignment]
            suffixes[-1] if suffixes else "", "csv"
        )
    if path.is_dir():
        raise DatasetError(f"{path} is a folder", remedy="name the file in it")
    if not path.is_file():
        raise DatasetError(f"file {path} does not exist")
    try:
        if form == "parquet":
            table = pl.read_parquet(path)
        else:
            tab = form == "tsv"
            table = pl.read_csv(
                path, separator="\t" if tab else ",", quote_char=None if tab else '"', infer_schema=False
            )
    except pl.exceptions.NoDataError as exc:
        raise DatasetError(f"{path} is empty") from exc
    except (pl.exceptions.PolarsError, OSError, ValueError) as exc:
        raise DatasetError(
            f"{path} cannot be read as {form}: {str(exc).strip().splitlines()[0]}",
            remedy="name its format with --format; text must be UTF-8, and each row have as many fields as the first",
        ) from exc
    if len(table.columns) == 1 and ";" in table.columns[0]:
        raise DatasetError(
            f"{path} has semicolons between its columns", remedy="save it with commas, or as TSV with tabs"
        )
    if table.is_empty():
        raise DatasetError(f"{path} holds no rows")
    return table
