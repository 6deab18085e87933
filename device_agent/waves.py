"""Cutting a batch of events into waves that hold at most one event a device.

The devices of a wave are stepped together, so the model work of many devices is a few matrix products; the order of
one device's events is kept because they lie in different waves.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt


def cut_waves(keys: Sequence[Hashable], *, limit: int | None = None) -> list[npt.NDArray[np.intp]]:
    """Positions of `keys`, as waves to be stepped one after the other.

    The k-th event of a device is in the k-th wave, so the waves are as few as they can be.

    Parameters
    ----------
    keys
        The device of each event, in the order of the events.
    limit
        Most events in a wave; a longer one is cut. None: no limit.

    Returns
    -------
    list of (n_w,) arrays
        Ascending positions within each wave; every position is in exactly one.
    """
    seen: dict[Hashable, int] = {}
    waves: list[list[int]] = []
    for position, key in enumerate(keys):
        nth = seen.get(key, 0)
        seen[key] = nth + 1
        if nth == len(waves):
            waves.append([])
        waves[nth].append(position)
    cut: list[npt.NDArray[np.intp]] = []
    for wave in waves:
        step = limit or len(wave)
        cut += [np.array(wave[start : start + step], np.intp) for start in range(0, len(wave), step)]
    return cut
