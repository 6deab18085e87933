"""Refresh when the cached embedding is not to be relied on: the bundle's staleness head decides.

Source: SCaLRec (arXiv 2601.22543), reliability of cached semantics: a reconstruction from the abstract.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from device_agent.policies.base import Floats, Signals
from device_agent.policies.scored import ScoredPolicy


class Reliability(ScoredPolicy, frozen=True):
    """Refresh when staleness s = 1 - r is high.

    s is the probability that a fresh embedding would put the next item clearly higher than the cached one, as it is.
    It does not leave out what the device repairs itself; the policy ``worth`` does.
    """

    step: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.02
    start: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.2

    @property
    def due_reason(self) -> str:
        """The embedding is not relied on."""
        return "unreliable"

    def score(self, signals: Signals) -> Floats:
        """Staleness s."""
        return signals.staleness
