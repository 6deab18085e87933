import io
import json

import numpy as np
import pytest
from rich.console import Console

from streams.events import Recommendation
from streams.experiment.accounting import Accounting, AppliedAccount
from streams.experiment.outcomes import Outcomes
from streams.experiment.report import build_report, render_table, report_json, summary_lines

PROMISED = [
    "kafka_version",
    "dataset",
    "events",
    "devices",
    "wall_s",
    "events_per_s",
    "lost",
    "repeated",
    "double_applied",
    "freshness_latency_s",
    "arms",
]
PROMISED_ARM = [
    "arm",
    "events",
    "refreshes",
    "refresh_rate",
    "ndcg@10",
    "hr@10",
    "mrr",
    "embedded",
    "gap_mean",
    "age_mean_s",
    "difference",
]
ARMS = ["never", "every-n", "drift"]


def _run(devices=40, arms=ARMS, drop=(), answered=True):
    rng = np.random.default_rng(0)
    outcomes = Outcomes(arms)
    ids = [f"{device}/{number}" for device in range(devices) for number in range(6)]
    book = Accounting(ids, arms)
    for event in ids:
        device, number = event.split("/")
        for arm in arms:
            if (arm, event) in drop:
                continue
            cached = answered and arm != "never" and int(number) > 0
            outcomes.add(
                Recommendation(
                    v=1,
                    request_id=f"{event}-{arm}",
                    event_id=event,
                    device_id=device,
                    arm=arm,
                    policy=arm,
                    items=[],
                    rank=int(rng.integers(1, 8 if cached else 40)),
                    ranked=100,
                    staleness=0.5,
                    reliability=0.5,
                    gap=int(number) if cached else -1,
                    age_ms=7_200_000 if cached else -1,
                    as_of=1 if cached else -1,
                    freshness_ms=80 if cached else -1,
                    refreshed=arm != "never" and number == "0",
                    reason="",
                    event_time_ms=0,
                    served_at_ms=0,
                    step_s=0.0,
                )
            )
            book.add(arm, event)
    return build_report(
        outcomes,
        book.result(),
        AppliedAccount(),
        kafka_version="4.1.2",
        dataset="ml-100k",
        events=len(ids),
        wall_s=12.0,
    )


def test_the_object_has_exactly_the_promised_keys():
    found = json.loads(report_json(_run()[0]))
    assert list(found) == PROMISED
    assert list(found["freshness_latency_s"]) == ["p50", "p99"]
    assert [arm["arm"] for arm in found["arms"]] == ARMS
    for arm in found["arms"]:
        assert list(arm) == PROMISED_ARM
        assert list(arm["difference"]) == ["ndcg@10"]
        assert list(arm["difference"]["ndcg@10"]) == ["estimate", "low", "high"]


def test_the_numbers_are_those_of_the_stream():
    report, notes = _run()
    never, every_n, _ = report.arms
    assert (report.events, report.devices, report.events_per_s) == (240, 40, 20.0)
    assert (report.lost, report.repeated, report.double_applied) == (0, 0, 0)
    assert (report.freshness_latency_s.p50, report.freshness_latency_s.p99) == (0.08, 0.08)
    assert (never.refreshes, never.gap_mean, never.age_mean_s) == (0, None, None)
    assert (every_n.refreshes, every_n.refresh_rate) == (40, pytest.approx(1 / 6))
    assert (every_n.gap_mean, every_n.age_mean_s) == (3.0, 7200.0)
    assert (never.embedded, every_n.embedded) == (0, pytest.approx(5 / 6))
    gain = every_n.difference.ndcg
    assert gain.estimate == pytest.approx(every_n.ndcg - never.ndcg)
    assert 0 < gain.low < gain.estimate < gain.high
    assert never.difference.ndcg.estimate == never.difference.ndcg.high == 0
    assert notes == []


def test_a_lost_recommendation_is_counted_and_explained():
    report, notes = _run(drop={("drift", "3/2")})
    assert report.lost == 1
    assert notes == ["arm drift: 1 lost, first rows of the replay [20]"]


def test_a_single_device_has_no_interval_and_the_reader_is_told():
    report, notes = _run(devices=1)
    assert report.arms[1].difference.ndcg.low is None
    assert "no interval" in notes[0]
    assert json.loads(report_json(report))["arms"][1]["difference"]["ndcg@10"]["high"] is None


def test_an_arm_that_asked_in_vain_is_told_of():
    _, notes = _run(answered=False)
    assert notes == [
        f"arm {arm} asked, but no answer came before the end: a lower --speed waits for them" for arm in ARMS[1:]
    ]


def test_an_arm_that_served_nothing_is_shown_as_such():
    nobody = Outcomes(["a", "b"])
    report, notes = build_report(
        nobody, [], AppliedAccount(2, 1, ["u"]), kafka_version="4.1", dataset="d", events=0, wall_s=0.0
    )
    assert (report.lost, report.double_applied, report.events_per_s) == (1, 2, 0.0)
    assert report.freshness_latency_s.p50 is None
    assert "arm a served nothing" in notes
    assert "devices whose count of applied interactions is wrong: u" in notes
    assert "no embedding" in summary_lines(report)[1]


def _text(table, width=200):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_table_shows_each_arm_and_its_interval_against_the_first():
    report, _ = _run()
    text = _text(render_table(report))
    for word in (*ARMS, "16.7%", "2.0 h", "Δ NDCG@10 to never"):
        assert word in text
    low, high = report.arms[2].difference.ndcg.low, report.arms[2].difference.ndcg.high
    assert f"[{low:+.4f}, {high:+.4f}]" in text
    assert "lost 0, repeated 0, double-applied 0" in summary_lines(report)[2]
