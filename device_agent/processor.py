"""From records of the input topics to device steps and outputs, for one partition. No Kafka, no clock of its own.

What cannot be used (undecodable, unknown schema, a time in the future, a vector with NaN, another bundle's embedding…)
becomes a dead letter among the outputs, so that it travels in the same transaction as the position that passes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from device_agent.agent import FATES, DeviceCore, StepResult, Wave
from device_agent.cache import RecordCache
from device_agent.store import Position, Store
from device_agent.waves import cut_waves
from streams.bundle import Bundle
from streams.clock import Clock
from streams.dead_letters import dead_letter
from streams.errors import RecordError
from streams.events import (
    BACKFILL,
    SCHEMA_VERSION,
    Codec,
    Embedding,
    Headers,
    Interaction,
    Recommendation,
    RefreshRequest,
    device_key,
    event_hash,
    pack_items,
    pack_times,
    unpack_items,
    unpack_vector,
)
from streams.experiment.arms import Experiment
from streams.experiment.ranking_metrics import ndcg_at
from streams.metrics import DeviceMetrics
from streams.records import OutgoingRecord
from streams.topics import Topics

MAX_DEVICE_ID_BYTES: Final = 400
"""LMDB keys end at 511 bytes."""
LARGEST_NUMBER: Final = 1 << 53
"""Counts and times beyond it are no counts and times, and would not fit into a record."""
MAX_WAVE: Final = 512
"""Events stepped at once: bounds the memory of a step and the time for which the event loop waits."""


class InputRecord(Protocol):
    """What we need of a Kafka record, whichever client read it."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class Taken:
    """What one checkpoint makes durable."""

    outputs: list[OutgoingRecord]
    changed: list[tuple[bytes, bytes]]
    position: Position


@dataclass(frozen=True)
class ProcessorOptions:
    """Limits of a processor."""

    cache_devices: int = 20_000
    deadline_ms: int = 30_000
    future_tolerance_s: float = 86_400.0


@dataclass(frozen=True)
class _Accepted:
    """A decoded interaction with what the outputs need of its record."""

    offset: int
    key: bytes
    event: Interaction
    traceparent: bytes | None


class PartitionProcessor:
    """Applies a partition's records to its devices and collects what must leave with the next checkpoint."""

    def __init__(
        self,
        partition: int,
        *,
        core: DeviceCore,
        bundle: Bundle,
        experiment: Experiment,
        topics: Topics,
        store: Store,
        clock: Clock,
        metrics: DeviceMetrics,
        options: ProcessorOptions,
    ) -> None:
        self.partition = partition
        self.cache = RecordCache(core.layout, store, options.cache_devices)
        self.fingerprint = fingerprint(bundle, experiment, core.layout.candidates)
        self.requests_waiting = False
        """A refresh request is among the outputs: it becomes visible only with the next checkpoint."""
        self._core = core
        self._bundle = bundle
        self._experiment = experiment
        self._topics = topics
        self._clock = clock
        self._metrics = metrics
        self._options = options
        self._position = Position(fingerprint=self.fingerprint)
        self._outputs: list[OutgoingRecord] = []
        self._interactions = Codec(Interaction)
        self._embeddings = Codec(Embedding)
        self._recommendations = Codec(Recommendation)
        self._requests = Codec(RefreshRequest)
        self._item_index = {item: index for index, item in enumerate(bundle.items.ids)}
        self._item_ids = np.array([*bundle.items.ids, ""], dtype=object)  # -1 pads a list: it reads the empty id
        self._arm_names = [arm.name for arm in experiment.arms]
        self._arm_index = {arm: index for index, arm in enumerate(self._arm_names)}
        self._source = f"driftline/device/{partition}".encode()

    @property
    def position(self) -> Position:
        """Next offset of each input."""
        return self._position

    def start_at(self, position: Position) -> None:
        """Go on from a restored position."""
        self._advance(interactions=position.interactions, embeddings=position.embeddings)

    def take(self) -> Taken:
        """Hand over everything since the last call; the caller makes it durable."""
        taken = Taken(self._outputs, self.cache.take_dirty(), self._position)
        self._outputs, self.requests_waiting = [], False
        return taken

    # Interactions

    def interactions(self, records: Sequence[InputRecord]) -> None:
        """Apply records of interactions.v1, in offset order; those before the position are dropped."""
        records = [record for record in records if record.offset >= self._position.interactions]
        if not records:
            return
        now_ms = self._clock.now_ms()
        topic = self._topics.interactions
        latest_ms = now_ms + int(self._options.future_tolerance_s * 1000)
        accepted: list[_Accepted] = []
        for record in records:
            try:
                event = self._interactions.decode(record.value)
                key = _checked_key(event.device_id, record.key, device_key(event.device_id))
                _check_time(event.event_time_ms, latest_ms)
            except RecordError as error:
                self._reject(topic, record, error)
            else:
                accepted.append(_Accepted(record.offset, key, event, _traceparent(record.headers)))
                if event.item_id not in self._item_index:
                    self._reject(topic, record, _unknown_item(event.item_id, self._bundle.id))
        for wave in cut_waves([each.key for each in accepted], limit=MAX_WAVE):
            self._step([accepted[i] for i in wave], now_ms)
        self._advance(interactions=records[-1].offset + 1)

    def _step(self, events: list[_Accepted], now_ms: int) -> None:
        rows = self.cache.rows([each.key for each in events])
        wave = Wave(
            items=np.fromiter((self._item_index.get(e.event.item_id, -1) for e in events), np.int32, len(events)),
            times_ms=np.fromiter((e.event.event_time_ms for e in events), np.int64, len(events)),
            hashes=np.fromiter((event_hash(e.event.event_id) for e in events), np.uint64, len(events)),
            offsets=np.fromiter((e.offset for e in events), np.int64, len(events)),
            serve=np.fromiter((e.event.kind != BACKFILL for e in events), np.bool_, len(events)),
            arms_active=self._arms_active(events),
            now_ms=now_ms,
        )
        started = self._clock.monotonic()
        result = self._core.step(self.cache.get(rows), wave)
        step_s = (self._clock.monotonic() - started) / len(events)
        self.cache.put(rows, result.records)
        self._collect(events, wave, result, step_s)
        self._count(wave, result, step_s)

    def _arms_active(self, events: list[_Accepted]) -> npt.NDArray[np.bool_] | None:
        if self._experiment.design == "paired":
            return None
        active = np.zeros((len(events), len(self._arm_names)), np.bool_)
        for row, each in enumerate(events):
            arm = self._experiment.arm_of(each.event.device_id)
            active[row, slice(None) if arm is None else arm] = True
        return active

    def _collect(self, events: list[_Accepted], wave: Wave, result: StepResult, step_s: float) -> None:
        """Turn the wave's results into recommendations and refresh requests."""
        served = np.flatnonzero(result.served).tolist()
        if not served:
            return
        now_ms = wave.now_ms
        stamp = _stamp(now_ms)
        version, source, encode = SCHEMA_VERSION[Recommendation], self._source, self._recommendations.encode
        topic, partition = self._topics.recommendations, self.partition
        reasons = self._core.reasons
        for arm, spec in enumerate(self._experiment.arms):
            columns = zip(
                self._item_ids[result.top[:, arm]].tolist(),
                result.rank[:, arm].tolist(),
                result.ranked[:, arm].tolist(),
                result.staleness[:, arm].tolist(),
                result.reliability[:, arm].tolist(),
                result.gap[:, arm].tolist(),
                result.age_ms[:, arm].tolist(),
                result.as_of[:, arm].tolist(),
                result.freshness_ms[:, arm].tolist(),
                result.request[:, arm].tolist(),
                result.reason[:, arm].tolist(),
                result.trends_as_of_ms.tolist(),
                strict=True,
            )
            rows = list(columns)
            for row in served:
                if wave.arms_active is not None and not wave.arms_active[row, arm]:
                    continue
                each = events[row]
                items, rank, ranked, stale, reliable, gap, age, as_of, freshness, asked, reason, trends = rows[row]
                request_id = f"{partition}-{each.offset}-{spec.name}"
                value = encode(
                    Recommendation(
                        version,
                        request_id,
                        each.event.event_id,
                        each.event.device_id,
                        spec.name,
                        spec.policy,
                        items if items[-1] else [item for item in items if item],
                        rank,
                        ranked,
                        stale,
                        reliable,
                        gap,
                        age,
                        as_of,
                        freshness,
                        asked,
                        reasons[reason] if asked else "",
                        each.event.event_time_ms,
                        now_ms,
                        step_s,
                        trends,
                    )
                )
                headers = _headers(request_id, b"driftline.recommendation", source, stamp, each.traceparent)
                self._outputs.append(OutgoingRecord(topic, each.key, value, headers, partition))
                if asked:
                    self._request(each, row, arm, result, wave, headers, request_id)

    def _request(
        self, each: _Accepted, row: int, arm: int, result: StepResult, wave: Wave, headers: Headers, request_id: str
    ) -> None:
        record = result.records[row]
        items, times_ms = self._core.history(record)
        value = self._requests.encode(
            RefreshRequest(
                v=SCHEMA_VERSION[RefreshRequest],
                request_id=request_id,
                device_id=each.event.device_id,
                arm=self._arm_names[arm],
                bundle_id=self._bundle.id,
                as_of=int(record["count"]),
                items=pack_items(items),
                times_ms=pack_times(times_ms),
                reason=self._core.reasons[int(result.reason[row, arm])],
                urgency=float(result.urgency[row, arm]),
                event_time_ms=each.event.event_time_ms,
                requested_at_ms=wave.now_ms,
                deadline_ms=wave.now_ms + self._options.deadline_ms,
            )
        )
        headers = [(k, b"driftline.refresh-request" if k == "ce_type" else v) for k, v in headers]
        self._outputs.append(OutgoingRecord(self._topics.refresh_requests, each.key, value, headers, self.partition))
        self.requests_waiting = True

    def _count(self, wave: Wave, result: StepResult, step_s: float) -> None:
        metrics, partition = self._metrics, str(self.partition)
        served = result.served
        applied = int((~result.duplicate & ~result.already_applied).sum())
        metrics.interactions.labels(partition).inc(int(served.sum()))
        metrics.backfilled.labels(partition).inc(applied - int(served.sum()))
        metrics.duplicates.inc(int(result.duplicate.sum()))
        metrics.out_of_order.inc(int(result.out_of_order.sum()))
        metrics.step_seconds.observe(np.full(len(served), step_s))
        for arm, spec in enumerate(self._experiment.arms):
            rows = served if wave.arms_active is None else served & wave.arms_active[:, arm]
            if not rows.any():
                continue
            metrics.recommendations.labels(spec.name, spec.policy).inc(int(rows.sum()))
            metrics.ndcg.labels(spec.name).inc(float(ndcg_at(result.rank[rows, arm], 10).sum()))
            metrics.staleness.observe(result.staleness[rows, arm], spec.name)
            gaps = result.gap[rows, arm]
            metrics.gap.observe(gaps[gaps >= 0], spec.name)
            asked = result.reason[rows & result.request[:, arm], arm]
            for reason, count in zip(*np.unique(asked, return_counts=True), strict=True):
                metrics.refresh_requests.labels(spec.name, spec.policy, self._core.reasons[int(reason)]).inc(int(count))

    # Embeddings

    def embeddings(self, records: Sequence[InputRecord]) -> None:
        """Apply records of embeddings.v1, in offset order; those before the position are dropped."""
        records = [record for record in records if record.offset >= self._position.embeddings]
        if not records:
            return
        now_ms = self._clock.now_ms()
        accepted: list[tuple[bytes, Embedding, npt.NDArray[np.float32], npt.NDArray[np.int32]]] = []
        for record in records:
            try:
                embedding = self._embeddings.decode(record.value)
                key = _checked_key(embedding.device_id)
                vector, candidates = self._checked_embedding(embedding)
            except RecordError as error:
                self._reject(self._topics.embeddings, record, error)
            else:
                accepted.append((key, embedding, vector, candidates))
        for wave in cut_waves([each[0] for each in accepted]):
            self._take_embeddings([accepted[i] for i in wave], now_ms)
        self._advance(embeddings=records[-1].offset + 1)

    def _take_embeddings(
        self, wave: list[tuple[bytes, Embedding, npt.NDArray[np.float32], npt.NDArray[np.int32]]], now_ms: int
    ) -> None:
        rows = self.cache.rows([key for key, *_ in wave])
        embeddings = [embedding for _, embedding, _, _ in wave]
        arms = np.array([self._arm_index[each.arm] for each in embeddings], np.intp)
        requested_at_ms = np.array([each.requested_at_ms for each in embeddings], np.int64)
        records, fates = self._core.apply_embeddings(
            self.cache.get(rows),
            arms,
            np.stack([vector for _, _, vector, _ in wave]),
            np.array([each.as_of for each in embeddings], np.int64),
            np.array([each.event_time_ms for each in embeddings], np.int64),
            requested_at_ms,
            [candidates for *_, candidates in wave],
            now_ms,
        )
        self.cache.put(rows, records)
        for arm, name in enumerate(self._arm_names):
            for fate in np.unique(fates[arms == arm]).tolist():
                which = (arms == arm) & (fates == fate)
                reason = FATES[fate]
                if reason == "applied":
                    self._metrics.embeddings_applied.labels(name).inc(int(which.sum()))
                    self._metrics.freshness.observe(np.maximum(now_ms - requested_at_ms[which], 0) / 1000, name)
                else:
                    self._metrics.embeddings_ignored.labels(name, reason).inc(int(which.sum()))

    def _checked_embedding(self, embedding: Embedding) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        ours = self._bundle
        if embedding.bundle_id != ours.id:
            raise RecordError(
                f"embedding made with bundle {embedding.bundle_id}, this worker has {ours.id}",
                remedy="run cloud and device workers with the same bundle",
                reason="other-bundle",
            )
        if embedding.arm not in self._arm_index:
            raise RecordError(
                f"embedding for arm {embedding.arm!r}, which this worker does not run", reason="unknown-arm"
            )
        numbers = (embedding.as_of, embedding.event_time_ms, embedding.requested_at_ms)
        if not all(0 <= number < LARGEST_NUMBER for number in numbers):
            raise RecordError(f"embedding with an as_of or a time out of range: {numbers}", reason="bad-number")
        try:
            vector, candidates = unpack_vector(embedding.vector), unpack_items(embedding.candidates)
        except ValueError as exc:
            raise RecordError(f"embedding with a torn vector: {exc}", reason="bad-vector") from exc
        if vector.shape != (ours.manifest.d,) or not np.isfinite(vector).all():
            raise RecordError(
                f"embedding vector of shape {vector.shape} with NaN or infinity, or not of d = {ours.manifest.d}",
                reason="bad-vector",
            )
        if candidates.size and (candidates.min() < 0 or candidates.max() >= ours.manifest.n_items):
            raise RecordError("embedding with a candidate that is not in the bundle", reason="bad-candidates")
        return vector, candidates

    # Both

    def _advance(self, *, interactions: int | None = None, embeddings: int | None = None) -> None:
        at = self._position
        self._position = Position(
            interactions=at.interactions if interactions is None else interactions,
            embeddings=at.embeddings if embeddings is None else embeddings,
            fingerprint=self.fingerprint,
        )

    def _reject(self, topic: str, record: InputRecord, error: RecordError) -> None:
        self._metrics.dead_letters.labels(topic, error.reason).inc()
        self._outputs.append(
            dead_letter(topic, self.partition, record.offset, record.key, record.value, list(record.headers), error)
        )


def fingerprint(bundle: Bundle, experiment: Experiment, candidates: int) -> str:
    """What a device record depends on: with another bundle, other arms or another split it means something else."""
    design = f"split:{experiment.salt}" if experiment.design == "split" else experiment.design
    return " ".join([bundle.id, design, f"candidates={candidates}", *(arm.flag() for arm in experiment.arms)])


def _checked_key(device_id: str, found: bytes | None = None, wanted: bytes | None = None) -> bytes:
    key = device_id.encode()
    if not key or len(key) > MAX_DEVICE_ID_BYTES or b"\x00" in key:
        raise RecordError(
            f"device id {device_id[:40]!r} is empty, longer than {MAX_DEVICE_ID_BYTES} bytes or holds NUL",
            reason="bad-device-id",
        )
    if found != wanted:
        raise RecordError(
            f"the record's key is {found!r} and its device {device_id!r}: it may lie in a wrong partition",
            remedy="produce interactions with the device id as key",
            reason="wrong-key",
        )
    return key


def _check_time(event_time_ms: int, latest_ms: int) -> None:
    if not 0 <= event_time_ms <= latest_ms:
        raise RecordError(
            f"event time {event_time_ms} ms is {'negative' if event_time_ms < 0 else 'in the future'}",
            remedy="event times are milliseconds since 1970; check the producer's clock",
            reason="bad-time" if event_time_ms < 0 else "future-time",
        )


def _unknown_item(item_id: str, bundle_id: str) -> RecordError:
    """The event is applied and served all the same; the copy tells which items a new bundle should know."""
    return RecordError(f"item {item_id!r} is not in bundle {bundle_id}", reason="unknown-item")


def _traceparent(headers: Iterable[tuple[str, bytes]]) -> bytes | None:
    for name, value in headers:
        if name == "traceparent":
            return value
    return None


def _stamp(now_ms: int) -> bytes:
    return datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds").encode()


def _headers(identity: str, kind: bytes, source: bytes, stamp: bytes, traceparent: bytes | None) -> Headers:
    """CloudEvents attributes; the trace goes on where the interaction carried one."""
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", identity.encode()),
        ("ce_type", kind),
        ("ce_source", source),
        ("ce_time", stamp),
    ]
    if traceparent is not None:
        headers.append(("traceparent", traceparent))
    return headers
