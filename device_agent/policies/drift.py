"""Refresh when the user has moved away from what the cached embedding knows."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from device_agent.policies.base import Floats, Signals
from device_agent.policies.scored import ScoredPolicy
from device_agent.staleness import COS_RECENT


class Drift(ScoredPolicy, frozen=True):
    """Refresh when 1 - cos(e, m) is high: e the cached embedding, m what was taken since."""

    largest: ClassVar[float] = 2.0

    @property
    def due_reason(self) -> str:
        """The user moved on."""
        return "drift"

    def score(self, signals: Signals) -> Floats:
        """1 - cos(e, m)."""
        distance: Floats = np.float32(1) - signals.phi[:, COS_RECENT]
        return distance
