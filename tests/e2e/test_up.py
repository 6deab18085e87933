"""`driftline up` as a user runs it: Kafka and workers stay, a replay feeds them, a second run goes on."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from kafka import KafkaConsumer, TopicPartition

from streams.events import Codec, Embedding, Recommendation
from streams.settings import Settings
from streams.topics import Topics
from tests.command import TINY, Command
from tests.e2e.conftest import FirstDemo
from tests.pipeline import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(1200)]  # the first of them waits for a training

STOP_S = 8.0
"""The promise is 5 s; the rest is for a machine that does other things besides."""
PARTITIONS = Settings.model_construct().kafka.partitions
TOPICS = Topics("", PARTITIONS)


@dataclass
class Up:
    """A running `driftline up`."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    def tell(self) -> str:
        return self.out.read_text() + self.err.read_text()

    @property
    def bootstrap(self) -> str:
        found = re.search(r"at (127\.0\.0\.1:\d+); feed it with", self.out.read_text())
        assert found, self.tell()
        return found[1]

    @property
    def urls(self) -> dict[str, str]:
        """Worker to URL, as shown."""
        return dict(re.findall(r"^ +(\S+): (http\S+)/metrics, log ", self.out.read_text(), re.MULTILINE))

    def read(self, topic: str) -> list[bytes]:
        """Values of all committed records."""
        consumer = KafkaConsumer(bootstrap_servers=self.bootstrap, isolation_level="read_committed")
        try:
            parts = [TopicPartition(topic, number) for number in range(PARTITIONS)]
            consumer.assign(parts)
            ends = consumer.end_offsets(parts)
            consumer.seek_to_beginning(*parts)
            found: list[bytes] = []
            deadline = time.monotonic() + 60
            while any(consumer.position(part) < ends[part] for part in parts):
                assert time.monotonic() < deadline, f"{topic} could not be read"
                found += [each.value for batch in consumer.poll(timeout_ms=200).values() for each in batch]
            return found
        finally:
            consumer.close()

    def served(self) -> Counter[str]:
        """How often each event was served."""
        return Counter(Codec(Recommendation).decode(value).event_id for value in self.read(TOPICS.recommendations))


@pytest.fixture(scope="module")
def command(first_demo: FirstDemo, encoder_exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A home of its own with a bundle, where Kafka has never run."""
    assert first_demo.done.returncode == 0, first_demo.done.stderr
    return first_demo.copy(tmp_path_factory.mktemp("up") / "home", encoder_exports)


@contextmanager
def up(command: Command, name: str) -> Iterator[Up]:
    """Start it and wait until it says that it is ready."""
    out, err = command.home / f"{name}.out", command.home / f"{name}.err"
    made = Up(command.start("up", "--arm", "every-n:n=5", out=out, err=err, DRIFTLINE_DATASET=TINY), out, err)
    try:
        wait_for(lambda: len(made.urls) == 3 or made.process.poll() is not None, 150, made.tell)
        assert made.process.poll() is None, made.tell()
        yield made
    finally:
        if made.process.poll() is None:
            made.process.terminate()
        made.process.wait(30)


def replay(command: Command, made: Up, limit: int) -> dict[str, object]:
    """Replay the first `limit` events of the test period under one name: what was sent is not sent again."""
    arguments = ["--from", "test", "--limit", str(limit), "--replay-id", "one", "--json"]
    done = command.run("replay", TINY, "--bootstrap", made.bootstrap, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["rows"][0]


def stop(command: Command, made: Up) -> None:
    """SIGTERM ends it and all that it started within seconds."""
    made.process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    assert made.process.wait(60) == 130, made.tell()
    assert time.monotonic() - asked < STOP_S
    assert command.left_running() == []
    assert "Traceback" not in made.tell()


def test_up_serves_a_replay_stops_in_seconds_and_goes_on_where_it_was(command: Command) -> None:
    with up(command, "first") as first:
        assert set(first.urls) == {"cloud-1", "device-1", "device-2"}
        for name, url in first.urls.items():
            for path in ("livez", "readyz"):
                answer = httpx.get(f"{url}/{path}", trust_env=False)
                assert answer.status_code == 200, f"{name} {path}: {answer.text}"
            metrics = httpx.get(f"{url}/metrics", trust_env=False).text
            wanted = "driftline_cloud_requests_total" if name == "cloud-1" else "driftline_partitions_owned"
            assert wanted in metrics, name
        feed = f"driftline --home {command.home} replay {TINY} --bootstrap {first.bootstrap}"
        assert feed in first.out.read_text()
        sent = replay(command, first, 100)
        assert (sent["events"], sent["resumed_from"], sent["complete"]) == (100, 0, True)
        wait_for(lambda: first.served().total() >= 100, 90, first.tell)
        before = first.served()
        assert set(before.values()) == {1}
        assert len(before) == 100
        wait_for(lambda: first.read(TOPICS.embeddings) != [], 60, first.tell)
        stop(command, first)

    with up(command, "second") as second:
        assert second.served() == before, "what was served is still there, and nothing was served anew"
        sent = replay(command, second, 250)
        assert (sent["events"], sent["complete"]) == (150, True)
        wait_for(lambda: second.served().total() >= 250, 90, second.tell)
        stopped_at = second.served()
        assert set(stopped_at.values()) == {1}
        assert len(stopped_at) == 250
        assert before.keys() <= stopped_at.keys()
        later = [Codec(Recommendation).decode(value) for value in second.read(TOPICS.recommendations)]
        assert any(r.as_of > 0 and r.event_id not in before for r in later), "the first run's embeddings are in use"
        answers = [Codec(Embedding).decode(value) for value in second.read(TOPICS.embeddings)]
        assert {answer.arm for answer in answers} == {"every-n-n5"}
        stop(command, second)
