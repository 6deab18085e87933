"""Refresh when the user has moved away from what the cached embedding knows."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
import numpy as np

from device_agent.policies.base import BasePolicy, Bools, Floats, Signals
from device_agent.staleness import COS_RECENT

_OFFSET: Final = 0  # in scratch: how far the device's threshold has moved from `start`
_LARGEST: Final = 2.0  # of 1 - cos


class Drift(BasePolicy, frozen=True):
    """Refresh when 1 - cos(e, m) reaches a threshold: e the cached embedding, m what was taken since.

    Give either ``threshold``, fixed, or ``rate``, the wanted requests for each interaction. With ``rate`` each device
    finds its own threshold θ: after every interaction that it has an embedding for, ::

        θ ← clip(θ + step · (asked - rate), 0, 2)

    where *asked* is 1 if a request left (a wish during a request under way does not count). This is stochastic
    approximation of a quantile (Robbins and Monro 1951) with a constant step, so that it follows a user who changes.
    While the clip is not touched, T interactions have ask-rate within |θ_T - θ_0| / (step · T) of ``rate``.
    """

    threshold: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    rate: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    step: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.05
    start: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.5

    def __post_init__(self) -> None:
        if (self.threshold is None) == (self.rate is None):
            raise ValueError("wants exactly one of threshold and rate")

    @property
    def due_reason(self) -> str:
        """The user moved on."""
        return "drift"

    def due(self, signals: Signals, scratch: Floats) -> tuple[Bools, Floats]:
        """The cosine distance is at least the threshold; it is the score."""
        score = np.float32(1) - signals.phi[:, COS_RECENT]
        if self.threshold is not None:
            return (score >= np.float32(self.threshold)) & signals.has_embedding, score
        offset = scratch[:, _OFFSET]
        due = (score >= offset + np.float32(self.start)) & signals.has_embedding
        moved = offset + np.float32(self.step) * ((due & ~signals.in_flight) - np.float32(self.rate or 0))
        np.clip(moved, -self.start, _LARGEST - self.start, out=moved)
        offset[...] = np.where(signals.has_embedding, moved, offset)
        return due, score
