"""When each event of a replay is due: three paces, each a map from events to seconds after the start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streams.errors import SettingsError

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Flat:
    """As fast as the consumers follow."""

    def due(self, times_ms: npt.NDArray[np.int64]) -> Seconds:
        """Everything at once: (n,) zeros."""
        return np.zeros(len(times_ms))


@dataclass(frozen=True)
class AtSpeed:
    """Event time passes so many times as fast as wall time."""

    factor: float

    def __post_init__(self) -> None:
        _positive(self.factor, "speed")

    def due(self, times_ms: npt.NDArray[np.int64]) -> Seconds:
        """(n,) event times, ascending, to (n,) seconds after the first."""
        return (times_ms - times_ms[:1]) / (1000.0 * self.factor)


@dataclass(frozen=True)
class AtMostRate:
    """So many events a second, evenly, whatever their event times."""

    per_s: float

    def __post_init__(self) -> None:
        _positive(self.per_s, "rate")

    def due(self, times_ms: npt.NDArray[np.int64]) -> Seconds:
        """(n,) seconds after the first."""
        return np.arange(len(times_ms)) / self.per_s


Pace = Flat | AtSpeed | AtMostRate


class Pacer:
    """How many events may have left by now. It has no clock: the present is an argument.

    Parameters
    ----------
    due_s
        (n,) seconds after the start at which each event is due, ascending.
    start
        The start, on the clock that `ready` is asked with.
    """

    def __init__(self, due_s: Seconds, start: float) -> None:
        self._due = due_s
        self._start = start

    def ready(self, now: float) -> int:
        """Events due by now."""
        return int(np.searchsorted(self._due, now - self._start, side="right"))

    def wait(self, sent: int, now: float) -> float:
        """Seconds until the event after the first `sent` is due; 0 when it is, or when there is none."""
        if sent >= len(self._due):
            return 0.0
        return max(0.0, float(self._due[sent]) - (now - self._start))  # the very difference that `ready` looks at

    def postpone(self, sent: int, now: float) -> None:
        """Let the next event be due now at the earliest, after a pause: the rest keeps its pace, no burst follows."""
        if sent < len(self._due):
            self._start = max(self._start, now - float(self._due[sent]))


def _positive(value: float, what: str) -> None:
    if not (value > 0 and np.isfinite(value)):
        raise SettingsError(f"the {what} of a replay must be a positive number, not {value}")
