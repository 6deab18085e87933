"""A partition's write-back cache: device records in one structured array, so that a wave is one gather, one scatter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from device_agent.state import StateLayout
from device_agent.store import Store


class RecordCache:
    """Records of the devices that were met lately, and which of them changed since the last checkpoint.

    Parameters
    ----------
    capacity
        Most records kept after a checkpoint; when there are more, the half that was read last stays. Between two
        checkpoints there may be any number.
    """

    def __init__(self, layout: StateLayout, store: Store, capacity: int) -> None:
        self._layout = layout
        self._store = store
        self._capacity = capacity
        self._rows: dict[bytes, int] = {}
        self._keys: list[bytes] = []
        self._records = layout.new(min(capacity, 256))
        self._dirty: set[int] = set()
        self._unsaved: dict[bytes, bytes] = {}

    def rows(self, keys: Sequence[bytes]) -> npt.NDArray[np.intp]:
        """Row of each device; those that are not here are read from the store, or begin empty.

        Raises
        ------
        StoreError
            The store cannot be read.
        BundleError
            A stored record belongs to another bundle.
        """
        known = self._rows
        if missing := list(dict.fromkeys(key for key in keys if key not in known)):
            self._load(missing)
        return np.fromiter((known[key] for key in keys), dtype=np.intp, count=len(keys))

    def get(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.void]:
        """Copy of these records."""
        return self._layout.take(self._records, rows)

    def put(self, rows: npt.NDArray[np.intp], records: npt.NDArray[np.void]) -> None:
        """Write records back; each row at most once."""
        self._layout.put(self._records, rows, records)
        self._dirty.update(rows.tolist())

    def take_dirty(self) -> list[tuple[bytes, bytes]]:
        """Key and bytes of each record changed since the last call."""
        rows = sorted(self._dirty)
        self._dirty.clear()
        changed = self._layout.take(self._records, np.array(rows, np.intp))
        blob, size = changed.tobytes(), self._layout.dtype.itemsize
        return [(self._keys[row], blob[i * size : (i + 1) * size]) for i, row in enumerate(rows)]

    def hold_unsaved(self, records: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
        """Records that are in the changelog and not in the store yet; `saved` says when they are."""
        self._unsaved.update(records)
        return self._unsaved

    def saved(self) -> None:
        """The store has everything that was unsaved: now rows that did not change since may be forgotten."""
        self._unsaved.clear()
        if len(self._keys) <= self._capacity:
            return
        # those read last stay, and those that changed since
        kept = sorted(self._dirty.union(range(len(self._keys) - self._capacity // 2, len(self._keys))))
        records = self._layout.take(self._records, np.array(kept, np.intp))
        self._records = np.concatenate([records, self._layout.new(min(self._capacity, 256))])
        self._keys = [self._keys[row] for row in kept]
        self._rows = {key: row for row, key in enumerate(self._keys)}
        self._dirty = {place for place, row in enumerate(kept) if row in self._dirty}

    def _load(self, keys: list[bytes]) -> None:
        start, end = len(self._keys), len(self._keys) + len(keys)
        if end > len(self._records):
            grown = self._layout.new(max(end, 2 * len(self._records)))
            grown[:start] = self._records[:start]
            self._records = grown
        fresh = [i for i, key in enumerate(keys) if key not in self._unsaved]
        blobs: list[bytes | None] = [self._unsaved.get(key) for key in keys]
        for i, blob in zip(fresh, self._store.read([keys[i] for i in fresh]), strict=True):
            blobs[i] = blob
        found = [i for i, blob in enumerate(blobs) if blob is not None]
        if found:
            self._records[[start + i for i in found]] = self._layout.unpack(
                [blob for blob in blobs if blob is not None]
            )
        if len(found) < len(keys):
            empty = [start + i for i, blob in enumerate(blobs) if blob is None]
            self._records[empty] = self._layout.new(len(empty))
        self._keys += keys
        self._rows.update({key: start + i for i, key in enumerate(keys)})
