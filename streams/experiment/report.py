"""The result of a comparison: one object with fixed keys, and the same as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.table import Table

from streams.experiment.accounting import AppliedAccount, ArmAccount
from streams.experiment.inference import difference
from streams.experiment.outcomes import ArmOutcome, Outcomes, quantile


class Interval(msgspec.Struct, frozen=True):
    """An estimate with its 95 % interval; null ends where the devices are too few for one."""

    estimate: float
    low: float | None
    high: float | None


class ArmDifference(msgspec.Struct, frozen=True, rename={"ndcg": "ndcg@10"}):
    """What separates an arm from the first one; for the first one itself all are 0."""

    ndcg: Interval


class ArmReport(msgspec.Struct, frozen=True, rename={"ndcg": "ndcg@10", "hr": "hr@10"}):
    """One arm: its cost and what it achieved."""

    arm: str
    events: int
    refreshes: int
    refresh_rate: float
    ndcg: float
    hr: float
    mrr: float
    embedded: float
    """Share of the recommendations that an embedding had a part in; the others were made before one came."""
    gap_mean: float | None
    """Interactions; over events that had an embedding, null if none had."""
    age_mean_s: float | None
    """Seconds of event time; the same."""
    difference: ArmDifference


class Quantiles(msgspec.Struct, frozen=True):
    """Null where nothing was measured."""

    p50: float | None
    p99: float | None


class Report(msgspec.Struct, frozen=True):
    """What `driftline demo --json` prints as its last line."""

    kafka_version: str
    dataset: str
    events: int
    """Events that were to be served, each by every arm."""
    devices: int
    wall_s: float
    events_per_s: float
    lost: int
    """Recommendations missing over all arms, or applications missing in the devices' states if those are more."""
    repeated: int
    """Recommendations beyond the first of an event and arm, or of events that nobody replayed."""
    double_applied: int
    freshness_latency_s: Quantiles
    """From a refresh request to the use of its embedding, over all arms."""
    arms: list[ArmReport]


def build_report(
    outcomes: Outcomes,
    accounts: Sequence[ArmAccount],
    applied: AppliedAccount,
    *,
    kafka_version: str,
    dataset: str,
    events: int,
    wall_s: float,
    paired: bool = True,
) -> tuple[Report, list[str]]:
    """Put the result together.

    Parameters
    ----------
    outcomes
        The arms, the one to compare with first.
    accounts
        The books of the recommendations.
    applied
        The books of the devices' states.
    events
        Events that were to be served.
    wall_s
        Seconds from the first event sent to the last one served.
    paired
        Whether every device ran all arms.

    Returns
    -------
    Report
        The result.
    list of str
        What a reader should know besides: intervals to be taken with care, records nobody expected.
    """
    arms = list(outcomes)
    notes: list[str] = []
    reports = []
    for arm in arms:
        interval = Interval(0.0, 0.0, 0.0)
        if arm is not arms[0] and arm.events and arms[0].events:
            found = difference(arm.table(), arms[0].table(), "ndcg@10", paired=paired)
            interval = Interval(found.estimate, found.low, found.high)
            if found.warning and found.warning not in notes:
                notes.append(found.warning)
        elif not arm.events:
            interval = Interval(0.0, None, None)
            notes.append(f"arm {arm.arm} served nothing")
        if arm.refreshes and not arm.with_embedding:
            notes.append(f"arm {arm.arm} asked, but no answer came before the end: a lower --speed waits for them")
        reports.append(_arm_report(arm, interval))
    for account in accounts:
        if account.lost:
            notes.append(f"arm {account.arm}: {account.lost} lost, first rows of the replay {account.lost_rows}")
        if account.repeated:
            notes.append(f"arm {account.arm}: {account.repeated} repeated, first rows {account.repeated_rows}")
        if account.unexpected:
            notes.append(
                f"arm {account.arm}: {account.unexpected} recommendations of events that were not replayed, "
                f"such as {account.unexpected_ids}"
            )
    if applied.devices:
        notes.append(f"devices whose count of applied interactions is wrong: {', '.join(applied.devices)}")
    freshness = outcomes.freshness_ms()
    report = Report(
        kafka_version=kafka_version,
        dataset=dataset,
        events=events,
        devices=outcomes.devices,
        wall_s=wall_s,
        events_per_s=events / wall_s if wall_s > 0 else 0.0,
        lost=max(sum(account.lost for account in accounts), applied.lost_applied),
        repeated=sum(account.repeated + account.unexpected for account in accounts),
        double_applied=applied.double_applied,
        freshness_latency_s=Quantiles(_seconds(quantile(freshness, 0.5)), _seconds(quantile(freshness, 0.99))),
        arms=reports,
    )
    return report, notes


def report_json(report: Report) -> str:
    """One line of JSON."""
    return msgspec.json.encode(report).decode()


def render_table(report: Report) -> Table:
    """One row an arm; the difference column is against the first one."""
    first = report.arms[0].arm if report.arms else ""
    table = Table(title=f"{report.dataset}: {report.events:,} events of {report.devices:,} devices", title_style="bold")
    table.add_column("arm")
    for heading in ("events", "refreshes", "rate", "NDCG@10", "HR@10", "MRR", "embedded", "gap", "age"):
        table.add_column(heading, justify="right")
    table.add_column(f"Δ NDCG@10 to {first} [95 %]", justify="right")
    for arm in report.arms:
        table.add_row(
            arm.arm,
            f"{arm.events:,}",
            f"{arm.refreshes:,}",
            f"{arm.refresh_rate:.1%}",
            f"{arm.ndcg:.4f}",
            f"{arm.hr:.4f}",
            f"{arm.mrr:.4f}",
            f"{arm.embedded:.1%}",
            "–" if arm.gap_mean is None else f"{arm.gap_mean:.1f}",
            "–" if arm.age_mean_s is None else _span(arm.age_mean_s),
            "–" if arm is report.arms[0] else _show(arm.difference.ndcg),
        )
    return table


def summary_lines(report: Report) -> list[str]:
    """What stands under the table."""
    fresh = report.freshness_latency_s
    latency = (
        "no embedding was asked for and used"
        if fresh.p50 is None or fresh.p99 is None
        else f"p50 {fresh.p50 * 1000:.0f} ms, p99 {fresh.p99 * 1000:.0f} ms from request to use"
    )
    return [
        f"Kafka {report.kafka_version}: {report.events_per_s:,.0f} events/s over {report.wall_s:.1f} s",
        f"freshness latency: {latency}",
        f"read back from Kafka: lost {report.lost}, repeated {report.repeated}, double-applied {report.double_applied}",
    ]


def _arm_report(arm: ArmOutcome, interval: Interval) -> ArmReport:
    return ArmReport(
        arm=arm.arm,
        events=arm.events,
        refreshes=arm.refreshes,
        refresh_rate=arm.refresh_rate,
        ndcg=arm.mean("ndcg@10"),
        hr=arm.mean("hr@10"),
        mrr=arm.mean("mrr"),
        embedded=arm.embedded,
        gap_mean=arm.gap_mean,
        age_mean_s=arm.age_mean_s,
        difference=ArmDifference(interval),
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _show(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.estimate:+.4f}"
    return f"{interval.estimate:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def _span(seconds: float) -> str:
    """A duration to two figures, in the unit that reads best."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
