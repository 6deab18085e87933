"""Refresh when it is expected to gain enough: the bundle's worth head decides (`device_agent.worth`)."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from device_agent.policies.base import Floats, Signals
from device_agent.policies.scored import ScoredPolicy


class Worth(ScoredPolicy, frozen=True):
    """Refresh when the gain w that it is expected to add is high.

    w is in discounted gain 1 / log2(1 + rank) of what comes next, beyond what the device repairs itself and what the
    broadcast tells it, so the threshold is a price: with 0.05 a refresh has to be worth as much as every twentieth next
    item moved from nowhere to the first place.
    """

    step: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.005
    start: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.05

    @property
    def due_reason(self) -> str:
        """A refresh pays."""
        return "worth"

    def score(self, signals: Signals) -> Floats:
        """Expected gain w, in [0, 1]."""
        return np.clip(signals.worth, np.float32(0), np.float32(1))
