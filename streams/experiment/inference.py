"""Differences between arms, with intervals clustered by device.

A metric of an arm is a ratio of sums: the sum of, say, NDCG over its events, by the number of events. Both vary from
device to device and a device's events resemble each other, so the variance is taken over devices by the delta method:
the ratio is replaced by its linearisation, whose summands are independent between devices (Deng, Knoblich & Lu 2018,
"Applying the Delta Method in Metric Analytics", section 3). That is the cluster-robust variance of the mean of events;
with its factor D / (D - 1) and a t quantile on D - 1 degrees of freedom as Cameron & Miller 2015, "A Practitioner's
Guide to Cluster-Robust Inference", sections II and VI, advise where clusters are not many.

These intervals hold for one look at a fixed time, not for peeking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import stats

from streams.errors import DriftlineError
from streams.experiment.outcomes import DeviceSums

Floats = npt.NDArray[np.float64]

FEW_CLUSTERS: Final = 30
"""Below this, cluster-robust intervals tend to be too narrow (Cameron & Miller 2015, section VI)."""


@dataclass(frozen=True)
class Difference:
    """Arm minus baseline, mean per event, with its interval."""

    estimate: float
    low: float | None
    """None where the devices are too few for any interval."""
    high: float | None
    standard_error: float | None
    degrees: float
    """Degrees of freedom of the t quantile."""
    devices: int
    warning: str = ""
    """Why the interval is to be taken with care; empty where there is no reason."""


def difference(arm: DeviceSums, baseline: DeviceSums, metric: str, *, paired: bool, level: float = 0.95) -> Difference:
    """Difference of one metric between two arms.

    Parameters
    ----------
    metric
        A key of `DeviceSums.sums`.
    paired
        Whether every device runs both arms; a device that has events in only one of them counts with none in the other.

    Raises
    ------
    DriftlineError
        An arm has no events.
    """
    for side, name in ((arm, "the arm"), (baseline, "its baseline")):
        if not side.events.sum():
            raise DriftlineError(f"{metric}: {name} has no events to compare")
    if not paired:
        return unpaired_difference(arm.events, arm.sums[metric], baseline.events, baseline.sums[metric], level=level)
    everyone = sorted({*arm.devices, *baseline.devices})
    place = {name: i for i, name in enumerate(everyone)}

    def spread(side: DeviceSums, column: Floats) -> Floats:
        whole = np.zeros(len(everyone))
        whole[[place[name] for name in side.devices]] = column
        return whole

    return paired_difference(
        spread(arm, arm.events),
        spread(arm, arm.sums[metric]),
        spread(baseline, baseline.events),
        spread(baseline, baseline.sums[metric]),
        level=level,
    )


def paired_difference(
    events: Floats, sums: Floats, base_events: Floats, base_sums: Floats, *, level: float = 0.95
) -> Difference:
    """Difference of two ratios of sums over the same D devices.

    Parameters
    ----------
    events, base_events
        (D,) events of each device in the arm and in the baseline.
    sums, base_sums
        (D,) sums of the metric over them, devices in the same order.
    """
    ratio, influence = _linearised(events, sums)
    base_ratio, base_influence = _linearised(base_events, base_sums)
    devices = len(events)
    estimate = ratio - base_ratio
    if devices < 2:
        return _no_interval(estimate, devices)
    variance = devices / (devices - 1) * float(((influence - base_influence) ** 2).sum())
    return _interval(estimate, variance, devices - 1, devices, warning=_caution(events + base_events), level=level)


def unpaired_difference(
    events: Floats, sums: Floats, base_events: Floats, base_sums: Floats, *, level: float = 0.95
) -> Difference:
    """Difference of two ratios of sums over different devices (a split experiment).

    Parameters
    ----------
    events, sums
        (D,) events, and sums of the metric, of the arm's devices.
    base_events, base_sums
        (E,) the same of the baseline's.

    Notes
    -----
    The degrees of freedom are Welch's and Satterthwaite's, over devices.
    """
    ratio, influence = _linearised(events, sums)
    base_ratio, base_influence = _linearised(base_events, base_sums)
    estimate = ratio - base_ratio
    sizes = (len(events), len(base_events))
    if min(sizes) < 2:
        return _no_interval(estimate, sum(sizes))
    parts = [
        size / (size - 1) * float((part**2).sum())
        for size, part in zip(sizes, (influence, base_influence), strict=True)
    ]
    variance = sum(parts)
    spread = sum(part**2 / (size - 1) for size, part in zip(sizes, parts, strict=True))
    degrees = variance**2 / spread if spread > 0 else min(sizes) - 1
    caution = _caution(events) or _caution(base_events)
    return _interval(estimate, variance, degrees, sum(sizes), warning=caution, level=level)


def _linearised(events: Floats, sums: Floats) -> tuple[float, Floats]:
    """Ratio of sums, and each device's contribution to its error; the contributions add up to zero."""
    total = float(events.sum())
    ratio = float(sums.sum()) / total
    return ratio, (sums - ratio * events) / total


def _interval(
    estimate: float, variance: float, degrees: float, devices: int, *, warning: str, level: float
) -> Difference:
    error = float(np.sqrt(variance))
    half = float(stats.t.ppf(0.5 + level / 2, degrees)) * error
    return Difference(estimate, estimate - half, estimate + half, error, float(degrees), devices, warning)


def _no_interval(estimate: float, devices: int) -> Difference:
    return Difference(estimate, None, None, None, 0.0, devices, f"{devices} device(s): no interval can be given")


def _caution(events: Floats) -> str:
    """Few clusters, or few that carry most of the weight (Cameron & Miller 2015, section VI.B)."""
    weight = float((events**2).sum())
    effective = float(events.sum()) ** 2 / weight if weight else 0.0
    if len(events) < FEW_CLUSTERS:
        return f"only {len(events)} devices: the interval may be too narrow"
    if effective < FEW_CLUSTERS:
        return (
            f"a few devices carry most events (as if there were {effective:.0f} devices): "
            "the interval may be too narrow"
        )
    return ""
