"""Refresh when the device's own model and the cached embedding disagree about what comes next.

Source: LSC4Rec (arXiv 2501.05647), request by rank disagreement. As released it compares ranks over the candidate
list in batches of 16 under a global quota (`driftline evaluate collaborative` has that rule); this one is for each
device alone, and compares the scores over the whole catalogue, whose correlation has a closed form.
"""

from __future__ import annotations

from typing import ClassVar, Final

import numpy as np

from device_agent.policies.base import Floats, Signals
from device_agent.policies.scored import ScoredPolicy
from streams.bundle import PHI

_AGREEMENT: Final = PHI.index("agreement")


class Disagreement(ScoredPolicy, frozen=True):
    """Refresh when 1 - ρ is high: ρ the correlation of both models' scores over the catalogue."""

    largest: ClassVar[float] = 2.0

    @property
    def due_reason(self) -> str:
        """They disagree."""
        return "disagreement"

    def score(self, signals: Signals) -> Floats:
        """1 - ρ."""
        apart: Floats = np.clip(np.float32(1) - signals.phi[:, _AGREEMENT], 0, np.float32(self.largest))
        return apart
