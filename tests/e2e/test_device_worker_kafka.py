"""The device worker on a real Kafka: what it serves, what it asks for, what it does with records it cannot use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from infra.broker import Broker
from streams.bundle import Bundle
from streams.errors import EXIT_USAGE
from streams.events import Codec, Interaction, device_key, pack_vector
from tests.bundles import make_bundle
from tests.pipeline import START_MS, Pipeline, answer, interactions, pipeline, wait_for

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", n_items=60)


@pytest.fixture
def made(kafka: Broker, topic_prefix: str, bundle: Bundle, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline(kafka.bootstrap, topic_prefix, bundle, tmp_path) as each:
        yield each


def test_each_event_is_served_once_by_each_arm_and_embeddings_come_into_use(made: Pipeline, bundle: Bundle) -> None:
    events = interactions(bundle, 400)
    made.start_worker()
    made.produce_interactions(events[:200])
    made.wait_served(200)
    requests = made.requests()
    every_n = Counter(r.device_id for r in requests if r.arm == "every-n-n5")
    devices = Counter(e.device_id for e in events[:200])
    assert set(every_n) == set(devices), "each device asks for its first embedding"
    assert not [r for r in requests if r.arm == "never"]
    made.produce_embeddings([answer(request, bundle) for request in requests])
    made.produce_interactions(events[200:])
    made.wait_served(400)
    assert made.served() == {(event.event_id, arm.name): 1 for event in events for arm in made.experiment.arms}
    later = [r for r in made.recommendations() if int(r.event_id[1:]) >= 300 and r.arm == "every-n-n5"]
    assert any(r.as_of > 0 and r.gap >= 0 and r.age_ms >= 0 and r.freshness_ms >= 0 for r in later)
    assert all(0 <= r.staleness <= 1 and len(r.items) == 10 == len(set(r.items)) for r in later)
    counts = {key: int(row["count"]) for key, row in _rows(made).items()}
    assert counts == {device_key(d): n for d, n in Counter(e.device_id for e in events).items()}


def test_a_second_worker_takes_a_share_and_a_stopped_one_gives_its_share_back(made: Pipeline, bundle: Bundle) -> None:
    events = interactions(bundle, 900)
    made.start_worker("one")
    made.produce_interactions(events[:300])
    made.wait_served(300)
    second = made.start_worker("two")
    wait_for(lambda: "partitions open" in made.log_file("two").read_text(), 60, lambda: made.tell(300))
    made.produce_interactions(events[300:600])
    made.wait_served(600)
    second.terminate()
    assert second.wait(20) == 0
    made.produce_interactions(events[600:])
    made.wait_served(900)
    assert made.served() == {(event.event_id, arm.name): 1 for event in events for arm in made.experiment.arms}


def test_records_that_cannot_be_used_become_dead_letters_and_the_stream_goes_on(made: Pipeline, bundle: Bundle) -> None:
    events = interactions(bundle, 60, devices=3)
    encode = Codec(Interaction).encode
    first = events[0]
    far = 10 * 365 * 86_400_000
    bad = {
        "undecodable": (first.device_id, device_key(first.device_id), b"\xff\x00 no such record"),
        "unknown-schema": (first.device_id, device_key(first.device_id), msgspec.msgpack.encode([99, "x"])),
        "unknown-item": _record(msgspec.structs.replace(first, event_id="u", item_id="no such item")),
        "wrong-key": (first.device_id, b"somebody else", encode(msgspec.structs.replace(first, event_id="w"))),
        "future-time": _record(msgspec.structs.replace(first, event_id="f", event_time_ms=START_MS + 2 * far)),
        "bad-time": _record(msgspec.structs.replace(first, event_id="n", event_time_ms=-5)),
        "bad-device-id": _record(msgspec.structs.replace(first, event_id="i", device_id="nul\x00")),
    }
    backwards = msgspec.structs.replace(first, event_id="back", event_time_ms=first.event_time_ms - 10**6)
    made.start_worker()
    made.produce_interactions(events[:30])
    made.produce(made.topics.interactions, list(bad.values()))
    made.produce_interactions([backwards, events[5]])  # time goes backwards; an event comes twice
    made.produce_interactions(events[30:])
    made.wait_served(62)
    expected = [event.event_id for event in events] + ["back", "u"]
    assert made.served() == {(event_id, arm.name): 1 for event_id in expected for arm in made.experiment.arms}
    letters = {
        dict(r.headers)["dlq.reason"].decode(): r for r in made.read(made.topics.dead_letters(made.topics.interactions))
    }
    assert set(letters) == set(bad)
    for reason, (_, key, value) in bad.items():
        letter, headers = letters[reason], dict(letters[reason].headers)
        assert (letter.key, letter.value) == (key, value)
        assert headers["dlq.topic"].decode() == made.topics.interactions
        assert int(headers["dlq.partition"]) in range(made.partitions)
        assert int(headers["dlq.offset"]) >= 0
        assert headers["dlq.error"]
    assert all(r.rank == 0 for r in made.recommendations() if r.event_id == "u")


def test_embeddings_that_cannot_be_used_are_refused_and_older_ones_ignored(made: Pipeline, bundle: Bundle) -> None:
    events = interactions(bundle, 80, devices=1)
    made.start_worker()
    made.produce_interactions(events[:20])
    made.wait_served(20)
    asked = next(r for r in made.requests() if r.arm == "every-n-n5")
    late = answer(msgspec.structs.replace(asked, as_of=15), bundle)
    older = answer(msgspec.structs.replace(asked, as_of=3), bundle)
    nan = np.full(bundle.manifest.d, np.nan, np.float32)
    refused = {
        "bad-vector": answer(asked, bundle, vector=pack_vector(nan)),
        "other-bundle": answer(asked, bundle, bundle_id="0" * 16),
        "unknown-arm": answer(asked, bundle, arm="nobody"),
        "bad-candidates": answer(asked, bundle, candidates=np.array([10**6], "<i4").tobytes()),
    }
    made.produce_embeddings([late, *refused.values(), answer(asked, bundle, vector=b"abc"), older])
    dead = made.topics.dead_letters(made.topics.embeddings)
    wait_for(lambda: len(made.read(dead)) >= 5, 30, lambda: made.tell(0))
    made.produce_interactions(events[20:])
    made.wait_served(80)
    reasons = Counter(dict(r.headers)["dlq.reason"].decode() for r in made.read(dead))
    assert reasons == {"bad-vector": 2, "other-bundle": 1, "unknown-arm": 1, "bad-candidates": 1}
    after = [r for r in made.recommendations() if r.arm == "every-n-n5" and int(r.event_id[1:]) >= 20]
    assert {r.as_of for r in after} == {15}


def test_state_of_another_bundle_or_of_other_arms_is_refused(made: Pipeline, bundle: Bundle) -> None:
    made.start_worker()
    made.produce_interactions(interactions(bundle, 20))
    made.wait_served(20)
    made.stop_workers()
    made.arms = ("never", "every-n:n=7")
    worker = made.start_worker("other")
    assert worker.wait(60) == EXIT_USAGE  # after which no supervisor tries again
    assert "SettingsError: the state of partition" in made.log_file("other").read_text()


def test_backfilled_history_is_learned_and_not_served(made: Pipeline, bundle: Bundle) -> None:
    events = interactions(bundle, 100, devices=5)
    history = [msgspec.structs.replace(e, kind="backfill") for e in events[:80]]
    made.start_worker()
    made.produce_interactions([*history, *events[80:]])
    made.wait_served(20)
    assert {event_id for event_id, _ in made.served()} == {e.event_id for e in events[80:]}
    rows = _rows(made)
    assert sum(int(row["count"]) for row in rows.values()) == 100
    assert all(r.as_of > 10 for r in made.requests()), "the first request knows the whole history"


def _record(event: Interaction) -> tuple[str, bytes, bytes]:
    return event.device_id, device_key(event.device_id), Codec(Interaction).encode(event)


def _rows(made: Pipeline) -> dict[bytes, np.void]:
    from device_agent.agent import DeviceCore

    latest = made.changelog()
    records = DeviceCore(made.bundle, made.experiment.arms).layout.unpack(list(latest.values()))
    return dict(zip(latest, records, strict=True))
