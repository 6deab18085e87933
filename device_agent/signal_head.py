"""A head over the staleness signals, in numpy: y = w₂ · tanh(W₁ φ_standardised + b₁) + b₂.

A bundle has two: ``staleness`` (`device_agent.staleness`) and ``worth`` (`device_agent.worth`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_ZERO: Final = np.int64(0)


def folded(tensors: Mapping[str, Floats], name: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(R, P) and (R,): a head's first layer with the standardisation of φ folded into it."""
    weight = tensors[f"{name}.0.weight"].astype(np.float64) / tensors["phi.scale"]
    bias: npt.NDArray[np.float64] = tensors[f"{name}.0.bias"] - weight @ tensors["phi.mean"]
    return weight, bias


def with_known_ends(values: Floats, gap: npt.NDArray[np.integer]) -> Floats:
    """(...) what a head says; 0 at gap 0, where the cached embedding is the fresh one, 1 without any (gap below 0)."""
    if np.count_nonzero(gap > _ZERO) == gap.size:
        return values
    return np.where(gap > _ZERO, values, (gap < _ZERO).astype(np.float32))


class SignalHead:
    """One head of a bundle. A row's bits do not depend on the rows beside it."""

    def __init__(self, tensors: Mapping[str, Floats], name: str) -> None:
        weight, bias = folded(tensors, name)
        self._first = np.ascontiguousarray(weight, dtype=np.float32)
        self._first_bias = bias.astype(np.float32)
        self._second = np.ascontiguousarray(tensors[f"{name}.2.weight"][0], dtype=np.float32)
        self._second_bias = np.array(tensors[f"{name}.2.bias"][0], np.float32)

    def __call__(self, phi: Floats) -> Floats:
        """(...) y from φ (..., P), not standardised."""
        inner = np.vecdot(phi[..., None, :], self._first)
        inner += self._first_bias
        np.tanh(inner, out=inner)
        y: Floats = np.vecdot(inner, self._second) + self._second_bias
        return y
