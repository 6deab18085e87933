"""The device worker: one process of the consumer group that stands for many devices."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import CollectorRegistry

from device_agent._faust_host import make_app
from device_agent.agent import DeviceCore
from device_agent.checkpoint import CheckpointedPartition
from device_agent.host import DeviceHost
from device_agent.kafka_log import KafkaLog
from device_agent.lmdb_store import LmdbStore
from device_agent.processor import PartitionProcessor, ProcessorOptions
from device_agent.serving import make_serving
from device_agent.trends import TrendsBoard
from device_agent.trends_reader import TrendsReader
from streams.boot import boot_id
from streams.bundle import load_bundle
from streams.clock import SystemClock
from streams.errors import EXIT_RESTART, EXIT_USAGE, CheckpointFailed, SettingsError
from streams.experiment.arms import Experiment
from streams.health import HealthServer, write_status
from streams.kafka_admin import ensure_topics
from streams.kafka_clients import aiokafka_config, wait_for_broker
from streams.metrics import DeviceMetrics
from streams.settings import Settings
from streams.topics import Topics

BROKER_WAIT_S: Final = 120.0
"""A worker cannot start while the broker is down; after a crash the broker takes tens of seconds."""
STOP_S: Final = 2.0
"""The supervisor kills a worker 3.5 s after it was asked to leave; the last checkpoint takes some of them."""
GC_THRESHOLD: Final = 100_000
"""Objects made and not freed until Python looks for cycles."""
LOOP_SILENCE_S: Final = 30.0
"""An event loop that did not turn for so long is stuck: /livez says so."""


@dataclass(frozen=True)
class WorkerOptions:
    """What differs between the workers of one installation."""

    bundle: Path
    experiment: Experiment
    state_dir: Path
    status_file: Path | None = None


def run_device_worker(
    settings: Settings, options: WorkerOptions, *, on_step: Callable[[str], None] | None = None
) -> None:
    """Run until SIGTERM or SIGINT. Ends the process with `EXIT_RESTART` when a checkpoint's outcome is unknown.

    Parameters
    ----------
    on_step
        Called at each step of each checkpoint (`device_agent.checkpoint.STEPS`).

    Raises
    ------
    BundleError
        The bundle cannot be used.
    SettingsError
        The state was written with another bundle or other arms.
    BrokerError
        The cluster cannot be reached or its topics differ.
    """
    asyncio.run(_run(settings, options, on_step))


async def _run(settings: Settings, options: WorkerOptions, on_step: Callable[[str], None] | None) -> None:
    log = structlog.get_logger("device-worker")
    clock, registry = SystemClock(), CollectorRegistry()
    metrics = DeviceMetrics(registry)
    topics = Topics(settings.kafka.topic_prefix, settings.kafka.partitions)
    bundle = load_bundle(options.bundle, part="device")
    serving = make_serving(
        bundle,
        settings.device.runtime,
        ranking=settings.device.ranking,
        list_length=settings.device.list_length,
        candidates=settings.cloud.candidates,
        item_vectors=settings.device.item_vectors,
        trends=settings.device.trends,
    )
    board = TrendsBoard() if settings.device.trends else None
    core = DeviceCore(
        bundle,
        options.experiment.arms,
        serving=serving,
        deadline_ms=settings.cloud.deadline_ms,
        candidates=settings.cloud.candidates,
        trends=board,
    )
    wait_for_broker(settings.kafka, BROKER_WAIT_S)
    ensure_topics(settings.kafka, topics.specs())
    client = aiokafka_config(settings.kafka)
    state = options.state_dir / (topics.prefix.strip(".") or "default")

    def make(number: int) -> CheckpointedPartition:
        store = LmdbStore(state / str(number), map_size=int(settings.device.map_size_gb * 2**30), boot=boot_id())
        processor = PartitionProcessor(
            number,
            core=core,
            bundle=bundle,
            experiment=options.experiment,
            topics=topics,
            store=store,
            clock=clock,
            metrics=metrics,
            options=ProcessorOptions(
                cache_devices=settings.device.cache_devices,
                deadline_ms=settings.cloud.deadline_ms,
                future_tolerance_s=settings.device.future_tolerance_s,
            ),
        )
        kafka_log = KafkaLog(number, topics, client, settings.device.group)
        return CheckpointedPartition(processor, kafka_log, store, clock=clock, metrics=metrics, on_step=on_step)

    def leave(exc: CheckpointFailed) -> None:
        log.error("leaving: the changelog has the truth", error=str(exc))
        os._exit(EXIT_RESTART)  # nothing here may write another byte

    host = DeviceHost(
        make,
        topics=topics,
        checkpoint_events=settings.device.checkpoint_events,
        interval_s=settings.device.checkpoint_interval_ms / 1000,
        request_linger_s=settings.device.request_linger_ms / 1000,
        metrics=metrics,
        on_failure=leave,
    )
    (state / "faust").mkdir(parents=True, exist_ok=True)
    app = make_app(
        host,
        kafka=settings.kafka,
        group=topics.group(settings.device.group),
        session_timeout_s=settings.device.session_timeout_ms / 1000,
        data_dir=state / "faust",
    )
    turned = clock.monotonic()
    trends = None
    if board is not None:
        tolerance_s = settings.device.future_tolerance_s
        trends = TrendsReader(settings.kafka, topics, bundle, board, metrics, clock, future_tolerance_s=tolerance_s)

    def live() -> str | None:
        silence = clock.monotonic() - turned
        if silence >= LOOP_SILENCE_S:
            return f"the event loop has not turned for {silence:.0f} s"
        return None if trends is None else trends.ended()

    health = HealthServer(
        settings.http, registry, live=live, ready=lambda: None if host.ready else "no partitions are open yet"
    )
    url = health.start()
    if options.status_file:
        write_status(options.status_file, {"url": url, "role": "device", "runtime": serving.runtime})
    log.info(
        "started",
        url=url,
        bundle=bundle.id,
        runtime=serving.runtime,
        arms=[arm.flag() for arm in options.experiment.arms],
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    app.finalize()
    # Millions of short-lived records and no cycles among them: collecting as often as Python does by default costs a
    # quarter of the step.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    if trends is not None:
        trends.start()
    try:
        await app.start()
        while not stop.is_set() and app.crash_reason is None:
            turned = clock.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.5)
        if app.crash_reason is not None:
            log.error("crashed", error=str(app.crash_reason))
            raise app.crash_reason
        await host.close_all(checkpoint=True)
    finally:
        # Faust's consumer has a thread of its own: without this a failed worker would never end
        stopped = False
        with contextlib.suppress(Exception):
            await asyncio.wait_for(app.stop(), STOP_S)
            stopped = True
        health.stop()
        if trends is not None:
            trends.stop()
        if not stopped:
            log.warning("Faust did not stop in time: leaving without it", after_s=STOP_S)
            problem = sys.exception()
            os._exit(0 if problem is None else EXIT_USAGE if isinstance(problem, SettingsError) else EXIT_RESTART)
    log.info("stopped")
