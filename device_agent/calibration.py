"""Repairing a stale embedding on the device.

With x = [e, m, h, φ_standardised]: the cached embedding, the recency-weighted mean of what was taken since, the state
of the device's own SRM, which has seen everything, and the staleness signals::

    gate = σ(W_g x + b_g)
    ê    = e + (1 - gate) ⊙ tanh(gap / τ) ⊙ (MLP(x) - e)         MLP: linear, GELU (erf), linear

At gap 0 the tanh is 0, so a fresh embedding is left alone by construction, whatever the weights. τ is the bundle's,
chosen in training: with a small one the stale embedding is replaced after one interaction, with a large one it fades.

Source: SCaLRec (arXiv 2601.22543), on-device calibration: a reconstruction from the abstract; h and the tanh are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import erf, expit

from streams.bundle import PHI

Floats = npt.NDArray[np.float32]

_ONE: Final = np.array(1, np.float32)
_WIDE_OPEN: Final = 10
"""gap / τ from which on tanh(gap / τ) is 1 in float32."""


class Calibrator:
    """The gate and the MLP of a bundle.

    The gate and the first layer of the MLP read the same input, so they are one matrix; the standardisation of φ and
    the constants of the GELU are folded into the weights.

    Parameters
    ----------
    tensors
        Those of `streams.bundle.DEVICE_TENSORS` that begin with ``calibrator.`` and ``phi.``.
    """

    def __init__(self, tensors: Mapping[str, Floats]) -> None:
        gate, first, second = (
            tensors[f"calibrator.{each}.weight"].astype(np.float64) for each in ("gate", "mlp.0", "mlp.2")
        )
        self.dim = gate.shape[0]
        mean, scale = tensors["phi.mean"].astype(np.float64), tensors["phi.scale"].astype(np.float64)
        # gelu(z) = z/√2 · √2/2 · (1 + erf(z/√2)): with z/√2 as what the matrix yields, two constants disappear.
        # The gate appears only as 1 - σ(z) = σ(-z), so its weights are negated.
        weight = np.concatenate([-gate, first / np.sqrt(2)])
        bias = np.concatenate([-tensors["calibrator.gate.bias"], tensors["calibrator.mlp.0.bias"] / np.sqrt(2)])
        of_phi = weight[:, -len(PHI) :]
        of_phi /= scale
        bias = bias - of_phi @ mean
        self._joint = np.ascontiguousarray(weight.T, dtype=np.float32)
        self._joint_bias = bias.astype(np.float32)
        self._second = np.ascontiguousarray(second.T * (np.sqrt(2) / 2), dtype=np.float32)
        tau = float(tensors["calibrator.tau"][0])
        self._opening = np.tanh(np.arange(math.ceil(_WIDE_OPEN * tau) + 1) / tau).astype(np.float32)
        self._second_bias = tensors["calibrator.mlp.2.bias"].astype(np.float32)

    def __call__(
        self, embedding: Floats, recent: Floats, hidden: Floats, phi: Floats, gap: npt.NDArray[np.integer]
    ) -> Floats:
        """Calibrated embeddings ê.

        Parameters
        ----------
        embedding, recent
            (R, d) cached embeddings e, and means m of what was taken since (zero where nothing was).
        hidden
            (R, h) SRM states h before the interaction that is served.
        phi
            (R, P) signals as `device_agent.staleness` gives them, not standardised.
        gap
            (R,) interactions since as_of.

        Returns
        -------
        (R, d) float32
        """
        y = np.concatenate((embedding, recent, hidden, phi), axis=1) @ self._joint
        y += self._joint_bias
        inner = y[:, self.dim :]
        hidden = erf(inner)
        hidden += _ONE
        hidden *= inner
        change: Floats = hidden @ self._second
        change += self._second_bias
        change -= embedding
        change *= expit(y[:, : self.dim])
        change *= self._opening.take(gap, mode="clip")[:, None]
        change += embedding
        return change
