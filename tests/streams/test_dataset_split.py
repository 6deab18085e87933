"""Promises of the split by global time."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.datasets import during, global_time_split
from streams.errors import DatasetError

TIMES = st.lists(st.integers(0, 40), min_size=3, max_size=120).filter(lambda times: len(set(times)) >= 3).map(sorted)
FRACTIONS = st.tuples(*[st.floats(0.01, 1)] * 3)


def events_at(times: list[int]) -> pl.DataFrame:
    return pl.DataFrame({"event_time_ms": times}, schema={"event_time_ms": pl.Int64}).with_row_index("row")


@given(TIMES, FRACTIONS)
def test_periods_hold_every_event_once_and_never_share_a_moment(
    times: list[int], fractions: tuple[float, float, float]
) -> None:
    events = events_at(times)
    split = global_time_split(events, fractions)
    parts = [during(events, period) for period in (split.train, split.valid, split.test)]
    assert pl.concat(parts)["row"].to_list() == list(range(len(times)))
    for part, period in zip(parts, (split.train, split.valid, split.test), strict=True):
        assert len(part) == period.interactions > 0
    moments = [set(part["event_time_ms"]) for part in parts]
    assert max(moments[0]) < min(moments[1])
    assert max(moments[1]) < min(moments[2])
    assert split.train.end_ms == split.valid.start_ms
    assert split.valid.end_ms == split.test.start_ms


@given(st.integers(30, 2000))
def test_fractions_are_met_to_the_event_where_times_differ(count: int) -> None:
    split = global_time_split(events_at(list(range(count))))
    assert abs(split.train.interactions - 0.8 * count) <= 1
    assert abs(split.valid.interactions - 0.1 * count) <= 1


def test_a_cut_falls_on_the_nearest_day_where_days_are_all_there_is() -> None:
    split = global_time_split(events_at([0] * 60 + [1] * 15 + [2] * 5 + [3] * 20))
    assert (split.train.interactions, split.valid.interactions, split.test.interactions) == (75, 5, 20)


def test_too_few_moments_are_refused() -> None:
    with pytest.raises(DatasetError, match="2 different event times"):
        global_time_split(events_at([1, 1, 2, 2]))


def test_events_out_of_order_are_refused() -> None:
    with pytest.raises(DatasetError, match="time order"):
        global_time_split(events_at([3, 1, 2]))


def test_a_period_without_a_share_is_refused() -> None:
    with pytest.raises(DatasetError, match="positive"):
        global_time_split(events_at([1, 2, 3]), (1.0, 0.0, 0.2))
