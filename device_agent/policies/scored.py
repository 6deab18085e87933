"""Policies that refresh when a score is high: by a threshold, or by one that each device finds for a wanted rate."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

import msgspec
import numpy as np

from device_agent.policies.base import BasePolicy, Bools, Floats, Signals

_OFFSET: Final = 0  # in scratch: how far the device's threshold has moved from `start`
_BALANCE: Final = 1  # in scratch: tokens beyond the one that a device begins with
_BURST: Final = 3.0  # tokens at most


class ScoredPolicy(BasePolicy, frozen=True):
    """Parent of them: a subclass gives the score, and the range in which it lies.

    Give either ``threshold``, fixed, or ``rate``, the wanted requests for each interaction. With ``rate`` each device
    finds its own threshold θ: after every interaction that it has an embedding for, ::

        θ ← clip(θ + step · (asked - rate), 0, largest)

    where *asked* is 1 if a request left (a wish during a request under way does not count). This is stochastic
    approximation of a quantile (Robbins and Monro 1951) with a constant step, so that it follows a user who changes.
    It begins at ``start``, which may be far from where a short history would end; so a token bucket holds it: ``rate``
    tokens come in with each such interaction, a request takes one, a device begins with one and saves up to three. T
    interactions never ask more than 1 + rate · T times.
    """

    largest: ClassVar[float] = 1.0
    """No score is above it; none is below 0."""

    threshold: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    rate: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    step: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.05
    start: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.5

    def __post_init__(self) -> None:
        if (self.threshold is None) == (self.rate is None):
            raise ValueError("wants exactly one of threshold and rate")
        for name, value in (("threshold", self.threshold), ("start", self.start)):
            if value is not None and value > self.largest:
                raise ValueError(f"{name} {value} is above {self.largest}, the largest score there is")

    def score(self, signals: Signals) -> Floats:
        """(B,) how much a refresh is wanted, in [0, largest]."""
        raise NotImplementedError

    def due(self, signals: Signals, scratch: Floats) -> tuple[Bools, Floats]:
        """The score is at least the threshold."""
        score = self.score(signals)
        if self.threshold is not None:
            return (score >= np.float32(self.threshold)) & signals.has_embedding, score
        rate = np.float32(self.rate or 0)
        offset, balance = scratch[:, _OFFSET], scratch[:, _BALANCE]
        due = (score >= offset + np.float32(self.start)) & (balance >= 0) & signals.has_embedding
        asked = due & ~signals.in_flight
        moved = offset + np.float32(self.step) * (asked - rate)
        np.clip(moved, -self.start, self.largest - self.start, out=moved)
        offset[...] = np.where(signals.has_embedding, moved, offset)
        left = np.minimum(balance + rate - asked, np.float32(_BURST - 1))
        balance[...] = np.where(signals.has_embedding, left, balance)
        return due, score
