"""The neighbour table on its way: to records of `trends.v1` and back."""

from __future__ import annotations

from typing import Final

import numpy as np

from streams.errors import RecordError
from streams.events import SCHEMA_VERSION, Trends, pack_items, pack_vector, unpack_items
from streams.neighbours import NeighbourTable

PART_BYTES: Final = 400_000
"""Of a part; brokers take records of a megabyte."""
MOST_PARTS: Final = 1 << 20
_CELL_BYTES: Final = 6


def records_of_table(table: NeighbourTable, bundle_id: str, published_at_ms: int) -> list[Trends]:
    """Cut a table into records."""
    n, kept = table.items.shape
    rows = max(1, PART_BYTES // (_CELL_BYTES * kept))
    firsts = range(0, n, rows)
    return [
        Trends(
            SCHEMA_VERSION[Trends],
            bundle_id,
            table.as_of_ms,
            part,
            len(firsts),
            kept,
            pack_items(table.items[first : first + rows]),
            pack_vector(table.weights[first : first + rows]),
            published_at_ms,
        )
        for part, first in enumerate(firsts)
    ]


class TableAssembly:
    """Puts tables together again, from records in the topic's order.

    A writer that was killed leaves parts of two tables side by side; nothing is made of those, and the next table
    replaces both.

    Parameters
    ----------
    n_items
        N of the bundle.
    """

    def __init__(self, bundle_id: str, n_items: int) -> None:
        self._bundle_id = bundle_id
        self._n_items = n_items
        self._parts: dict[int, Trends] = {}
        self._shape = (-1, 0, 0)
        """as_of, parts and K of the table in the making."""
        self._published_at_ms = -1
        """When its last part was."""
        self._done = -1
        """as_of of the last table that was put together."""

    def add(self, record: Trends, latest_ms: int = 1 << 62) -> NeighbourTable | None:
        """Take one record; the table, if that was the last that it lacked.

        Parameters
        ----------
        latest_ms
            No table can be as of a later moment.

        Raises
        ------
        RecordError
            The record is none of this bundle's, or damaged, or of the future. What was collected before it stays.
        """
        self._check(record)
        if record.as_of_ms > latest_ms:
            raise RecordError(f"trends as of {record.as_of_ms} ms, which is in the future", reason="future-time")
        # A writer that lost its place may still send parts of the table before: they are no reason to begin anew.
        older = record.as_of_ms < self._shape[0] and record.published_at_ms <= self._published_at_ms
        if (self._parts and older) or record.as_of_ms == self._done:
            return None
        self._published_at_ms = record.published_at_ms
        shape = (record.as_of_ms, record.parts, record.kept)
        if shape != self._shape:
            self._parts, self._shape = {}, shape
        self._parts[record.part] = record
        if len(self._parts) < record.parts:
            return None
        parts = [self._parts[part] for part in range(record.parts)]
        self._parts = {}
        items = np.concatenate([unpack_items(each.items) for each in parts]).reshape(-1, record.kept)
        weights = np.concatenate([np.frombuffer(each.weights, "<f2") for each in parts]).reshape(-1, record.kept)
        if len(items) != self._n_items:
            raise RecordError(f"the parts of a table have {len(items)} rows, wants {self._n_items}", reason="bad-table")
        self._done = record.as_of_ms
        return NeighbourTable(record.as_of_ms, items, weights.astype(np.float16, copy=False))

    def _check(self, record: Trends) -> None:
        if record.bundle_id != self._bundle_id:
            raise RecordError(
                f"trends of bundle {record.bundle_id}, this worker has {self._bundle_id}",
                remedy="run cloud and device workers with the same bundle",
                reason="other-bundle",
            )
        sizes = 0 < record.parts <= MOST_PARTS and 0 < record.kept <= self._n_items
        if not (sizes and 0 <= record.part < record.parts and record.as_of_ms >= 0):
            raise RecordError(f"trends: part {record.part} of {record.parts}", reason="bad-table")
        row = record.kept
        if len(record.items) % (4 * row) or len(record.weights) * 2 != len(record.items):
            raise RecordError("trends with a torn row", reason="bad-table")
        items, weights = unpack_items(record.items), np.frombuffer(record.weights, "<f2")
        if items.size and not 0 <= items.min() <= items.max() <= self._n_items:
            raise RecordError("trends with an item that is not in the bundle", reason="bad-table")
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise RecordError("trends with a weight that is negative or no number", reason="bad-table")
