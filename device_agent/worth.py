"""What a refresh is expected to gain: the discounted gain 1 / log2(1 + rank) that it adds to what is served without it.

The staleness s is about the cached embedding as it is; much of that the device repairs itself, and much the broadcast
tells everybody. w is about what is left, which only a refresh can bring; where no tables are sent it is too low. How it
is learned is in `cloud_worker.training.worth`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from device_agent.signal_head import SignalHead, with_known_ends

Floats = npt.NDArray[np.float32]


class WorthModel:
    """The bundle's expectation. A row's bits do not depend on the rows beside it."""

    def __init__(self, tensors: Mapping[str, Floats]) -> None:
        self._gain = SignalHead(tensors, "worth")

    def __call__(self, phi: Floats, gap: npt.NDArray[np.integer]) -> Floats:
        """(...) w from φ (..., P): 0 at gap 0, and 1, which no refresh gains, without an embedding (gap below 0)."""
        return with_known_ends(self._gain(phi), gap)
