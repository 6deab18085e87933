from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.events import Recommendation
from streams.experiment.outcomes import ArmOutcome, Outcomes, quantile


def served(
    device="d", arm="a", rank=1, *, as_of=-1, freshness_ms=-1, refreshed=False, gap=-1, age_ms=-1, staleness=1.0
):
    return Recommendation(
        v=1,
        request_id="",
        event_id="",
        device_id=device,
        arm=arm,
        policy="p",
        items=[],
        rank=rank,
        ranked=100,
        staleness=staleness,
        reliability=1 - staleness,
        gap=gap,
        age_ms=age_ms,
        as_of=as_of,
        freshness_ms=freshness_ms,
        refreshed=refreshed,
        reason="",
        event_time_ms=0,
        served_at_ms=0,
        step_s=0.0,
    )


def test_means_over_a_handful_of_events():
    outcomes = Outcomes(["a"])
    outcomes.add(served(rank=1, refreshed=True))
    outcomes.add(served(rank=3, as_of=1, freshness_ms=40, gap=1, age_ms=2000, staleness=0.25))
    outcomes.add(served(rank=0, as_of=1, freshness_ms=40, gap=2, age_ms=4000, staleness=0.5))
    outcomes.add(served(rank=20, device="e"))
    arm = outcomes["a"]
    assert (arm.events, arm.refreshes, arm.refresh_rate) == (4, 1, 0.25)
    assert arm.mean("ndcg@10") == pytest.approx((1 + 0.5) / 4)
    assert arm.mean("hr@10") == pytest.approx(2 / 4)
    assert arm.mean("mrr") == pytest.approx((1 + 1 / 3 + 1 / 20) / 4)
    assert arm.gap_mean == pytest.approx(1.5)
    assert arm.age_mean_s == pytest.approx(3)
    assert arm.staleness_mean == pytest.approx((1 + 0.25 + 0.5 + 1) / 4)
    assert outcomes.devices == 2
    table = arm.table()
    assert table.devices == ["d", "e"]
    assert table.events.tolist() == [3, 1]
    assert table.sums["hr@10"].tolist() == [2, 0]


def test_an_arm_that_never_had_an_embedding_has_no_gap_and_no_age():
    arm = ArmOutcome("never")
    arm.add(served())
    assert arm.gap_mean is None
    assert arm.age_mean_s is None
    assert quantile(arm.freshness_ms, 0.5) is None


def test_freshness_is_counted_once_for_each_embedding_however_often_it_serves():
    arm = ArmOutcome("a")
    for as_of, freshness in [(3, 50), (3, 50), (3, 50), (9, 70), (9, 70)]:
        arm.add(served(as_of=as_of, freshness_ms=freshness, gap=0, age_ms=0))
    arm.add(served(device="other", as_of=3, freshness_ms=50, gap=0, age_ms=0))
    assert arm.freshness_ms == Counter({50: 2, 70: 1})


def test_arms_keep_their_order_and_newcomers_come_last():
    outcomes = Outcomes(["b", "a"])
    outcomes.add(served(arm="z"))
    outcomes.add(served(arm="a"))
    assert [arm.arm for arm in outcomes] == ["b", "a", "z"]


EVENTS = st.lists(
    st.builds(
        dict,
        device=st.sampled_from("uvw"),
        arm=st.sampled_from("ab"),
        rank=st.integers(0, 30),
        refreshed=st.booleans(),
        new_embedding=st.booleans(),
        freshness_ms=st.integers(0, 100),
    ),
    max_size=60,
)


def _stream(events):
    """Like a device's own stream: as_of never goes back, and stays with its freshness."""
    held: dict[tuple[str, str], tuple[int, int]] = {}
    for number, event in enumerate(events):
        key = event["device"], event["arm"]
        if event["new_embedding"]:
            held[key] = number, event["freshness_ms"]
        as_of, freshness = held.get(key, (-1, -1))
        cached = as_of >= 0
        yield served(
            event["device"],
            event["arm"],
            event["rank"],
            as_of=as_of,
            freshness_ms=freshness,
            refreshed=event["refreshed"],
            gap=number - as_of if cached else -1,
            age_ms=1000 if cached else -1,
        )


def _numbers(outcomes):
    return {
        arm.arm: (
            arm.events,
            arm.refreshes,
            arm.gap_mean,
            arm.age_mean_s,
            arm.freshness_ms,
            arm.table().devices,
            arm.table().events.tolist(),
            {name: column.round(9).tolist() for name, column in arm.table().sums.items()},
        )
        for arm in outcomes
        if arm.events
    }


@given(EVENTS, st.data())
def test_merged_pieces_equal_the_whole_stream(events, data):
    cut = data.draw(st.integers(0, len(events)))
    whole, first, second = Outcomes("ab"), Outcomes("ab"), Outcomes("ab")
    for number, record in enumerate(_stream(events)):
        whole.add(record)
        (first if number < cut else second).add(record)
    first.merge(second)
    assert _numbers(first) == _numbers(whole)
    assert first.freshness_ms() == whole.freshness_ms()


@given(st.lists(st.integers(0, 1000), min_size=1), st.floats(0.01, 1))
def test_quantile_is_the_smallest_value_that_covers_the_share(samples, q):
    found = quantile(Counter(samples), q)
    at_or_below = sum(each <= found for each in samples)
    below = sum(each < found for each in samples)
    assert found in samples
    assert below < q * len(samples) <= at_or_below or at_or_below == len(samples)
