"""``driftline replay``: send a dataset's interactions as a live event stream."""

from __future__ import annotations

import json as json_module
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from streams.replay import Pace, ReplayReport

EXIT_INTERRUPTED = 130
WAIT_S = 30.0
"""For a broker to answer: one that was killed needs 10 to 20 s to be back."""


def replay(
    dataset: Annotated[str | None, typer.Argument(help="As `driftline data list` shows it; the setting else.")] = None,
    speed: Annotated[
        str | None, typer.Option(metavar="K|max", help="Event time passes K times as fast as wall time. [max]")
    ] = None,
    rate: Annotated[float | None, typer.Option(metavar="R", help="R events a second instead.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MOMENT",
            help="A date, a fraction of events, or a bundle's train, valid or test.",
        ),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="MOMENT", help="Likewise; the moment itself is left out.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="At most N live events.")] = None,
    replay_id: Annotated[
        str | None, typer.Option("--replay-id", metavar="ID", help="Go on with the replay of this name, or name it.")
    ] = None,
    backfill: Annotated[
        bool, typer.Option("--backfill/--no-backfill", help="Send each device's earlier history first.")
    ] = True,
    max_lag: Annotated[
        int | None,
        typer.Option("--max-lag", min=0, help="Wait while the devices are further behind; 0: never. [replay.max_lag]"),
    ] = None,
    bootstrap: Annotated[str | None, typer.Option("--bootstrap", help="host:port[,host:port] of the cluster.")] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Whose periods --from and --to name; the setting's, or the newest fitting."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")] = False,
) -> None:
    """Send a dataset's interactions in event-time order, keyed by device, at a pace.

    After an interruption the same command with the same --replay-id goes on where it stopped: nothing is lost, nothing
    repeated.
    """
    import secrets

    from infra.bundles import split_of_bundle
    from infra.replay_progress import replay_bar
    from streams.datasets import ensure_prepared
    from streams.kafka_admin import ensure_topics
    from streams.kafka_clients import wait_for_broker
    from streams.replay import GroupLag, KafkaSink, Replay, ReplayPlan, make_schedule, sent_rows
    from streams.replay.moments import parse_moment
    from streams.settings import load_settings
    from streams.topics import Topics

    pace = _pace(speed, rate)
    settings = load_settings(flags={"kafka.bootstrap": bootstrap, "bundle": bundle})
    topics = Topics(settings.kafka.topic_prefix, settings.kafka.partitions)
    prepared = ensure_prepared(settings, dataset or settings.dataset)
    fresh = f"{prepared.manifest.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    split = split_of_bundle(settings, prepared)
    plan = ReplayPlan(
        replay_id=replay_id or fresh,
        start_ms=None if start is None else parse_moment(start, prepared.events, "from", split),
        end_ms=None if end is None else parse_moment(end, prepared.events, "to", split),
        limit=limit,
        backfill=backfill,
    )
    schedule = make_schedule(prepared, plan, topics.partitions)
    wait_for_broker(settings.kafka, WAIT_S)
    ensure_topics(settings.kafka, topics.specs())
    # A name made just now cannot be in the topic.
    sent = sent_rows(settings.kafka, topics, schedule) if replay_id else set()
    allowed = settings.replay.max_lag if max_lag is None else max_lag
    lag = GroupLag(settings.kafka, topics.group(settings.device.group), topics.interactions) if allowed else None
    try:
        with (
            KafkaSink(settings.kafka, topics, plan.replay_id) as sink,
            replay_bar(prepared.manifest.name) as draw,
            _stopped_by_signals() as stop,
        ):
            run = Replay(
                schedule, sink, pace=pace, sent=sent, lag=lag, max_lag=allowed or 1, on_progress=draw, stop=stop
            )
            report = run.run()
    finally:
        if lag is not None:
            lag.close()
    _print(report, json=json)
    if not report.complete:
        raise typer.Exit(EXIT_INTERRUPTED)


def _pace(speed: str | None, rate: float | None) -> Pace:
    from streams.errors import SettingsError
    from streams.replay import AtMostRate, AtSpeed, Flat

    if speed is not None and rate is not None:
        raise SettingsError("--speed and --rate exclude each other")
    if rate is not None:
        return AtMostRate(rate)
    if speed is None or speed == "max":
        return Flat()
    try:
        factor = float(speed.removeprefix("x").removeprefix("×"))
    except ValueError as exc:
        raise SettingsError(f"--speed {speed} is neither a number nor max") from exc
    return AtSpeed(factor)


def _print(report: ReplayReport, *, json: bool) -> None:
    import msgspec

    if json:
        typer.echo(json_module.dumps({"meta": {}, "rows": [msgspec.to_builtins(report)]}))
        return
    words = (
        f"{report.events:,} events and {report.backfilled:,} of history for {report.devices:,} devices "
        f"in {report.wall_s:.1f} s ({report.events_per_s:,.0f} live/s, {report.paused_s:.1f} s waiting for the devices)"
    )
    if report.resumed_from:
        words += f"; {report.resumed_from:,} were there already"
    typer.echo(words)
    if not report.complete:
        typer.echo(f"stopped before the end; go on with --replay-id {report.replay_id} and the same options", err=True)


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Lend an event that Ctrl-C and SIGTERM set: what is under way is then acknowledged before the command ends."""
    stop = threading.Event()
    before = {each: signal.signal(each, lambda *_: stop.set()) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
