"""Promises of a replay on a real Kafka: everything once, in order, whatever kills it; the consumers are not outrun."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from kafka import TopicPartition

from infra.broker import Broker
from streams.batch_consumer import BatchConsumer
from streams.datasets import Prepared, Sources, prepare
from streams.datasets.tabular import Tabular
from streams.errors import DatasetError, TopicMismatch
from streams.events import BACKFILL, Codec, Interaction
from streams.kafka_admin import end_offsets, ensure_topics
from streams.kafka_clients import make_consumer
from streams.replay import AtMostRate, GroupLag, KafkaSink, Replay, ReplayPlan, make_schedule, sent_rows
from streams.settings import KafkaSettings
from streams.topics import Topics, partition_of

ROOT = Path(__file__).parents[2]


@dataclass
class Stage:
    """Topics of one test, a home with a dataset, and the command."""

    kafka: KafkaSettings
    topics: Topics
    home: Path

    def dataset(self, events: int, name: str = "made", seed: int = 7) -> Prepared:
        rng = random.Random(seed)
        rows = [(f"u{rng.randrange(200)}", f"i{k}", 1_500_000_000 + k // 3) for k in range(events)]
        path = self.home / f"{name}.parquet"
        self.home.mkdir(exist_ok=True)
        pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(path)
        return prepare(Tabular(name, path), Sources(), self.home)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "infra", "--home", str(self.home), "replay", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        given = {
            "DRIFTLINE_KAFKA__BOOTSTRAP": self.kafka.bootstrap,
            "DRIFTLINE_KAFKA__TOPIC_PREFIX": self.kafka.topic_prefix,
            "DRIFTLINE_KAFKA__PARTITIONS": str(self.kafka.partitions),
            "DRIFTLINE_DEVICE__GROUP": f"{self.kafka.topic_prefix}devices",
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith("DRIFTLINE_")}
        return kept | given | {"PYTHONPATH": str(ROOT)}

    def run(self, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(  # noqa: PLW1510 - looked at below
            self.command(*arguments, "--json"), env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["rows"][0]

    def records(self) -> int:
        return sum(end_offsets(self.kafka, self.topics.interactions).values())

    def read(self) -> dict[int, list[Interaction]]:
        """Everything in the topic, by partition, in order."""
        consumer = make_consumer(self.kafka, None)
        codec, found = Codec(Interaction), defaultdict(list)
        try:
            ends = end_offsets(self.kafka, self.topics.interactions)
            partitions = [TopicPartition(self.topics.interactions, number) for number in ends]
            consumer.assign(partitions)
            consumer.seek_to_beginning(*partitions)
            while sum(map(len, found.values())) < sum(ends.values()):
                for tp, records in consumer.poll(1000).items():
                    found[tp.partition] += [codec.decode(record.value) for record in records]
        finally:
            consumer.close()
        return found


@pytest.fixture
def stage(kafka: Broker, topic_prefix: str, tmp_path: Path) -> Stage:
    settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix, partitions=3)
    topics = Topics(topic_prefix, 3)
    ensure_topics(settings, topics.specs())
    return Stage(settings, topics, tmp_path / "home")


def rows(events: list[Interaction], replay_id: str) -> list[int]:
    return [int(each.event_id.removeprefix(f"{replay_id}:")) for each in events]


def assert_each_once_in_order(stage: Stage, prepared: Prepared, replay_id: str) -> None:
    found = stage.read()
    counts = Counter(row for events in found.values() for row in rows(events, replay_id))
    assert set(counts) == set(range(len(prepared.events)))
    assert set(counts.values()) == {1}
    for partition, events in found.items():
        assert rows(events, replay_id) == sorted(rows(events, replay_id))
        assert {partition_of(each.device_id, 3) for each in events} == {partition}


@pytest.mark.chaos
def test_killed_again_and_again_it_loses_and_repeats_nothing(stage: Stage) -> None:
    prepared = stage.dataset(40_000)
    command = stage.command("made", "--replay-id", "night", "--max-lag", "0")
    killed_at: list[int] = []
    for wanted in (2_000, 9_000, 18_000):
        process = subprocess.Popen(command, env=stage.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            while stage.records() < wanted:
                assert process.poll() is None, (process.stderr and process.stderr.read().decode()) or "it ended"
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        killed_at.append(stage.records())
    assert 2_000 <= killed_at[0] < killed_at[-1] < 40_000  # it was in the middle, each time
    report = stage.run("made", "--replay-id", "night", "--max-lag", "0")
    assert report["complete"]
    assert report["resumed_from"] >= killed_at[-1]
    assert report["resumed_from"] + report["events"] == 40_000
    assert_each_once_in_order(stage, prepared, "night")
    again = stage.run("made", "--replay-id", "night", "--max-lag", "0")
    assert (again["events"], again["resumed_from"]) == (0, 40_000)
    assert stage.records() == 40_000


def test_interrupted_it_says_how_to_go_on_and_does(stage: Stage) -> None:
    prepared = stage.dataset(2_000)
    command = stage.command("made", "--replay-id", "day", "--rate", "500")
    process = subprocess.Popen(
        command, env=stage.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while stage.records() < 100 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "--replay-id day" in said
    assert 100 <= stage.records() < 2_000
    stage.run("made", "--replay-id", "day")
    assert_each_once_in_order(stage, prepared, "day")


def test_a_device_starts_with_its_history_on_the_same_path(stage: Stage) -> None:
    prepared = stage.dataset(3_000)
    report = stage.run("made", "--from", "test", "--limit", "300", "--rate", "3000", "--max-lag", "0")
    found = stage.read()
    live = [each for events in found.values() for each in events if each.kind != BACKFILL]
    history = [each for events in found.values() for each in events if each.kind == BACKFILL]
    assert (report["events"], report["backfilled"]) == (len(live), len(history)) == (300, report["backfilled"])
    first = min(each.event_time_ms for each in live)
    devices = {each.device_id for each in live}
    earlier = prepared.events.filter((pl.col("event_time_ms") < first) & pl.col("device_id").is_in(list(devices)))
    assert len(history) == len(earlier) > 1000
    for events in found.values():
        kinds = [each.kind == BACKFILL for each in events]
        assert kinds == sorted(kinds, reverse=True)


def test_a_batch_that_failed_between_others_is_found_missing(stage: Stage) -> None:
    prepared = stage.dataset(500)
    schedule = make_schedule(prepared, ReplayPlan("holes"), 3)
    lost = set(range(100, 160))
    with KafkaSink(stage.kafka, stage.topics, "holes") as sink:
        Replay(schedule, sink, sent=lost | set(range(400, 500))).run()
    assert sent_rows(stage.kafka, stage.topics, schedule, settle_s=0.1) == set(range(400)) - lost
    assert stage.run("made", "--replay-id", "holes", "--max-lag", "0")["resumed_from"] == 340
    counts = Counter(row for events in stage.read().values() for row in rows(events, "holes"))
    assert counts == Counter(range(500))


def test_records_of_others_are_not_taken_for_its_own(stage: Stage) -> None:
    prepared = stage.dataset(200)
    with KafkaSink(stage.kafka, stage.topics, "run-1") as sink:
        Replay(make_schedule(prepared, ReplayPlan("run-1"), 3), sink).run()
        sink._producer.send(stage.topics.interactions, b"no record", partition=0).get(timeout=10)
    assert sent_rows(stage.kafka, stage.topics, make_schedule(prepared, ReplayPlan("run"), 3)) == set()
    other = stage.dataset(200, name="other", seed=8)
    with pytest.raises(DatasetError, match=r"run-1 was made of .*made@.*other@"):
        sent_rows(stage.kafka, stage.topics, make_schedule(other, ReplayPlan("run-1"), 3))


def test_it_waits_for_consumers_that_are_behind(stage: Stage) -> None:
    schedule = make_schedule(stage.dataset(3_000), ReplayPlan("slow"), 3)
    group = f"{stage.topics.prefix}devices"
    paused = threading.Event()
    lag = GroupLag(stage.kafka, group, stage.topics.interactions)
    reports = []

    def run() -> None:
        with KafkaSink(stage.kafka, stage.topics, "slow") as sink:
            reports.append(
                Replay(
                    schedule,
                    sink,
                    pace=AtMostRate(2_000),
                    lag=lag,
                    max_lag=500,
                    on_progress=lambda now: paused.set() if now.paused else None,
                ).run()
            )

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert paused.wait(30)
        time.sleep(1.0)
        held = stage.records()
        assert 500 < held < 3_000  # it stopped soon after the limit, and nobody has read yet
        time.sleep(0.5)
        assert stage.records() == held
    finally:
        done = 0
        with BatchConsumer(stage.kafka, group, stage.topics.interactions) as consumer:
            deadline = time.monotonic() + 60
            while (thread.is_alive() or done < 3_000) and time.monotonic() < deadline:
                if batch := consumer.poll_batch(500, 0.2):
                    done += len(batch)
                    consumer.commit(batch)
        thread.join(30)
        lag.close()
    assert done == 3_000
    assert reports[0].complete
    assert reports[0].paused_s > 1.0


def test_letting_go_with_events_under_way_is_quiet_and_final(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    sink = KafkaSink(stage.kafka, stage.topics, "left")
    for row in range(5_000):
        sink.send(Interaction(1, f"left:{row}", f"u{row % 200}", "i1", 1_500_000_000_000), row % 3, [])
    caplog.clear()
    sink.close()  # some milliseconds after the first of them was sent
    assert not [each for each in caplog.records if each.name.startswith("kafka")]
    time.sleep(0.5)  # what was in the machine's buffers
    held = stage.records()
    time.sleep(1.0)
    assert stage.records() == held, "no thread goes on sending"


def test_a_topic_of_another_shape_is_refused(stage: Stage) -> None:
    with pytest.raises(TopicMismatch, match="has 3 partitions"):
        KafkaSink(stage.kafka, Topics(stage.topics.prefix, 4), "r")
    with pytest.raises(TopicMismatch, match="does not exist"):
        KafkaSink(stage.kafka, Topics(f"{stage.topics.prefix}none.", 3), "r")
