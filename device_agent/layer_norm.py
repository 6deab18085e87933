"""LayerNorm in numpy, as torch has it: each row is treated alone, so its bits do not depend on the others."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

EPSILON: Final = 1e-5
"""torch's; added to the variance."""
_EPSILON: Final = np.array(EPSILON, np.float32)


def standardised(x: Floats) -> Floats:
    """Rows (..., h) less their mean and with variance 1."""
    share = np.array(1 / x.shape[-1], np.float32)
    mean = np.add.reduce(x, axis=-1, keepdims=True)
    mean *= share
    centred: Floats = x - mean
    variance = np.vecdot(centred, centred)[..., None]
    variance *= share
    variance += _EPSILON
    centred /= np.sqrt(variance)
    return centred


def layer_norm(x: Floats, weight: Floats, bias: Floats) -> Floats:
    """LayerNorm of rows (..., h) with weight and bias (h,)."""
    normed = standardised(x)
    normed *= weight
    normed += bias
    return normed
