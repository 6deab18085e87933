"""Cutting a dataset by global time: what a model was trained on never lies later than what it is judged on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from streams.bundle import Period
from streams.errors import DatasetError


@dataclass(frozen=True)
class Split:
    """Three periods that follow each other without a gap."""

    train: Period
    valid: Period
    test: Period


def global_time_split(events: pl.DataFrame, fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> Split:
    """Cut at the two moments that come nearest to the fractions.

    A moment belongs to one period only, so on data of day resolution the periods are whole days and the fractions
    are met as well as days allow.

    Parameters
    ----------
    events
        Prepared events, in time order.
    fractions
        Of the interactions, for training, validation and test; they are scaled to sum to 1.

    Raises
    ------
    DatasetError
        There are fewer than three moments, or a fraction is not positive.
    """
    if len(fractions) != 3 or not all(each > 0 for each in fractions):
        raise DatasetError(f"three positive fractions are wanted to split a dataset, not {fractions}")
    times = events["event_time_ms"].to_numpy()
    if len(times) and (np.diff(times) < 0).any():
        raise DatasetError(
            "events to split must be in time order", remedy="use prepared events (`driftline data prepare`)"
        )
    moments, firsts = np.unique(times, return_index=True)
    if len(moments) < 3:
        raise DatasetError(
            f"{len(moments)} different event times cannot be split into training, validation and test",
            remedy="use a dataset whose events lie at three different times at least",
        )
    share = np.cumsum(fractions) / sum(fractions) * len(times)
    # firsts[k] events lie before moments[k]; k = 0 would leave the training period empty.
    first_cut = _nearest(firsts, share[0], low=1, high=len(moments) - 2)
    second_cut = _nearest(firsts, share[1], low=first_cut + 1, high=len(moments) - 1)
    edges = [int(moments[0]), int(moments[first_cut]), int(moments[second_cut]), int(moments[-1]) + 1]
    counts = np.diff([0, firsts[first_cut], firsts[second_cut], len(times)])
    train, valid, test = (
        Period(start, end, int(count)) for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True)
    )
    return Split(train, valid, test)


def during(events: pl.DataFrame, period: Period) -> pl.DataFrame:
    """The events of one period."""
    return events.filter((pl.col("event_time_ms") >= period.start_ms) & (pl.col("event_time_ms") < period.end_ms))


def _nearest(firsts: np.ndarray[tuple[int], np.dtype[np.int64]], wanted: float, *, low: int, high: int) -> int:
    return low + int(np.abs(firsts[low : high + 1] - wanted).argmin())
