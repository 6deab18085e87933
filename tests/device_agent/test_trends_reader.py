"""The reader of trends.v1 goes on whatever happens to it; tests/e2e has it on a real Kafka."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from kafka.errors import KafkaConnectionError
from prometheus_client import CollectorRegistry

from device_agent import trends_reader
from device_agent.trends import TrendsBoard
from device_agent.trends_reader import TrendsReader
from streams.clock import SystemClock
from streams.events import Codec, Trends
from streams.metrics import DeviceMetrics
from streams.neighbours import NeighbourTable
from streams.settings import KafkaSettings
from streams.topics import Topics
from streams.trends import records_of_table
from tests.device_agent.core_helpers import small_bundle
from tests.pipeline import wait_for

N = 40


class Consumer:
    """Has one record for each poll, or fails."""

    def __init__(self, *polls: bytes | Exception) -> None:
        self._polls = list(polls)

    def assign(self, _partitions: object) -> None:
        pass

    def seek_to_beginning(self, _partition: object) -> None:
        pass

    def poll(self, **_: object) -> dict[str, list[object]]:
        if not self._polls:
            return {}
        found = self._polls.pop(0)
        if isinstance(found, Exception):
            raise found
        return {"trends": [SimpleNamespace(value=found, offset=0)]}

    def close(self) -> None:
        pass


@pytest.mark.parametrize("failure", [KafkaConnectionError("gone"), MemoryError(), ValueError("a bug")])
def test_after_a_failure_it_reads_again_from_the_beginning(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, made: Callable[..., TrendsReader]
) -> None:
    bundle = small_bundle()
    (record,) = records_of_table(
        NeighbourTable(7, np.zeros((N, 2), np.int32), np.ones((N, 2), np.float16)), bundle.id, 1
    )
    consumers = [Consumer(failure), Consumer(Codec(Trends).encode(record))]

    def connect(*_: object, **__: object) -> Consumer:
        if consumers:
            return consumers.pop(0)
        raise KafkaConnectionError("gone")

    monkeypatch.setattr(trends_reader, "make_consumer", connect)
    board = TrendsBoard()
    reader = made(bundle, board)
    wait_for(lambda: board.shares(np.array([7]))[0].table is not None, 10)
    assert reader.ended() is None
    reader.stop()
    assert reader.ended() is None, "it was told to"


@pytest.fixture
def made():
    started = []

    def make(bundle, board):
        metrics = DeviceMetrics(CollectorRegistry())
        reader = TrendsReader(
            KafkaSettings(), Topics("t."), bundle, board, metrics, SystemClock(), future_tolerance_s=60.0
        )
        started.append(reader)
        reader.start()
        return reader

    yield make
    for reader in started:
        reader.stop()
