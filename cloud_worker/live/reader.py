"""Keeps the live index fresh from interactions.v1, on a thread of its own.

A thread and not a turn of the worker's loop, since a turn can last for minutes while the encoder or the broker is away,
and a long topic would hold up the answers; the two meet only at the index's lock, for milliseconds. Every cloud worker
needs all partitions, so its consumer belongs to no group: the partitions are assigned by hand, and the offsets stand in
the checkpoint beside what was counted up to them. So a restart neither loses nor repeats anything that is still in the
topic. Only committed records are read.

Where the positions mean nothing any more, because the topic was deleted and made anew, the index begins again from
the bundle and the topic's beginning. Where the topic merely forgot by its retention what was not read yet, the index
goes on with what is left.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from cloud_worker.live import checkpoint
from cloud_worker.live.broadcast import Broadcaster
from cloud_worker.live.index import LiveIndex, LiveOptions
from cloud_worker.live.intake import Intake, RawRecord
from cloud_worker.live.shared import SharedIndex
from streams.bundle import Bundle
from streams.clock import Clock
from streams.errors import BrokerError, BundleError, StoreError
from streams.kafka_admin import admin_client
from streams.kafka_clients import make_consumer
from streams.log import get_logger
from streams.metrics import CloudMetrics
from streams.settings import KafkaSettings
from streams.topics import Topics

log = get_logger(__name__)

POLL_MS: Final = 200
AT_ONCE: Final = 1_000
"""Records between two looks at the clock and at stop; the index is locked for some milliseconds."""
LOOK_S: Final = 1.0
"""How often the topic's end is asked for."""
NEWEST: Final = 0.9
"""Quantile of a batch's event times that says where the stream is; of ten events and fewer the newest does."""
LOOK_TIMEOUT_MS: Final = 5_000
FIRST_WAIT_S: Final = 0.2
LONGEST_WAIT_S: Final = 5.0
"""Waits after failures double up to this."""
STOP_S: Final = 2.0
"""How long a stop waits for the last checkpoint; less than the worker's own grace."""


class _TopicMadeAnew(Exception):
    """What was counted belongs to a topic that is gone."""


def live_options(bundle: Bundle) -> LiveOptions:
    """How the live index is asked, from the manifest.

    Raises
    ------
    BundleError
        It does not say so.
    """
    try:
        return msgspec.convert(bundle.manifest.live, LiveOptions, strict=False)  # JSON has one kind of number
    except msgspec.ValidationError as exc:
        raise BundleError(f"bundle {bundle.id}: its options of the live index are none: {exc}") from exc


class LiveReader:
    """Reads interactions.v1 into `index`, between `start` and `stop`.

    Parameters
    ----------
    bundle
        With its live part, which the index begins with.
    path
        The checkpoint. Two readers that share one do no harm: each writes it whole, and either's is consistent.
    checkpoint_s
        Seconds between checkpoints, if anything changed.
    future_tolerance_s
        See `Intake`.
    broadcaster
        Given a turn whenever there is nothing left to read of what the topic held at the start.

    Raises
    ------
    BundleError
        The bundle was loaded without its live part, or its options or arrays fit nothing.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        topics: Topics,
        bundle: Bundle,
        path: Path,
        metrics: CloudMetrics,
        clock: Clock,
        *,
        checkpoint_s: float,
        future_tolerance_s: float,
        broadcaster: Broadcaster | None = None,
    ) -> None:
        if not bundle.live:
            raise BundleError(f"bundle {bundle.path} was loaded without its live part")
        self._kafka = kafka
        self._topic = topics.interactions
        self._partitions = [TopicPartition(self._topic, number) for number in range(topics.partitions)]
        self._bundle = bundle
        self._options = live_options(bundle)
        self._path = path
        self._metrics = metrics
        self._clock = clock
        self._checkpoint_s = checkpoint_s
        self._broadcaster = broadcaster
        self._intake = Intake(bundle.items.ids, bundle.manifest.test.start_ms, future_tolerance_s)
        self.index = SharedIndex(self._seed())
        """What it keeps fresh; safe to ask from any thread."""
        self._positions: dict[int, int] = {}
        self._topic_id = ""
        """Empty until the first contact."""
        self._saved: dict[int, int] = {}
        self._saved_at = self._looked_at = self._level_at = clock.monotonic()
        self._first_ends: dict[int, int] | None = None
        self._asked: tuple[float, dict[int, int]] | None = None
        """When the topic's end was asked for, and what it was, until everything up to there is read."""
        self._complete_at = self._level_at
        """What the topic held then was read."""
        self._level = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-reader", daemon=True)
        metrics.live_users.set_function(lambda: self.index.users)
        metrics.live_items.set_function(lambda: self.index.items)
        metrics.live_lag_seconds.set_function(lambda: self._clock.monotonic() - self._level_at)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Write a last checkpoint and end; returns after `STOP_S` even if the broker or the disk holds it up."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def wait_level(self, timeout_s: float) -> bool:
        """Wait until everything that was in the topic at the start was read; False if it was not in time."""
        return self._level.wait(timeout_s)

    def ended(self) -> str | None:
        """Why this process should be started again: the thread ended by itself. None while it lives."""
        lost = self._thread.ident is not None and not self._thread.is_alive() and not self._stop.is_set()
        return "the live index's reader ended" if lost else None

    def behind(self) -> str | None:
        """What is still to be read of what was there at the start; None once that was done."""
        if self._level.is_set():
            return None
        if self._first_ends is None:
            return f"the live index waits for {self._topic}"
        left = sum(max(0, end - self._positions.get(number, 0)) for number, end in self._first_ends.items())
        return f"the live index has {left} interactions to read"

    def _seed(self) -> LiveIndex:
        try:
            return LiveIndex.from_state(self._bundle.manifest.n_items, self._options, self._bundle.live)
        except (ValueError, KeyError) as exc:
            raise BundleError(f"bundle {self._bundle.id}: its live index cannot be used: {exc}") from exc

    def _run(self) -> None:
        failures = 0
        self._remove_scratch_files()
        while not self._stop.is_set():
            started = self._clock.monotonic()
            try:
                self._follow()
            except _TopicMadeAnew:
                continue
            except (KafkaError, BrokerError, OSError) as exc:
                failures = failures + 1 if self._clock.monotonic() - started < LONGEST_WAIT_S else 1
                log.warning("interactions cannot be read; the live index grows old", topic=self._topic, cause=str(exc))
                self._save()
                self._stop.wait(min(FIRST_WAIT_S * 2.0 ** (failures - 1), LONGEST_WAIT_S))
        self._save()

    def _follow(self) -> None:
        """Read until stopped, or until something fails: then the next call goes on where this one was."""
        consumer = make_consumer(self._kafka, None, read_committed=True, auto_offset_reset="none")
        with contextlib.closing(consumer), admin_client(self._kafka) as admin:
            self._begin(consumer, self._id_of_topic(admin))
            while not self._stop.is_set():
                fetched = consumer.poll(timeout_ms=POLL_MS, max_records=AT_ONCE)
                if fetched:
                    self._take([record for records in fetched.values() for record in records])
                self._positions = {each.partition: consumer.position(each) for each in self._partitions}
                now = self._clock.monotonic()
                if now - self._looked_at >= LOOK_S or not self._level.is_set():
                    self._look(consumer)
                if self._asked is not None and _reached(self._positions, self._asked[1]):
                    self._complete_at, self._asked = self._asked[0], None
                if self._broadcaster is not None and self._caught_up():
                    self._broadcaster.turn(self.index.index, self._complete_at)
                if now - self._saved_at >= self._checkpoint_s:
                    if self._id_of_topic(admin) != self._topic_id:
                        raise _TopicMadeAnew
                    self._save()

    def _take(self, records: Sequence[RawRecord]) -> None:
        taken = self._intake.take(records, self._clock.now_ms())
        self.index.observe(taken.keys, taken.items, taken.times_ms)
        self._metrics.live_events.inc(len(taken.keys))
        if self._broadcaster is not None and len(taken.times_ms):
            self._broadcaster.reached(int(np.quantile(taken.times_ms, NEWEST, method="higher")))
        for reason, times in taken.skipped.items():
            self._metrics.live_skipped.labels(reason).inc(times)

    def _begin(self, consumer: KafkaConsumer, topic_id: str) -> None:
        """Find out where to go on, and go there."""
        if not self._topic_id:
            self._restore(topic_id)
        elif topic_id != self._topic_id:
            self._begin_again("the topic was made anew")
        self._topic_id = topic_id
        consumer.assign(self._partitions)
        oldest = consumer.beginning_offsets(self._partitions, timeout_ms=LOOK_TIMEOUT_MS)
        ends = consumer.end_offsets(self._partitions, timeout_ms=LOOK_TIMEOUT_MS)
        if any(self._positions.get(each.partition, 0) > end for each, end in ends.items()):
            self._begin_again("the topic has lost what was read")
        for each, first in oldest.items():
            position = self._positions.get(each.partition, first)
            if position < first:
                log.warning(
                    "interactions were deleted before the live index read them",
                    topic=self._topic,
                    partition=each.partition,
                    lost=first - position,
                )
            self._positions[each.partition] = max(position, first)
            consumer.seek(each, self._positions[each.partition])
        if self._first_ends is None:
            self._first_ends = {each.partition: end for each, end in ends.items()}
        log.info(
            "reading interactions",
            topic=self._topic,
            users=self.index.users,
            unread=sum(end - self._positions[each.partition] for each, end in ends.items()),
        )

    def _begin_again(self, why: str) -> None:
        log.warning("the live index begins again from the bundle", topic=self._topic, cause=why)
        self.index.replace(self._seed())
        self._intake.forget()
        self._positions = {}
        self._asked = None
        self._saved = {}
        self._first_ends = None
        if self._broadcaster is not None:
            self._broadcaster.begin_again()

    def _look(self, consumer: KafkaConsumer) -> None:
        """Compare with the topic's end."""
        now = self._clock.monotonic()
        if self._caught_up():
            self._level.set()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        found = consumer.end_offsets(self._partitions, timeout_ms=LOOK_TIMEOUT_MS)
        ends = {each.partition: end for each, end in found.items()}
        if self._asked is None:
            self._asked = now, ends
        if _reached(self._positions, ends):
            self._level_at = now

    def _caught_up(self) -> bool:
        """Whether what the topic held at the start was read, or at the new start of one that was made anew."""
        return self._first_ends is not None and _reached(self._positions, self._first_ends)

    def _restore(self, topic_id: str) -> None:
        try:
            found = checkpoint.read(self._path, self._bundle.manifest.n_items, self._options, self._bundle.id, topic_id)
        except StoreError as exc:
            log.warning("the live index is built again", cause=str(exc))
            with contextlib.suppress(OSError):
                self._path.unlink()
            return
        if found is not None:
            index, self._positions = found
            self._saved = dict(self._positions)
            self.index.replace(index)

    def _save(self) -> None:
        self._saved_at = self._clock.monotonic()
        if not self._topic_id or self._positions == self._saved:
            return
        try:
            # Without the lock: this is the thread that writes the index, and asking does not change it.
            checkpoint.write(self._path, self.index.index, self._bundle.id, self._topic_id, self._positions)
        except StoreError as exc:
            self._metrics.live_checkpoint_failures.inc()
            log.warning("the live index goes on without a checkpoint", cause=str(exc))
        else:
            self._saved = dict(self._positions)

    def _remove_scratch_files(self) -> None:
        """A process that was killed while it wrote leaves one."""
        with contextlib.suppress(OSError):
            for scratch in self._path.parent.glob(f".{self._path.name}.*"):
                scratch.unlink()

    def _id_of_topic(self, admin: KafkaAdminClient) -> str:
        """An id that a topic of the same name does not have once this one was deleted."""
        try:
            return str(admin.describe_topics([self._topic])[0]["topic_id"])
        except (IndexError, KeyError) as exc:
            raise BrokerError(f"the cluster does not describe {self._topic}") from exc


def _reached(positions: Mapping[int, int], ends: Mapping[int, int]) -> bool:
    return all(positions.get(number, 0) >= end for number, end in ends.items())
