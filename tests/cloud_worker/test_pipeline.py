"""A batch of records becomes embeddings and dead letters: every record has one fate."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from cloud_worker.live.index import LiveIndex
from cloud_worker.live.reader import live_options
from cloud_worker.live.shared import SharedIndex
from cloud_worker.pipeline import CloudPipeline
from cloud_worker.user_model import BlendedUserModel
from cloud_worker.worker import count
from streams.clock import ManualClock
from streams.errors import EncoderError
from streams.events import (
    Codec,
    Embedding,
    RefreshRequest,
    device_key,
    pack_items,
    pack_times,
    unpack_items,
    unpack_vector,
)
from streams.metrics import CloudMetrics
from streams.topics import Topics, partition_of
from tests.bundles import make_bundle
from tests.encoders import HashEncoder

NOW = 1_700_000_000_000
TOPICS = Topics("t.", 4)


@dataclass
class Record:
    value: bytes | None
    key: bytes | None = b"k"
    topic: str = TOPICS.refresh_requests
    partition: int = 2
    offset: int = 7
    headers: list[tuple[str, bytes]] = field(default_factory=list)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", n_items=60)


@pytest.fixture
def encoder():
    return HashEncoder()


@pytest.fixture
def live(bundle):
    """Others took 1 and then 30, lately."""
    index = LiveIndex.from_state(60, live_options(bundle), bundle.live)
    index.observe(np.array([5, 5], np.uint64), np.array([1, 30]), np.array([100, 110]))
    return SharedIndex(index)


def pipeline_of(bundle, encoder, live, candidates=10):
    clock = ManualClock(NOW)
    model = BlendedUserModel(bundle, encoder, live, clock)
    return CloudPipeline(bundle, model, TOPICS, candidates=candidates, clock=clock)


@pytest.fixture
def pipeline(bundle, encoder, live):
    return pipeline_of(bundle, encoder, live)


@pytest.fixture
def request_of(bundle):
    def make(device="d", arm="a", as_of=3, items=(1, 2, 3), **changes):
        made = RefreshRequest(
            v=1,
            request_id=f"{device}-{arm}-{as_of}",
            device_id=device,
            arm=arm,
            bundle_id=bundle.id,
            as_of=as_of,
            items=pack_items(items),
            times_ms=pack_times(range(len(items))),
            reason="every-n",
            urgency=0.5,
            event_time_ms=123,
            requested_at_ms=NOW - 20,
            deadline_ms=NOW + 1000,
        )
        return msgspec.structs.replace(made, **changes)

    return make


def encoded(request) -> Record:
    return Record(Codec(RefreshRequest).encode(request), device_key(request.device_id))


def embeddings(outcome) -> list[Embedding]:
    return [Codec(Embedding).decode(r.value) for r in outcome.records if r.topic == TOPICS.embeddings]


def test_an_answer_says_whose_it_is_and_lies_with_its_device(pipeline, bundle, request_of):
    record = encoded(request_of("someone", "drift"))
    record.headers = [("traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")]
    outcome = pipeline.process([record])
    (sent,) = outcome.records
    (answer,) = embeddings(outcome)
    assert (answer.request_id, answer.device_id, answer.arm) == ("someone-drift-3", "someone", "drift")
    assert (answer.bundle_id, answer.model_id, answer.as_of) == (bundle.id, "test-encoder", 3)
    assert (answer.event_time_ms, answer.requested_at_ms, answer.published_at_ms) == (123, NOW - 20, NOW)
    assert answer.tokens > 0
    assert sent.key == b"someone\x00drift"
    assert sent.partition == partition_of("someone", 4)
    assert dict(sent.headers)["traceparent"] == record.headers[0][1], "one trace from request to answer"
    assert np.isfinite(unpack_vector(answer.vector)).all()
    candidates = unpack_items(answer.candidates).tolist()
    assert candidates[0] == 30, "what another took after the same item"
    assert len(set(candidates)) == 10
    assert not {1, 2, 3} & set(candidates)


def test_seen_items_return_where_the_data_repeats(tmp_path, request_of):
    bundle = make_bundle(tmp_path / "b", n_items=12, exclude_seen=False)
    live = SharedIndex(LiveIndex(12, live_options(bundle)))
    pipeline = pipeline_of(bundle, HashEncoder(), live, candidates=50)
    (answer,) = embeddings(pipeline.process([encoded(request_of(bundle_id=bundle.id))]))
    assert sorted(unpack_items(answer.candidates).tolist()) == list(range(12))


def test_arms_and_equal_texts_share_one_encoding(pipeline, encoder, request_of):
    batch = [request_of(arm="a"), request_of(arm="b"), request_of("other"), request_of(arm="a", as_of=2)]
    outcome = pipeline.process([encoded(each) for each in batch])
    answers = embeddings(outcome)
    assert sorted((a.device_id, a.arm, a.as_of) for a in answers) == [("d", "a", 3), ("d", "b", 3), ("other", "a", 3)]
    assert len({a.vector for a in answers}) == 1
    assert [len(texts) for texts in encoder.asked] == [1]
    assert sum(a.tokens for a in answers) == outcome.tokens == answers[0].tokens
    assert outcome.coalesced == {"superseded": 1, "shared-history": 1, "equal-text": 1}


def test_a_request_past_its_deadline_costs_nothing(pipeline, encoder, request_of):
    outcome = pipeline.process([encoded(request_of(deadline_ms=NOW - 1))])
    assert (outcome.records, outcome.expired, encoder.asked) == ([], 1, [])


def test_what_cannot_be_used_becomes_a_dead_letter_and_the_rest_is_answered(pipeline, request_of):
    bad = {
        "undecodable": b"\xff no record",
        "unknown-schema": msgspec.msgpack.encode([9, "x"]),
        "other-bundle": encoded(request_of(bundle_id="f" * 16)).value,
        "unknown-item": encoded(request_of(items=(1, 60))).value,
    }
    more = [
        None,
        encoded(request_of(items=(-1, 2))).value,
        encoded(request_of(items=(1,), times_ms=b"")).value,
        encoded(request_of(items=(1,), times_ms=b"123")).value,
    ]
    batch = [encoded(request_of("good"))] + [Record(raw) for raw in [*bad.values(), *more]]
    outcome = pipeline.process(batch)
    assert [a.device_id for a in embeddings(outcome)] == ["good"]
    letters = [r for r in outcome.records if r.topic == TOPICS.dead_letters(TOPICS.refresh_requests)]
    assert [letter.value for letter in letters[:4]] == list(bad.values())
    assert [dict(letter.headers)["dlq.reason"].decode() for letter in letters] == [
        *bad,
        "undecodable",
        "unknown-item",
        "undecodable",
        "undecodable",
    ]
    assert all(dict(letter.headers)["dlq.offset"] == b"7" and letter.partition == 2 for letter in letters)
    assert sum(outcome.dead_letters.values()) == 8


def test_an_encoder_that_fails_does_nothing_by_halves_and_can_be_asked_again(pipeline, encoder, request_of):
    batch = [encoded(request_of()), Record(b"bad")]
    encoder.failing = EncoderError("away")
    with pytest.raises(EncoderError):
        pipeline.process(batch)
    encoder.failing = None
    assert len(pipeline.process(batch).records) == 2


def test_the_metrics_account_for_every_request(pipeline, request_of):
    registry = CollectorRegistry()
    metrics = CloudMetrics(registry)
    batch = [encoded(request_of()), encoded(request_of(as_of=4)), encoded(request_of("e", deadline_ms=0)), Record(b"?")]
    count(metrics, pipeline.process(batch))

    def value(name, **labels):
        return registry.get_sample_value(f"driftline_{name}", labels)

    answered, expired = value("cloud_embeddings_total"), value("cloud_expired_requests_total")
    superseded = value("cloud_coalesced_requests_total", reason="superseded")
    dead = value("dead_letters_total", topic=TOPICS.refresh_requests, reason="undecodable")
    assert (answered, expired, superseded, dead) == (1, 1, 1, 1)
    assert value("cloud_requests_total") == 4
    assert value("cloud_encoded_tokens_total") > 0
    assert all(value("cloud_part_seconds_count", part=part) == 1 for part in ("encode", "sequence", "live", "fit"))
