"""The course of a demo: broker, bundle, workers, replay, the books, the table."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console

from cloud_worker.training.bundles import driftline_version
from device_agent.state import StateLayout
from infra.broker import broker_for
from infra.demo.applied import applied_counts
from infra.demo.reader import RecommendationReader
from infra.demo.record import FORMAT, ServedLog, ServedManifest, embeddings_frame, write_served
from infra.demo.screen import DemoScreen
from infra.demo.training import BundleInTheMaking
from infra.demo.whole_topic import records_of
from infra.launch import Supervisor, SupervisorEvent
from infra.workers import worker_specs
from infra.workspace import Workspace, new_run_name
from streams.bundle import Bundle
from streams.datasets import Prepared, ensure_prepared
from streams.errors import BrokerError, DriftlineError
from streams.events import Codec, Embedding
from streams.experiment.accounting import Accounting, applied_exactly_once
from streams.experiment.arms import Experiment
from streams.experiment.outcomes import Outcomes
from streams.experiment.report import Report, build_report
from streams.kafka_admin import delete_topics, ensure_topics
from streams.replay import (
    AtMostRate,
    AtSpeed,
    Flat,
    GroupLag,
    KafkaSink,
    Pace,
    Replay,
    ReplayPlan,
    ReplayProgress,
    Schedule,
    make_schedule,
)
from streams.settings import Settings
from streams.topics import Topics

RATE: Final = 250.0
"""Events a second where no speed is given: slow enough for two cores to answer refresh requests while the session
they belong to is still going on."""
CLOUD_BEHIND: Final = 12
"""Refresh requests that may wait before the replay does: on a slow machine the demo takes longer, rather than show
embeddings that come when their session is over."""
SILENCE_S: Final = 120.0
"""A pipeline from which nothing comes for so long is not going on; restarts and broker pauses take less."""
STOP_BROKER_S: Final = 1.5
"""Workers have their 3.5 s; together the 5 s that Ctrl-C may take."""


Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoOptions:
    """What is shown."""

    dataset: str
    experiment: Experiment
    events: int | None = None
    """At most so many events of the test period."""
    speed: float | None = None
    """Event time passes so many times as fast as wall time; inf: as fast as it goes; None: `RATE` events a second."""
    devices: int = 2
    clouds: int = 1
    keep_topics: bool = False


@dataclass(frozen=True)
class DemoResult:
    """The table, and what a reader should know besides."""

    report: Report
    notes: list[str]
    run: str


def run_demo(settings: Settings, options: DemoOptions, console: Console) -> DemoResult:
    """Run the whole demo; progress goes to `console`.

    Raises
    ------
    DriftlineError
        Something needed is missing or a worker keeps failing; the message says which and where its log is.
    """
    name = new_run_name("demo")
    workspace = Workspace(settings.home)
    run = workspace.run(name)
    run.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)  # a path must stay whole

    broker = broker_for(settings.kafka, workspace.kafka, say=say)
    prepared = ensure_prepared(settings, options.dataset)
    reached = False
    try:
        with BundleInTheMaking(settings, prepared, say) as making:
            # Here and not in a thread, which a Ctrl-C could not end; a training goes on meanwhile.
            broker.start()
            reached = True
            bundle = making.result()
        say(f"Kafka {broker.version} at {broker.bootstrap}; logs and state of this run: {run}")
        kafka = settings.kafka.model_copy(update={"bootstrap": broker.bootstrap, "topic_prefix": f"{name}."})
        mine = settings.model_copy(update={"kafka": kafka, "dataset": options.dataset})
        topics = Topics(kafka.topic_prefix, kafka.partitions)
        ensure_topics(kafka, topics.specs())
        specs = worker_specs(mine, run, bundle.path, options.experiment, clouds=options.clouds, devices=options.devices)
        with Supervisor(specs, on_event=lambda event: _tell(event, say)) as supervisor:
            supervisor.wait_ready()
            result = _replay_and_judge(mine, options, prepared, bundle, supervisor, console, broker.version, name)
        if not options.keep_topics:
            delete_topics(kafka, [spec.name for spec in topics.specs()])
        return result
    except BaseException:
        # On our own broker a run that failed may be looked into; on somebody's cluster it leaves nothing behind.
        if reached and settings.kafka.bootstrap and not options.keep_topics:
            with contextlib.suppress(DriftlineError):
                delete_topics(settings.kafka, [spec.name for spec in Topics(f"{name}.").specs()])
        raise
    finally:
        broker.stop(STOP_BROKER_S)
        for file in (settings.home / "live").glob(f"{name}.*"):  # of topics that nobody goes on with
            file.unlink(missing_ok=True)


def _replay_and_judge(
    settings: Settings,
    options: DemoOptions,
    prepared: Prepared,
    bundle: Bundle,
    supervisor: Supervisor,
    console: Console,
    kafka_version: str,
    run: str,
) -> DemoResult:
    topics = Topics(settings.kafka.topic_prefix, settings.kafka.partitions)
    experiment, test = options.experiment, bundle.manifest.test
    plan = ReplayPlan(run, start_ms=test.start_ms, end_ms=test.end_ms, limit=options.events)
    schedule = make_schedule(prepared, plan, topics.partitions)
    live = range(schedule.backfilled, len(schedule))
    arm_of = None
    if experiment.design == "split":
        arm_of = [experiment.arm_of(schedule.device_ids[position]) or 0 for position in live]
    accounting = Accounting(
        (schedule.event_id(position) for position in live), [arm.name for arm in experiment.arms], arm_of
    )
    wanted = len(live) * (1 if arm_of is not None else len(experiment.arms))
    served = ServedLog(run)
    outcomes = Outcomes(arm.name for arm in experiment.arms)
    reader = RecommendationReader(settings.kafka, topics, outcomes, accounting, served)
    devices = GroupLag(settings.kafka, topics.group(settings.device.group), topics.interactions)
    cloud = GroupLag(settings.kafka, topics.group(settings.cloud.group), topics.refresh_requests)
    at_own_pace = options.speed is None
    waiting = CLOUD_BEHIND + topics.partitions  # each partition's last transaction ends in a marker that is never read

    def lag() -> int:
        """The devices' lag; at the demo's own pace a cloud that is behind holds the replay as well."""
        behind = devices()
        return max(behind, settings.replay.max_lag + 1) if at_own_pace and cloud() > waiting else behind

    started: float | None = None
    entered = time.monotonic()
    with reader:
        try:
            with DemoScreen(console) as screen, KafkaSink(settings.kafka, topics, run) as sink:

                def on_progress(progress: ReplayProgress) -> None:
                    nonlocal started
                    if started is None and not progress.backfilling:
                        started = time.monotonic()
                    supervisor.check()
                    reader.check()
                    stuck = progress.paused and not progress.backfilling
                    if stuck and time.monotonic() - max(entered, reader.last_read) > SILENCE_S:
                        raise BrokerError(
                            f"nothing was served for {SILENCE_S:g} s while the replay waits for the workers",
                            remedy=f"look into their logs under {settings.home / 'runs' / run}",
                        )
                    with reader.lock:
                        screen.show(progress, reader.outcomes)

                Replay(
                    schedule,
                    sink,
                    pace=_pace(options.speed),
                    lag=lag,
                    max_lag=settings.replay.max_lag,
                    on_progress=on_progress,
                ).run()
                silent_since = time.monotonic()
                while reader.read < wanted:
                    time.sleep(0.1)
                    supervisor.check()
                    reader.check()
                    if time.monotonic() - max(silent_since, reader.last_read) > SILENCE_S:
                        break  # the books say what is missing
                    with reader.lock:
                        screen.show(None, reader.outcomes)
        finally:
            devices.close()
            cloud.close()
        wall_s = reader.last_read - (started or reader.last_read)
        runtimes = _runtimes(Workspace(settings.home).run(run))
        supervisor.stop()
        reader.finish()
    layout = StateLayout(bundle.manifest, len(experiment.arms), candidates=settings.cloud.candidates)
    applied = applied_exactly_once(applied_counts(settings.kafka, topics, layout), _expected_counts(schedule))
    report, notes = build_report(
        reader.outcomes,
        accounting.result(),
        applied,
        kafka_version=kafka_version,
        dataset=prepared.manifest.name,
        events=len(live),
        wall_s=wall_s,
        paired=experiment.design == "paired",
    )
    if options.events is not None and len(live) < options.events:
        notes.append(f"{options.events:,} events were asked for; the test period has {len(live):,}")
    restarts = sum(status.restarts for status in supervisor.statuses)
    if restarts:
        notes.append(f"workers were started again {restarts} times; see the logs under {run}")
    notes.append(_said_of(runtimes))
    try:
        _write_record(settings, options, prepared, bundle, run, served, runtimes)
    except DriftlineError as exc:
        notes.append(str(exc))  # the table is there all the same
    return DemoResult(report, notes, run)


def _runtimes(run: Path) -> dict[str, str]:
    """What each device worker says its models run on, in the status file that it wrote when it started."""
    told: dict[str, str] = {}
    for file in sorted(run.glob("device-*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            told[file.stem] = str(json.loads(file.read_bytes())["runtime"])
    return told


def _said_of(runtimes: Mapping[str, str]) -> str:
    if not runtimes:
        return "no device worker said what its models run on"
    names = {"onnx": "ONNX Runtime", "numpy": "numpy"}
    by = Counter(names.get(each, each) for each in runtimes.values())
    said = ", ".join(f"{name} ({count} device worker{'s' * (count > 1)})" for name, count in by.items())
    return f"ranked by {said}"


def _write_record(
    settings: Settings,
    options: DemoOptions,
    prepared: Prepared,
    bundle: Bundle,
    run: str,
    served: ServedLog,
    runtimes: dict[str, str],
) -> None:
    """Leave in the run folder what was served."""
    topics = Topics(settings.kafka.topic_prefix, settings.kafka.partitions)
    codec = Codec(Embedding)
    sent = embeddings_frame(
        codec.decode(record.value) for record in records_of(settings.kafka, topics.embeddings, topics.partitions)
    )
    experiment = options.experiment
    manifest = ServedManifest(
        format=FORMAT,
        run=run,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        driftline_version=driftline_version(),
        dataset=prepared.manifest.name,
        dataset_hash=prepared.manifest.hash,
        bundle=bundle.id,
        bundle_path=str(bundle.path.absolute()),
        design=experiment.design,
        arms=[arm.flag() for arm in experiment.arms],
        ranking=settings.device.ranking,
        list_length=settings.device.list_length,
        item_vectors=settings.device.item_vectors,
        encoder=settings.cloud.encoder,
        runtimes=runtimes,
        recommendations=len(served),
        embeddings=len(sent),
    )
    write_served(Workspace(settings.home).run(run), manifest, served.frame(), sent)


def _expected_counts(schedule: Schedule) -> Counter[str]:
    return Counter(schedule.device_ids)


def _pace(speed: float | None) -> Pace:
    if speed is None:
        return AtMostRate(RATE)
    return Flat() if speed == float("inf") else AtSpeed(speed)


def _tell(event: SupervisorEvent, say: Say) -> None:
    if event.kind in ("restarting", "failed"):
        say(event.message)
