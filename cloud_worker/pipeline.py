"""What the cloud does with a batch of records: read, plan, embed, retrieve, answer. No Kafka in here.

A batch whose outcome was unknown is given again, and its answers may then be published twice: devices take only what is
newer than what they have. The two may differ in what the live index has learned in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from cloud_worker.coalesce import Plan, plan
from cloud_worker.history import History
from cloud_worker.user_model import UserModel
from streams.bundle import Bundle
from streams.clock import Clock
from streams.dead_letters import dead_letter
from streams.errors import RecordError, UndecodableRecord
from streams.events import (
    SCHEMA_VERSION,
    Codec,
    Embedding,
    Headers,
    RefreshRequest,
    cloudevent_headers,
    embedding_key,
    event_hash,
    pack_items,
    pack_vector,
    unpack_items,
    unpack_times,
)
from streams.records import OutgoingRecord
from streams.topics import Topics, partition_of

EVENT_TYPE: Final = "driftline.embedding.v1"
SOURCE: Final = "/driftline/cloud-worker"


class IncomingRecord(Protocol):
    """What a consumed record has, whatever client read it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass
class Outcome:
    """What a batch came to: the records to publish before it is committed, and the counts for the metrics."""

    records: list[OutgoingRecord] = field(default_factory=list)
    embeddings: int = 0
    dead_letters: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(topic, reason) to count."""
    requests: int = 0
    expired: int = 0
    coalesced: Counter[str] = field(default_factory=Counter)
    """``superseded``, ``shared-history`` (another arm of the device) or ``equal-text`` to count."""
    encoded: int = 0
    tokens: int = 0
    cached: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What each part of the user model took; one that was not asked is missing."""


@dataclass(frozen=True)
class _Answer:
    """What the requests of one unit share."""

    vector: bytes
    candidates: bytes
    tokens: int
    encode_s: float
    published_at_ms: int


class CloudPipeline:
    """Answers refresh requests with embeddings of one bundle.

    Parameters
    ----------
    bundle
        What requests are checked against.
    model
        Embeds the histories and names candidates.
    topics
        Where answers go.
    candidates
        Items sent with an embedding.
    clock
        For deadlines and stamps.
    """

    def __init__(self, bundle: Bundle, model: UserModel, topics: Topics, *, candidates: int, clock: Clock) -> None:
        self._bundle = bundle
        self._model = model
        self._topics = topics
        self._candidates = candidates
        self._clock = clock
        self._requests = Codec(RefreshRequest)
        self._embeddings = Codec(Embedding)

    def process(self, records: Sequence[IncomingRecord]) -> Outcome:
        """Answer a batch.

        Every record has one fate: its answer or its dead letter is among the outcome's records, or it is counted as
        expired or superseded.

        Raises
        ------
        EncoderError
            The encoder failed; nothing was done, and the batch can be given again.
        """
        outcome = Outcome(requests=len(records))
        requests: list[RefreshRequest] = []
        histories: list[History] = []
        sources: list[IncomingRecord] = []
        for record in records:
            try:
                request = self._requests.decode(record.value)
                history = self._history(request)
            except RecordError as exc:
                outcome.records.append(
                    dead_letter(
                        record.topic, record.partition, record.offset, record.key, record.value, record.headers, exc
                    )
                )
                outcome.dead_letters[record.topic, exc.reason] += 1
                continue
            requests.append(request)
            histories.append(history)
            sources.append(record)
        fates = plan(requests, self._clock.now_ms())
        outcome.expired = len(fates.expired)
        outcome.coalesced["superseded"] = len(fates.superseded)
        if fates.units:
            self._answer(fates, requests, histories, sources, outcome)
        return outcome

    def _history(self, request: RefreshRequest) -> History:
        """Read and check a request's window."""
        if request.bundle_id != self._bundle.id:
            raise RecordError(
                f"request {request.request_id} is about bundle {request.bundle_id}, "
                f"this worker serves {self._bundle.id}",
                remedy="give devices and cloud workers the same bundle; the device asks again after its deadline",
                reason="other-bundle",
            )
        try:
            history = History(
                unpack_items(request.items),
                unpack_times(request.times_ms),
                key=event_hash(request.device_id),
                at_ms=request.event_time_ms,
            )
        except ValueError as exc:
            raise UndecodableRecord(f"request {request.request_id}: its window is cut: {exc}") from exc
        if len(history.items) != len(history.times_ms):
            raise UndecodableRecord(
                f"request {request.request_id}: {len(history.items)} items with {len(history.times_ms)} times"
            )
        n_items = self._bundle.manifest.n_items
        if len(history.items) and not 0 <= history.items.min() <= history.items.max() < n_items:
            raise RecordError(
                f"request {request.request_id}: an item index outside the {n_items} of bundle {self._bundle.id}",
                reason="unknown-item",
            )
        return history

    def _answer(
        self,
        fates: Plan,
        requests: Sequence[RefreshRequest],
        histories: Sequence[History],
        sources: Sequence[IncomingRecord],
        outcome: Outcome,
    ) -> None:
        windows = [histories[unit.requests[0]] for unit in fates.units]
        users = self._model.embed(windows, self._candidates)
        outcome.encoded, outcome.cached, outcome.seconds = users.encoded, users.cached, users.seconds
        outcome.tokens = int(users.tokens.sum())
        outcome.coalesced["equal-text"] = users.shared
        now_ms = self._clock.now_ms()
        for row, unit in enumerate(fates.units):
            answer = _Answer(
                pack_vector(users.vectors[row]),
                pack_items(users.candidates[row]),
                int(users.tokens[row]),
                users.seconds.get("encode", 0.0),
                now_ms,
            )
            for index in unit.requests:
                outcome.records.append(self._record(requests[index], sources[index], answer))
                outcome.embeddings += 1
                answer = replace(answer, tokens=0)
            outcome.coalesced["shared-history"] += len(unit.requests) - 1

    def _record(self, request: RefreshRequest, source: IncomingRecord, answer: _Answer) -> OutgoingRecord:
        embedding = Embedding(
            v=SCHEMA_VERSION[Embedding],
            request_id=request.request_id,
            device_id=request.device_id,
            arm=request.arm,
            bundle_id=self._bundle.id,
            model_id=self._model.model_id,
            as_of=request.as_of,
            vector=answer.vector,
            candidates=answer.candidates,
            event_time_ms=request.event_time_ms,
            requested_at_ms=request.requested_at_ms,
            published_at_ms=answer.published_at_ms,
            encode_s=answer.encode_s,
            tokens=answer.tokens,
        )
        return OutgoingRecord(
            topic=self._topics.embeddings,
            key=embedding_key(request.device_id, request.arm),
            value=self._embeddings.encode(embedding),
            headers=_headers(request, source, answer.published_at_ms),
            partition=partition_of(request.device_id, self._topics.partitions),
        )


def _headers(request: RefreshRequest, source: IncomingRecord, now_ms: int) -> Headers:
    """The answer belongs to the trace of its request."""
    traceparent = next((value for name, value in source.headers or () if name == "traceparent"), None)
    return cloudevent_headers(
        event_id=f"{request.request_id}-embedding",
        event_type=EVENT_TYPE,
        source=SOURCE,
        time_ms=now_ms,
        traceparent=traceparent,
    )
