"""Amazon reviews by J. McAuley: 5-core reviews with metadata, gzipped JSON lines, releases of 2014 and 2018.

J. McAuley, C. Targett, Q. Shi, A. van den Hengel, Image-based recommendations on styles and substitutes, SIGIR 2015;
J. Ni, J. Li, J. McAuley, Justifying recommendations using distantly-labeled reviews, EMNLP 2019.

Times have day resolution. The metadata of 2014 is not JSON but one Python literal a line.
"""

from __future__ import annotations

import ast
import gzip
import html
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import polars as pl

from streams.datasets import columns
from streams.datasets.base import ITEM_SCHEMA, RawData, Sources
from streams.datasets.files import find_one, not_found
from streams.errors import DatasetError

_ASIN: Final = re.compile(rb"""['"]asin['"]\s*:\s*['"]([^'"]+)['"]""")


class _Review(msgspec.Struct):
    reviewer: str | None = msgspec.field(name="reviewerID", default=None)
    asin: str | None = None
    overall: float | None = None
    time: int | None = msgspec.field(name="unixReviewTime", default=None)


@dataclass(frozen=True)
class Amazon:
    """One category, by the name it has in the file names, such as ``Toys_and_Games``.

    Looks for ``reviews_<category>_5.json.gz`` or ``<category>_5.json.gz``, and ``meta_<category>.json.gz``, in the
    data folder or in one of the dataset's name; unzipped files will do. Nothing is downloaded: ask the publisher.
    """

    name: str
    category: str
    title: str
    terms: str = "J. McAuley's Amazon product data: research use; cite the papers above; no formal licence"
    repeats: bool = False

    def load(self, sources: Sources) -> RawData:
        """Read reviews, and the metadata of the items that occur in them."""
        folders = [self.name, "amazon"]
        stems = (f"reviews_{self.category}_5.json", f"{self.category}_5.json")
        reviews = find_one(sources, folders, [f"{stem}{end}" for stem in stems for end in (".gz", "")])
        meta = find_one(sources, folders, [f"meta_{self.category}.json{end}" for end in (".gz", "")])
        if reviews is None or meta is None:
            wanted = [f"{stems[0]}.gz"] * (reviews is None) + [f"meta_{self.category}.json.gz"] * (meta is None)
            raise not_found(self.name, sources, wanted)
        rows = [(each.reviewer, each.asin, each.overall, each.time) for each in _reviews(reviews)]
        schema = {"reviewerID": pl.String, "asin": pl.String, "overall": pl.Float32, "unixReviewTime": pl.Int64}
        table = pl.DataFrame(rows, schema=schema, orient="row")
        columns.require(table, list(schema), str(reviews))
        events = pl.DataFrame(
            {
                "device_id": columns.ids(table, "reviewerID", str(reviews)),
                "item_id": columns.ids(table, "asin", str(reviews)),
                "event_time_ms": columns.millis(table, "unixReviewTime", str(reviews), "s"),
                "rating": table["overall"],
            }
        ).with_columns(kind=pl.lit("review"))
        items = pl.DataFrame(list(_items(meta, set(events["item_id"]))), schema=ITEM_SCHEMA, orient="row")
        return RawData(events, items, source=f"{reviews}, {meta}")


def _reviews(path: Path) -> Iterator[_Review]:
    decoder = msgspec.json.Decoder(_Review)
    for number, line in _lines(path):
        try:
            yield decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise DatasetError(f"{path}: line {number} is not a review: {exc}") from exc


def _items(path: Path, wanted: set[str]) -> Iterator[tuple[str, str, str]]:
    """Only of items that occur: the metadata holds many times as many."""
    for number, line in _lines(path):
        asin = _ASIN.search(line)
        if asin is None or asin[1].decode(errors="replace") not in wanted:
            continue
        fields = _fields(line, f"{path}: line {number}")
        yield str(fields["asin"]), _text(fields.get("title")), _path(fields.get("categories") or fields.get("category"))


def _fields(line: bytes, where: str) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        try:
            fields = ast.literal_eval(line.decode())
        except (ValueError, SyntaxError, MemoryError, RecursionError) as exc:
            raise DatasetError(f"{where} is neither JSON nor a Python literal: {exc}") from exc
    if not isinstance(fields, dict) or "asin" not in fields:
        raise DatasetError(f"{where} is not an item")
    return fields


def _text(value: object) -> str:
    return html.unescape(value).strip() if isinstance(value, str) else ""


def _path(categories: object) -> str:
    """The deepest path as one category: 2014 has a list of paths, 2018 one path."""
    if not isinstance(categories, list) or not categories:
        return ""
    paths = categories if isinstance(categories[0], list) else [categories]
    return " > ".join(_text(each) for each in max(paths, key=len))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as exc:
        raise DatasetError(f"{path} cannot be read: {exc}", remedy="fetch it again") from exc


CATEGORIES: Final = tuple(
    Amazon(
        f"amazon-{short}", category, f"Amazon {category.replace('_', ' ')}: 5-core reviews with metadata, by the day"
    )
    for short, category in (
        ("beauty", "Beauty"),
        ("toys", "Toys_and_Games"),
        ("sports", "Sports_and_Outdoors"),
        ("games", "Video_Games"),
    )
)
