"""The device record: everything a device knows, in one fixed-width numpy record.

A wave of devices is read with one join and one `np.frombuffer` and written with one `tobytes` a device; nothing is
parsed. The first part follows from the device's interactions alone (see `digest`); the ``arm`` part also depends on
when the cloud's answers came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streams.bundle import PHI, Manifest
from streams.errors import BundleError, StoreError

RECORD_VERSION: Final = 2
"""Of the record's fields; a record of another version is refused."""
_OFTEN: Final = 1024
"""Records at once for which row indexes are kept ready."""
_COUNTERS_AT: Final = 16  # where count lies, followed by served, history_len, hash_count
RECENT_HASHES: Final = 32
"""Event ids by which a device recognises a repeated event."""
LONG_AGO_MS: Final = -(2**62)
"""Event time of what has not happened: its age comes out as one that no real thing has."""
SCRATCH: Final = 8
"""Floats that a policy may keep for each device and arm."""

FROM_INTERACTIONS: Final = (
    "count",
    "served",
    "last_time_ms",
    "history_len",
    "history_items",
    "history_times",
    "hash_count",
    "recent_hashes",
    "last_item",
    "srm_hidden",
    "seen",
)
"""Fields that follow from the interactions alone, whatever the cloud answered and however events were batched."""

Records = npt.NDArray[np.void]
"""(n,) device records of one `StateLayout`."""


class StateLayout:
    """The record's dtype for one bundle and one number of arms.

    Every field lies on a multiple of its own size and the padding has names, so that numpy computes on views of the
    record without copying and equal records have equal bytes.

    =================  =============  ==================================================================
    field              type           meaning
    =================  =============  ==================================================================
    version            u2             `RECORD_VERSION`
    arms               u2             number of arms
    bundle_id          u8             the bundle that item indexes and vectors belong to
    count              i8             interactions seen, backfill and unknown items included
    served             i8             interactions that were served
    history_len        i8             interactions with items of the bundle; the ring's slot is this modulo W
    hash_count         i8             hashes pushed into recent_hashes
    applied            i8             offset of the last interaction applied; -1
    last_time_ms       i8             newest event time seen; -1
    history_times      i8[W]          event times of the last W such interactions
    recent_hashes      u8[32]         hashes of the last event ids, 0 where there is none
    history_items      i4[W]          their item indexes
    srm_hidden         f4[h]          hidden state of the SRM
    last_item          i4             last item of the bundle; -1
    seen               u1[⌈N/8⌉]      bit i: item i was taken; zero length without `exclude_seen`
    arm                (A,)           the rest, for each arm
    as_of              i8             interactions the cached embedding knows; -1 where there is none
    embedded_time_ms   i8             event time of the request it answers; `LONG_AGO_MS`
    freshness_ms       i8             wall time from request to use; -1
    inflight_as_of     i8             as_of of the request under way; -1
    inflight_until_ms  i8             wall time after which that request is given up; -1
    requests           i8             requests made
    last_request_count i8             count when the last one was made; 0
    last_request_ms    i8             event time of the last one; `LONG_AGO_MS`
    recent_mean        f4[d]          m: weighted mean Σ γ^j v̂ / Σ γ^j over the interactions since as_of
    recent_norm        f4             Σ γ^j over the same; 0 or at least 1
    inverse_norm       f4             1 / ‖e‖ of the cached embedding
    phi                f4[P]          signals after the last interaction (see `device_agent.staleness`)
    candidates         i4[C]          the cloud's candidates, best first; -1: none, or seen since (`exclude_seen`)
    scratch            f4[8]          the policy's own
    embedding          f2[d]          the cached embedding
    =================  =============  ==================================================================

    Parameters
    ----------
    manifest
        Of the bundle: number of items, dimensions, window.
    n_arms
        Arms A of the experiment.
    candidates
        Candidates C kept with an embedding.
    """

    def __init__(self, manifest: Manifest, n_arms: int, *, candidates: int = 100) -> None:
        self.bundle_name = manifest.bundle_id
        self.bundle_id = int(manifest.bundle_id, 16)
        self.n_arms = n_arms
        self.window = manifest.window
        self.candidates = candidates
        arm = _packed(
            ("as_of", "<i8"),
            ("embedded_time_ms", "<i8"),
            ("freshness_ms", "<i8"),
            ("inflight_as_of", "<i8"),
            ("inflight_until_ms", "<i8"),
            ("requests", "<i8"),
            ("last_request_count", "<i8"),
            ("last_request_ms", "<i8"),
            ("recent_mean", "<f4", (manifest.d,)),
            ("recent_norm", "<f4"),
            ("inverse_norm", "<f4"),
            ("phi", "<f4", (len(PHI),)),
            ("candidates", "<i4", (candidates,)),
            ("scratch", "<f4", (SCRATCH,)),
            ("embedding", "<f2", (manifest.d,)),
        )
        self.dtype = _packed(
            ("version", "<u2"),
            ("arms", "<u2"),
            ("pad_head", "u1", (4,)),
            ("bundle_id", "<u8"),
            ("count", "<i8"),
            ("served", "<i8"),
            ("history_len", "<i8"),
            ("hash_count", "<i8"),
            ("applied", "<i8"),
            ("last_time_ms", "<i8"),
            ("history_times", "<i8", (manifest.window,)),
            ("recent_hashes", "<u8", (RECENT_HASHES,)),
            ("arm", arm, (n_arms,)),
            ("history_items", "<i4", (manifest.window,)),
            ("srm_hidden", "<f4", (manifest.srm_dim,)),
            ("last_item", "<i4"),
            ("seen", "u1", ((manifest.n_items + 7) // 8 if manifest.exclude_seen else 0,)),
        )
        self._recent_at = _offset(self.dtype, "arm") + _offset(arm, "recent_mean")
        self._recent_width = manifest.d + 2 + len(PHI)
        self._arm_size = arm.itemsize
        self._every = np.arange(_OFTEN)
        self._raw = np.dtype((np.void, self.dtype.itemsize))
        blank = np.zeros(1, self.dtype)
        blank["version"] = RECORD_VERSION
        blank["arms"] = n_arms
        blank["bundle_id"] = self.bundle_id
        for name in ("applied", "last_time_ms", "last_item"):
            blank[name] = -1
        for name in ("as_of", "freshness_ms", "inflight_as_of", "inflight_until_ms", "candidates"):
            blank["arm"][name] = -1
        for name in ("embedded_time_ms", "last_request_ms"):
            blank["arm"][name] = LONG_AGO_MS
        self._blank = blank

    def new(self, n: int) -> Records:
        """(n,) records of devices that nothing is known about."""
        return self.take(self._blank, np.zeros(n, np.intp))

    def copy(self, records: Records) -> Records:
        """A copy; numpy's own walks through the fields of each record."""
        return self._of_raw(records.view(self._raw).copy())

    def take(self, records: Records, rows: npt.NDArray[np.intp]) -> Records:
        """A copy of the records at `rows`, without walking through their fields."""
        return self._of_raw(np.ascontiguousarray(records).view(self._raw).take(rows))

    def put(self, records: Records, rows: npt.NDArray[np.intp], values: Records) -> None:
        """Write `values` into contiguous `records` at `rows`, without walking through their fields."""
        records.view(self._raw)[rows] = values.view(self._raw)

    def _of_raw(self, raw: Records) -> Records:
        """Records of contiguous raw ones, without copying; a tenth of what ``view`` costs for a dtype with fields."""
        return np.ndarray(len(raw), self.dtype, raw)

    def counters(self, records: Records) -> npt.NDArray[np.int64]:
        """View (n, 4) of count, served, history_len and hash_count, which mostly go up together.

        The records must be contiguous, as `new`, `copy`, `take` and `unpack` give them.
        """
        return np.ndarray((len(records), 4), np.int64, records, _COUNTERS_AT, (records.itemsize, 8))

    def every(self, n: int) -> npt.NDArray[np.intp]:
        """(n,) the rows 0, 1, …, to index with; not to be written to."""
        return self._every[:n] if n <= len(self._every) else np.arange(n)

    def recent(self, records: Records) -> npt.NDArray[np.float32]:
        """View (n, A, d+2+P) of recent_mean, recent_norm, inverse_norm and phi, which lie side by side.

        The records must be contiguous, as for `counters`.
        """
        shape = (len(records), self.n_arms, self._recent_width)
        return np.ndarray(shape, np.float32, records, self._recent_at, (records.itemsize, self._arm_size, 4))

    def last_items(self, records: Records, most: int) -> npt.NDArray[np.int32]:
        """(n, most) item indexes of the last interactions, newest first; -1 where there were fewer."""
        place = records["history_len"][:, None] - np.arange(1, most + 1)
        items = np.take_along_axis(records["history_items"], place % self.window, axis=1)
        return np.where((place >= 0) & (place >= records["history_len"][:, None] - self.window), items, np.int32(-1))

    def pack(self, record: Any) -> bytes:
        """One record (a row of an array of records) as bytes."""
        return bytes(record.tobytes())

    def unpack(self, blobs: Sequence[bytes]) -> Records:
        """(n,) records from their bytes; the caller may write to them.

        Raises
        ------
        BundleError
            A record was written with another bundle: its item indexes and vectors mean nothing here.
        StoreError
            A record has another version, other arms or another size.
        """
        size = self.dtype.itemsize
        if any(len(blob) != size for blob in blobs):
            for blob in blobs:
                self._refuse(blob)
        records = np.frombuffer(bytearray().join(blobs), self.dtype)
        wrong = (
            (records["bundle_id"] != self.bundle_id)
            | (records["version"] != RECORD_VERSION)
            | (records["arms"] != self.n_arms)
        )
        if np.count_nonzero(wrong):
            self._refuse(blobs[int(np.argmax(wrong))])
        return records

    def _refuse(self, blob: bytes) -> None:
        """Say what is wrong with these bytes; return if nothing is."""
        size = self.dtype.itemsize
        if len(blob) < 16:
            raise StoreError(f"a device record has {len(blob)} bytes, wants {size}", remedy=_RESTORE)
        version, arms = (int(each) for each in np.frombuffer(blob, "<u2", 2))
        bundle_id = int(np.frombuffer(blob, "<u8", 1, 8)[0])
        if version != RECORD_VERSION:
            raise StoreError(
                f"a device record has version {version}, this worker reads {RECORD_VERSION}",
                remedy="run the version of Driftline that wrote it, or start with an empty state",
            )
        if bundle_id != self.bundle_id:
            raise BundleError(
                f"a device record belongs to bundle {bundle_id:016x}, this worker runs {self.bundle_name}",
                remedy="run the bundle that wrote it, or start with an empty state and replay",
            )
        if arms != self.n_arms:
            raise StoreError(
                f"a device record has {arms} arms, this experiment has {self.n_arms}",
                remedy="give another experiment its own topic prefix and state directory",
            )
        if len(blob) != size:
            raise StoreError(f"a device record has {len(blob)} bytes, wants {size}", remedy=_RESTORE)


_RESTORE: Final = "the file is damaged or the settings changed: remove it, and the changelog restores it"


def digest(records: Records) -> list[str]:
    """Hash, for each record, of what follows from its interactions alone.

    Two runs over the same interactions agree in it whatever crashed, however events were batched and whatever the
    cloud answered. Offsets are left out: they differ between topics.
    """
    parts = [np.ascontiguousarray(records[name]).view(np.uint8).reshape(len(records), -1) for name in FROM_INTERACTIONS]
    rows = np.concatenate(parts, axis=1)
    return [hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in rows]


def _offset(dtype: np.dtype[np.void], field: str) -> int:
    assert dtype.fields is not None
    return int(dtype.fields[field][1])


def _packed(*fields: Any) -> np.dtype[np.void]:
    """A dtype with these fields one after the other, filled up to a multiple of eight bytes by a named field."""
    size = np.dtype(list(fields)).itemsize
    return np.dtype([*fields, ("pad_tail", "u1", (-size % 8,))])
