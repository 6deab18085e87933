"""The cloud worker's process: refresh requests in from Kafka, embeddings out, offsets committed last.

One turn of the loop: take a batch; answer it (`CloudPipeline`); publish the answers and the dead letters; wait for all
acknowledgements; commit the batch's offsets. A crash between any two of these brings the batch again, here or to
another worker of the group, and its answers may be published twice: devices take only a newer `as_of`. A batch that
failed (encoder or broker away) is rewound and taken again after a wait, so the group membership stays alive however
long the trouble lasts; requests whose deadline passes meanwhile are dropped then.

Before it joins the group a worker reads what interactions.v1 held at its start into the live index, unless that takes
longer than `LIVE_WAIT_S`: then it answers with what the index knows so far.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
from prometheus_client import CollectorRegistry

from cloud_worker.cache import CachedEncoder, EmbeddingCache
from cloud_worker.encoder import make_encoder
from cloud_worker.live.broadcast import Broadcaster
from cloud_worker.live.reader import LiveReader
from cloud_worker.pipeline import CloudPipeline, Outcome
from cloud_worker.retrieval import EXACT_UP_TO, NearestItems, recall
from cloud_worker.user_model import BlendedUserModel
from streams.batch_consumer import BatchConsumer
from streams.bundle import Bundle, load_bundle
from streams.clock import Clock, SystemClock
from streams.durable_producer import DurableProducer
from streams.errors import BrokerError, EncoderError, StoreError
from streams.health import HealthServer, write_status
from streams.kafka_admin import ensure_topics
from streams.kafka_clients import wait_for_broker
from streams.log import get_logger
from streams.metrics import CloudMetrics
from streams.settings import Settings
from streams.topics import Topics

log = get_logger(__name__)

BROKER_WAIT_S: Final = 120.0
"""After a crash a broker takes tens of seconds to be back."""
POLL_S: Final = 0.25
"""How long a turn waits for a first request: bounds how late a stop is noticed."""
FIRST_WAIT_S: Final = 0.2
LONGEST_WAIT_S: Final = 5.0
"""Waits after failures double up to this."""
BROKER_FAILURES: Final = 5
"""So many in a row without a success in between (each flush waits two minutes by itself, so this is no mere outage):
the producer is beyond repair, and a new process gets a new one."""
STUCK_AFTER_S: Final = 240.0
"""A turn that takes longer is not alive; less than the interval after which the group would expel us."""
LIVE_WAIT_S: Final = 60.0
"""Reads some millions of interactions; requests of other users wait meanwhile, and theirs have deadlines."""
STOP_GRACE_S: Final = 3.0
"""A batch that a stop finds under way may take so long; then it is left to the next worker."""


class CloudWorker:
    """The loop. Everything it needs comes in as arguments; `run` returns once `stop` is set.

    Parameters
    ----------
    consumer
        Of the refresh requests.
    producer
        Of embeddings and dead letters.
    pipeline
        Answers a batch.
    live
        Keeps the live index fresh; started already.
    metrics
        Counted once a batch is published.
    stop
        Set to end.
    clock
        For the stuck detector.
    broadcaster
        Told after each poll whether this worker owns the first partition, which only one of the group does.
    """

    def __init__(
        self,
        consumer: BatchConsumer,
        producer: DurableProducer,
        pipeline: CloudPipeline,
        live: LiveReader,
        metrics: CloudMetrics,
        stop: threading.Event,
        *,
        max_batch: int,
        linger_ms: int,
        clock: Clock,
        broadcaster: Broadcaster | None = None,
    ) -> None:
        self._consumer = consumer
        self._producer = producer
        self._pipeline = pipeline
        self._live = live
        self._metrics = metrics
        self._stop = stop
        self._max_batch = max_batch
        self._linger_ms = linger_ms
        self._clock = clock
        self._broadcaster = broadcaster
        self._turned_at = clock.monotonic()
        self._polled = False
        self._trouble = ""

    def run(self) -> None:
        """Work until stopped.

        Raises
        ------
        BrokerError
            The broker refuses for good, or the producer is beyond repair.
        """
        self._wait_for_the_live_index()
        failures = refusals = 0
        while not self._stop.is_set():
            self._turned_at = self._clock.monotonic()
            batch = self._consumer.poll_batch(self._max_batch, POLL_S, self._linger_ms)
            self._polled = True
            if self._broadcaster is not None:
                self._broadcaster.lead(any(partition == 0 for _, partition in self._consumer.assignment))
            if not batch:
                continue
            try:
                outcome = self._pipeline.process(batch)
                self._producer.send_all(outcome.records)
                self._producer.flush_or_raise()
            except (EncoderError, BrokerError) as exc:
                failures += 1
                refusals = refusals + 1 if isinstance(exc, BrokerError) else 0
                self._trouble = str(exc)
                if refusals >= BROKER_FAILURES:
                    raise
                log.warning("a batch failed and is taken again", requests=len(batch), failures=failures, cause=str(exc))
                self._consumer.rewind(batch)
                self._stop.wait(min(FIRST_WAIT_S * 2.0 ** (failures - 1), LONGEST_WAIT_S))
                continue
            failures = refusals = 0
            self._trouble = ""
            self._consumer.commit(batch)
            count(self._metrics, outcome)

    def _wait_for_the_live_index(self) -> None:
        deadline = self._clock.monotonic() + LIVE_WAIT_S
        while not (self._stop.is_set() or self._live.wait_level(POLL_S)):
            if self._clock.monotonic() > deadline:
                log.warning("answering with an index that is behind", cause=self._live.behind())
                return

    def stuck(self) -> str | None:
        """Why this process should be started again; None while it works."""
        silent = self._clock.monotonic() - self._turned_at
        return f"no turn of the loop for {silent:.0f} s" if silent > STUCK_AFTER_S else self._live.ended()

    def not_ready(self) -> str | None:
        """Why it cannot answer now; None when it can."""
        if not self._polled:
            return self._live.behind() or "the consumer group was not joined yet"
        return self._trouble or None


def count(metrics: CloudMetrics, outcome: Outcome) -> None:
    """Add a batch to the metrics."""
    metrics.batch_requests.observe(outcome.requests)
    metrics.requests.inc(outcome.requests)
    metrics.expired.inc(outcome.expired)
    metrics.embeddings.inc(outcome.embeddings)
    metrics.texts_encoded.inc(outcome.encoded)
    metrics.tokens_encoded.inc(outcome.tokens)
    metrics.cache_hits.inc(outcome.cached)
    for reason, times in outcome.coalesced.items():
        metrics.coalesced.labels(reason).inc(times)
    for (topic, reason), times in outcome.dead_letters.items():
        metrics.dead_letters.labels(topic, reason).inc(times)
    for part, seconds in outcome.seconds.items():
        metrics.part_seconds.labels(part).observe(seconds)
    if (encode_s := outcome.seconds.get("encode")) is not None:
        metrics.encode_seconds.observe(encode_s)


def run_cloud_worker(settings: Settings, bundle_path: Path, *, status_file: Path | None = None) -> None:
    """Run a cloud worker until SIGTERM or SIGINT; call it from the main thread of a process of its own.

    Parameters
    ----------
    status_file
        Written once the worker serves: its pid, URL, bundle and encoder.

    Raises
    ------
    BundleError, EncoderError, BrokerError
        It cannot start, or cannot go on.
    """
    clock = SystemClock()
    stop = threading.Event()
    with _stopped_by_signals(stop):
        bundle = load_bundle(bundle_path)
        encoder = make_encoder(settings.cloud, settings.home, settings.cloud.encoder_threads or None)
        if settings.cloud.encoder_threads:
            torch.set_num_threads(settings.cloud.encoder_threads)
        registry = CollectorRegistry()
        metrics = CloudMetrics(registry)
        topics = Topics(settings.kafka.topic_prefix, settings.kafka.partitions)
        broadcaster = Broadcaster(
            bundle,
            topics,
            metrics,
            clock,
            lambda: DurableProducer(settings.kafka, linger_ms=0),
            hours=settings.cloud.trends_hours,
        )
        live = LiveReader(
            settings.kafka,
            topics,
            bundle,
            _live_checkpoint(settings, status_file),
            metrics,
            clock,
            checkpoint_s=settings.cloud.live_checkpoint_s,
            future_tolerance_s=settings.device.future_tolerance_s,  # what device workers refuse is not to count here
            broadcaster=broadcaster,
        )
        nearest = _nearest_items(bundle, settings)
        cache = _open_cache(settings)
        cached = encoder if cache is None else CachedEncoder(encoder, cache)
        model = BlendedUserModel(bundle, cached, live.index, clock, nearest)
        encoder.encode(["the first call is slow, so it is not a user's"])
        group = topics.group(settings.cloud.group)
        pipeline = CloudPipeline(bundle, model, topics, candidates=settings.cloud.candidates, clock=clock)
        wait_for_broker(settings.kafka, BROKER_WAIT_S)
        ensure_topics(settings.kafka, topics.specs())
        with (
            DurableProducer(settings.kafka, linger_ms=0) as producer,
            BatchConsumer(settings.kafka, group, topics.refresh_requests) as consumer,
        ):
            worker = CloudWorker(
                consumer,
                producer,
                pipeline,
                live,
                metrics,
                stop,
                max_batch=settings.cloud.max_batch,
                linger_ms=settings.cloud.linger_ms,
                clock=clock,
                broadcaster=broadcaster,
            )
            health = HealthServer(settings.http, registry, live=worker.stuck, ready=worker.not_ready)
            url = health.start()
            live.start()
            try:
                if status_file is not None:
                    status = {"url": url, "role": "cloud", "bundle": bundle.id, "encoder": encoder.model_id}
                    write_status(status_file, status)
                log.info("started", url=url, bundle=bundle.id, encoder=encoder.model_id, group=group)
                worker.run()
            finally:
                live.stop()
                broadcaster.close()
                health.stop()
                if cache is not None:
                    cache.close()
        log.info("stopped")


def _live_checkpoint(settings: Settings, status_file: Path | None) -> Path:
    """One for each worker and installation: a name is the same after a restart."""
    name = status_file.stem if status_file else "cloud"
    return settings.home / "live" / f"{settings.kafka.topic_prefix}{name}.safetensors"


def _nearest_items(bundle: Bundle, settings: Settings) -> NearestItems | None:
    """A graph for a catalogue that is too large to be scored whole; says how much it finds."""
    if bundle.manifest.n_items <= EXACT_UP_TO:
        return None
    vectors, bias = bundle.device["item_vectors"], bundle.device["item_bias"]
    path = settings.home / "retrieval" / f"{bundle.id}.usearch"
    nearest = NearestItems(vectors, bias, path=path, threads=settings.cloud.encoder_threads)
    some = vectors[:: max(1, len(vectors) // 64)]
    log.info("items are found by a graph", items=len(vectors), recall_at_100=recall(nearest, vectors, bias, some, 100))
    return nearest


def _open_cache(settings: Settings) -> EmbeddingCache | None:
    try:
        return EmbeddingCache(settings.home / "embedding-cache", int(settings.cloud.cache_gb * 2**30))
    except StoreError as exc:
        log.warning("no embedding cache; every text is encoded", cause=str(exc))
        return None


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `stop`; a process that has not ended some seconds later is ended.

    An encoder that is slow or a broker that is away can hold a turn for minutes. Nothing is lost by leaving in the
    midst of it: what was not committed is taken by the next worker.
    """
    timers: list[threading.Timer] = []

    def leave() -> None:
        log.warning("leaving a batch to the next worker", after_s=STOP_GRACE_S)
        os._exit(0)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        if not timers:
            timer = threading.Timer(STOP_GRACE_S, leave)
            timer.daemon = True
            timers.append(timer)
            timer.start()

    before: list[tuple[signal.Signals, Any]] = [
        (number, signal.signal(number, on_signal)) for number in (signal.SIGTERM, signal.SIGINT)
    ]
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before:
            signal.signal(number, handler)
