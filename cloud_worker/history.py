"""What a user model is told about one user."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class History:
    """A device's window, whose it is, and when it asks.

    Parameters
    ----------
    items, times_ms
        (n,) item indexes of the bundle, oldest first, and (n,) their event times.
    key
        The user's 64-bit pseudonym, `streams.events.event_hash` of the device id: who he is in the live index.
    at_ms
        Event time of the question.
    """

    items: npt.NDArray[np.int32]
    times_ms: npt.NDArray[np.int64]
    key: int
    at_ms: int
