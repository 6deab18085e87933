"""Where a partition's device records lie on the device worker's disk: the port, and what a position is.

The store is a copy of the changelog topic and never ahead of it. Losing it costs time, not data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec


class Position(msgspec.Struct, array_like=True, frozen=True):
    """How far a partition has come: the next offset of each input topic, and what its records mean."""

    v: int = 1
    interactions: int = 0
    embeddings: int = 0
    fingerprint: str = ""
    """Bundle and arms that the records were written with; other ones cannot read them."""


class Store(Protocol):
    """Records of one partition by device key. One writer; a write is all or nothing and survives kill -9."""

    def position(self) -> Position:
        """Return what the last write said, or `Position()` in a new store."""
        ...

    def changelog_offset(self) -> int:
        """Next offset of the changelog that this store has not seen; 0 in a new store."""
        ...

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Records of these devices, None where there is none.

        Raises
        ------
        StoreError
            The disk cannot be read.
        """
        ...

    def write(self, records: Iterable[tuple[bytes, bytes]], position: Position, changelog_offset: int) -> None:
        """Write records, position and changelog offset in one transaction.

        Raises
        ------
        StoreError
            The disk or the map is full, or the disk cannot be written.
        """
        ...

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        """All records in key order."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...

    def close(self) -> None:
        """Make everything durable and leave the marker of a clean close."""
        ...
