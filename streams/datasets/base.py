"""What a dataset is: something that turns files into events and items of one shape.

A package of yours adds one by an entry point of the group ``driftline.datasets`` that leads to a `Dataset`, or to
something that makes one when called without arguments::

    [project.entry-points."driftline.datasets"]
    my-shop = "my_shop.driftline:ShopDataset"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import polars as pl

EVENT_SCHEMA: Final[Mapping[str, type[pl.DataType]]] = {
    "device_id": pl.String,
    "item_id": pl.String,
    "event_time_ms": pl.Int64,
    "kind": pl.String,
    "rating": pl.Float32,
}
"""Columns of the events; only ``rating`` may hold nulls, and it may be left out."""

ITEM_SCHEMA: Final[Mapping[str, type[pl.DataType]]] = {
    "item_id": pl.String,
    "title": pl.String,
    "categories": pl.String,
}
"""Columns of the items; ``title`` and ``categories`` may hold nulls. Several categories are separated by ``|``."""


@dataclass(frozen=True)
class Sources:
    """Where raw files may be.

    Parameters
    ----------
    data
        The user's folder of raw datasets (setting ``data``), searched first.
    downloads
        Where fetched files are kept, searched next. None: nothing is fetched.
    """

    data: Path | None = None
    downloads: Path | None = None

    def folders(self) -> list[Path]:
        """Every folder to search, in order."""
        return [each for each in (self.data, self.downloads) if each is not None]


@dataclass(frozen=True)
class RawData:
    """What a dataset's files hold, in the order of the files."""

    events: pl.DataFrame
    """Columns of `EVENT_SCHEMA`."""
    items: pl.DataFrame
    """Columns of `ITEM_SCHEMA`; may lack items that occur in the events, and may be empty."""
    source: str
    """The files, for messages and for the manifest."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Rows that the adapter left out on purpose: reason to count."""


@runtime_checkable
class Dataset(Protocol):
    """One dataset. Reading its files is all it does; checks, order and cache are `streams.datasets.prepared`'s."""

    @property
    def name(self) -> str:
        """How commands call it: lower-case letters, digits, ``.``, ``_`` and ``-``."""
        ...

    @property
    def title(self) -> str:
        """One line about it."""
        ...

    @property
    def terms(self) -> str:
        """Under which terms the data may be used."""
        ...

    @property
    def repeats(self) -> bool | None:
        """Whether a user may take an item again; None: as the events say. Without repeats nothing is served twice."""
        ...

    def load(self, sources: Sources) -> RawData:
        """Read the files.

        Raises
        ------
        DatasetError
            They are not there, or not of the declared shape.
        """
        ...
