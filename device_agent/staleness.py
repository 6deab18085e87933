"""How stale is a cached embedding: what the signals φ are, and the score that a bundle's head makes of them.

The signals (P = 10, in the order of `streams.bundle.PHI`) compare the cached embedding e with what the device has done
since. v̂ is an item vector of length one, and m the recency-weighted mean of the v̂ since the embedding's as_of,
m = Σ γ^j v̂_(t-j) / Σ γ^j with γ the manifest's ``recency_decay``. Over the whole catalogue the cloud scores an item
⟨e, v⟩ + b and the SRM, in the state h after the last interaction, ⟨h, o⟩ + c; σ_c and σ_s are the standard deviations
of these scores, at least 1e-6:

====================  ======================================================================================
cos_cached_recent     cos(e, m); 1 while there is no m (gap 0, or only items the bundle does not know since)
cos_cached_last       cos(e, v̂ of the last item); 0 on a device without a history
log_gap               ln(1 + interactions since as_of)
log_age               ln(1 + hours of event time since the embedding was asked for)
spread                1 - ‖m‖: 0 where the recent items agree, near 1 where they point everywhere; 0 without an m
agreement             correlation of the cloud's and the SRM's scores
cloud_deviation       ln σ_c
srm_deviation         ln σ_s
surprise              z-score, under e, of the last item; 0 on a device without a history
log_count             ln(1 + interactions of the device)
====================  ======================================================================================

The last item is the last one of the bundle; interactions with items outside of it count in gap and count alone. Without
an embedding φ is zero. How φ is computed is in `device_agent.signals`.

Staleness s is the sigmoid of a head over them (`device_agent.signal_head`): how likely a fresh embedding would put what
comes next clearly higher than the cached one does, as it is. Reliability is 1 - s. At gap 0 the cached embedding is the
fresh one, so s = 0 whatever the head says; without an embedding s = 1. What the device can repair itself is not left
out: that is `device_agent.worth`.

Source: SCaLRec (arXiv 2601.22543), "reliability of cached semantics": a reconstruction from the abstract.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from device_agent.signal_head import SignalHead, with_known_ends
from streams.bundle import PHI

Floats = npt.NDArray[np.float32]

COS_RECENT: Final = PHI.index("cos_cached_recent")
COS_LAST: Final = PHI.index("cos_cached_last")
LOG_GAP: Final = PHI.index("log_gap")
LOG_AGE: Final = PHI.index("log_age")
SPREAD: Final = PHI.index("spread")
AGREEMENT: Final = PHI.index("agreement")
CLOUD_DEVIATION: Final = PHI.index("cloud_deviation")
SRM_DEVIATION: Final = PHI.index("srm_deviation")
SURPRISE: Final = PHI.index("surprise")
LOG_COUNT: Final = PHI.index("log_count")


class StalenessModel:
    """The bundle's staleness score. A row's bits do not depend on the rows beside it."""

    def __init__(self, tensors: Mapping[str, Floats]) -> None:
        self._logit = SignalHead(tensors, "staleness")

    def __call__(self, phi: Floats, gap: npt.NDArray[np.integer]) -> Floats:
        """(...) staleness in [0, 1] from φ (..., P); gaps (...) are below 0 where there is no embedding."""
        return with_known_ends(expit(self._logit(phi)), gap)
