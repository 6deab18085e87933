"""A Prometheus histogram that takes a whole array at once.

prometheus_client's own `observe` costs some microseconds a value; a device worker would spend more time on three
histograms than on the step they describe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class BulkHistogram(Collector):
    """Histogram of arrays, with labels.

    Parameters
    ----------
    buckets
        Ascending upper bounds; +Inf is added.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self.name = name
        self.documentation = documentation
        self.labels = tuple(labels)
        self._bounds = np.asarray(buckets, dtype=np.float64)
        self._names = [*(str(float(bound)) for bound in buckets), "+Inf"]
        self._counts: dict[tuple[str, ...], npt.NDArray[np.int64]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        self._lock = Lock()
        registry.register(self)

    def observe(self, values: npt.ArrayLike, *labels: str) -> None:
        """Add all values, any shape; NaN is left out."""
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name} wants the labels {self.labels}, got {labels}")
        flat = np.asarray(values, dtype=np.float64).ravel()
        flat = flat[~np.isnan(flat)]
        # side="left": a value equal to a bound belongs to that bound's bucket (le)
        found = np.bincount(np.searchsorted(self._bounds, flat, side="left"), minlength=len(self._names))
        with self._lock:
            if labels not in self._counts:
                self._counts[labels], self._sums[labels] = np.zeros(len(self._names), np.int64), 0.0
            self._counts[labels] += found
            self._sums[labels] += float(flat.sum())

    def describe(self) -> Iterable[Metric]:
        """Name and kind, without values."""
        return [HistogramMetricFamily(self.name, self.documentation, labels=self.labels)]

    def collect(self) -> Iterable[Metric]:
        """What a scrape sees: cumulative buckets."""
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.labels)
        with self._lock:
            for labels, counts in self._counts.items():
                cumulative = counts.cumsum().tolist()
                family.add_metric(labels, list(zip(self._names, cumulative, strict=True)), self._sums[labels])
        return [family]
