"""Refresh when the user has moved away from what the cached embedding knows."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
import numpy as np

from device_agent.policies.base import BasePolicy, Bools, Floats, Signals
from device_agent.staleness import COS_RECENT

_OFFSET: Final = 0  # in scratch: how far the device's threshold has moved from `start`
_BALANCE: Final = 1  # in scratch: tokens beyond the one that a device begins with
_BURST: Final = 3.0  # tokens at most
_LARGEST: Final = 2.0  # of 1 - cos


class Drift(BasePolicy, frozen=True):
    """Refresh when 1 - cos(e, m) reaches a threshold: e the cached embedding, m what was taken since.

    Give either ``threshold``, fixed, or ``rate``, the wanted requests for each interaction. With ``rate`` each device
    finds its own threshold θ: after every interaction that it has an embedding for, ::

        θ ← clip(θ + step · (asked - rate), 0, 2)

    where *asked* is 1 if a request left (a wish during a request under way does not count). This is stochastic
    approximation of a quantile (Robbins and Monro 1951) with a constant step, so that it follows a user who changes.
    It begins at ``start``, which may be far from where a short history would end; so a token bucket holds it: ``rate``
    tokens come in with each such interaction, a request takes one, a device begins with one and saves up to three. T
    interactions never ask more than 1 + rate · T times.
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
        rate = np.float32(self.rate or 0)
        offset, balance = scratch[:, _OFFSET], scratch[:, _BALANCE]
        due = (score >= offset + np.float32(self.start)) & (balance >= 0) & signals.has_embedding
        asked = due & ~signals.in_flight
        moved = offset + np.float32(self.step) * (asked - rate)
        np.clip(moved, -self.start, _LARGEST - self.start, out=moved)
        offset[...] = np.where(signals.has_embedding, moved, offset)
        left = np.minimum(balance + rate - asked, np.float32(_BURST - 1))
        balance[...] = np.where(signals.has_embedding, left, balance)
        return due, score
