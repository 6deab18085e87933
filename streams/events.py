"""What travels in the topics: versioned msgspec structs, array-like MessagePack, vectors as raw bytes.

The first element of every record is its schema version. A reader accepts its own version and older ones (fields are
only ever added at the end, with a default); a newer one is `UnknownSchema`, and bytes that are no such record are
`UndecodableRecord`: both belong in the dead-letter topic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from streams.errors import UndecodableRecord, UnknownSchema

Headers = list[tuple[str, bytes]]

BACKFILL = "backfill"
"""`Interaction.kind` of history that a device learns from but does not serve: no ranking, no refresh decision."""


class Versioned(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What all records share: the schema version comes first."""

    v: int


class Interaction(Versioned, frozen=True, gc=False):
    """One event of one user; a user has one device. Topic interactions.v1, key device_id."""

    event_id: str
    """Unique in its stream; a device drops a second record with an id among the last 32 that it saw."""
    device_id: str
    item_id: str
    event_time_ms: int
    kind: str = "view"
    """What the user did, or `BACKFILL`."""
    session_id: str = ""


class Recommendation(Versioned, frozen=True, gc=False):
    """What one arm served just before an interaction. Topic recommendations.v1, key device_id."""

    request_id: str
    """`<partition>-<offset>-<arm>`: follows from the input, so a retry has the same id."""
    event_id: str
    device_id: str
    arm: str
    policy: str
    items: list[str]
    """The list shown, best first."""
    rank: int
    """1-based rank, among `ranked` items, of what the user then took; 0: that item could not be ranked."""
    ranked: int
    staleness: float
    """s in [0, 1] of the embedding served with; 1 where there is none."""
    reliability: float
    """1 - staleness."""
    gap: int
    """Interactions since the cached embedding's as_of; -1 where there is none."""
    age_ms: int
    """Event time since then; -1 where there is none."""
    as_of: int
    """The cached embedding's as_of; -1 where there is none."""
    freshness_ms: int
    """Wall time from the request to the use of the cached embedding (request -> usable); -1 where there is none."""
    refreshed: bool
    """Whether this interaction made the arm ask for a refresh."""
    reason: str
    """Why it asked; empty where it did not."""
    event_time_ms: int
    served_at_ms: int
    step_s: float
    """Compute time of the device step, its share of the wave."""
    trends_as_of_ms: int = -1
    """`Trends.as_of_ms` of the table that was added to the scores; -1 where there was none. Since version 2."""


class RefreshRequest(Versioned, frozen=True, gc=False):
    """A device's wish for a new embedding. Topic refresh-requests.v1, key device_id."""

    request_id: str
    device_id: str
    arm: str
    bundle_id: str
    as_of: int
    """Number of interactions the device had seen."""
    items: bytes
    """History window, oldest first: little-endian int32 item indexes of the bundle (see `pack_items`)."""
    times_ms: bytes
    """Their event times: little-endian int64."""
    reason: str
    urgency: float
    event_time_ms: int
    requested_at_ms: int
    deadline_ms: int
    """Wall time after which the answer is of no use."""


class Embedding(Versioned, frozen=True, gc=False):
    """A new cloud embedding. Topic embeddings.v1 (compacted), key `embedding_key`."""

    request_id: str
    device_id: str
    arm: str
    bundle_id: str
    model_id: str
    as_of: int
    vector: bytes
    """Shared space, little-endian float16 (see `pack_vector`)."""
    candidates: bytes
    """Top-N item indexes, best first: the position is the cloud's rank."""
    event_time_ms: int
    """Event time of the request: where the embedding's age starts."""
    requested_at_ms: int
    published_at_ms: int
    encode_s: float
    """Seconds the encoder took for the batch this one was in."""
    tokens: int
    """Cost: tokens encoded; 0 when the text came from the cache."""


class Trends(Versioned, frozen=True, gc=False):
    """A part of the table that all devices are sent (`streams.neighbours`). Topic trends.v1 (compacted).

    The key is `trends_key`. Parts of one table have the same as_of_ms; each holds the rows of some items, in order.
    """

    bundle_id: str
    as_of_ms: int
    """Event time: what happened then or later is not in it."""
    part: int
    parts: int
    """Of the whole table."""
    kept: int
    """K, neighbours of an item."""
    items: bytes
    """Row by row K item indexes (see `pack_items`); the number of items, where there are fewer neighbours."""
    weights: bytes
    """Row by row K weights (see `pack_vector`); 0, where there are fewer."""
    published_at_ms: int


Record = TypeVar("Record", bound=Versioned)

SCHEMA_VERSION: Final[Mapping[type[Versioned], int]] = {
    Interaction: 1,
    Recommendation: 2,
    RefreshRequest: 1,
    Embedding: 1,
    Trends: 1,
}
"""The newest version of each struct that this code reads, and the one it writes."""


class Codec(Generic[Record]):
    """Bytes to struct and back, for one struct. Keep one per hot loop; it reuses its buffers.

    Raises
    ------
    UndecodableRecord
        The bytes are not such a record.
    UnknownSchema
        The record's version is newer than this code.
    """

    def __init__(self, struct: type[Record]) -> None:
        self.struct = struct
        self.version = SCHEMA_VERSION[struct]
        self._decoder = msgspec.msgpack.Decoder(struct)
        self._encoder = msgspec.msgpack.Encoder()

    def encode(self, record: Record) -> bytes:
        """Array-like MessagePack."""
        return self._encoder.encode(record)

    def decode(self, raw: bytes | None) -> Record:
        """Read one record, or raise."""
        if raw is None:
            raise UndecodableRecord(f"expected a {self.struct.__name__}, found a record without a value")
        try:
            record = self._decoder.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:  # RecursionError: nested junk
            self._raise_unknown_schema(raw, exc)
            raise UndecodableRecord(f"not a {self.struct.__name__}: {exc}") from exc
        if not 1 <= record.v <= self.version:
            self._raise_unknown_schema(raw, None)
            raise UndecodableRecord(f"{self.struct.__name__} with schema version {record.v}")
        return record

    def _raise_unknown_schema(self, raw: bytes, cause: Exception | None) -> None:
        """A newer writer may have changed the rest of the record; its version tells."""
        try:
            fields = msgspec.msgpack.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if isinstance(fields, list) and fields and type(fields[0]) is int and fields[0] > self.version:
            raise UnknownSchema(
                f"{self.struct.__name__} has schema version {fields[0]}, this reader knows up to {self.version}",
                remedy="upgrade this worker, then replay the dead-letter topic",
            ) from cause


def pack_vector(vector: npt.NDArray[np.floating]) -> bytes:
    """(d,) floats as little-endian float16."""
    return np.ascontiguousarray(vector, dtype="<f2").tobytes()


def unpack_vector(raw: bytes) -> npt.NDArray[np.float32]:
    """Little-endian float16 bytes as (d,) float32."""
    return np.frombuffer(raw, dtype="<f2").astype(np.float32)


def pack_items(items: npt.NDArray[np.integer] | Sequence[int]) -> bytes:
    """(n,) item indexes as little-endian int32."""
    return np.ascontiguousarray(items, dtype="<i4").tobytes()


def unpack_items(raw: bytes) -> npt.NDArray[np.int32]:
    """Little-endian int32 bytes as (n,) item indexes."""
    return np.frombuffer(raw, dtype="<i4").astype(np.int32, copy=False)


def pack_times(times_ms: npt.NDArray[np.integer] | Sequence[int]) -> bytes:
    """(n,) event times as little-endian int64 milliseconds."""
    return np.ascontiguousarray(times_ms, dtype="<i8").tobytes()


def unpack_times(raw: bytes) -> npt.NDArray[np.int64]:
    """Little-endian int64 bytes as (n,) event times in milliseconds."""
    return np.frombuffer(raw, dtype="<i8").astype(np.int64, copy=False)


def device_key(device_id: str) -> bytes:
    """Kafka key of everything about one device."""
    return device_id.encode()


def embedding_key(device_id: str, arm: str) -> bytes:
    """Key of embeddings.v1: compaction must keep the newest of each arm, so the arm is part of it.

    The partition is still that of `device_key` (see `streams.topics.partition_of`).
    """
    return f"{device_id}\x00{arm}".encode()


def trends_key(part: int) -> bytes:
    """Key of trends.v1: compaction keeps the newest of each part."""
    return f"neighbours/{part}".encode()


def event_hash(event_id: str) -> int:
    """64-bit hash by which a device recognises a repeated event."""
    return int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=8).digest(), "little")


def cloudevent_headers(
    *, event_id: str, event_type: str, source: str, time_ms: int, traceparent: bytes | None = None
) -> Headers:
    """CloudEvents 1.0 binary-mode attributes (Kafka binding, section 3.2) plus W3C `traceparent`.

    Without a `traceparent` a new trace starts, its ids derived from `event_id`.
    """
    if traceparent is None:
        digest = hashlib.blake2b(event_id.encode(), digest_size=24).hexdigest()
        traceparent = f"00-{digest[:32]}-{digest[32:]}-01".encode()
    stamp = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_type", event_type.encode()),
        ("ce_source", source.encode()),
        ("ce_time", stamp.replace("+00:00", "Z").encode()),
        ("traceparent", traceparent),
    ]
