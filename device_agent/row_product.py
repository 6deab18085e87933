"""A matrix product whose rows have the same bits whatever other rows are computed with them.

BLAS takes other kernels for one row than for several, so a product of B rows is not the same to the bit for every B.
Here each row is one vector-matrix product of fixed size.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_SINGLE_THREAD_LIMIT: Final = 9000
"""OpenBLAS computes a vector-matrix product of 9,216 and more elements with several threads if it has them, and
their number then shows in the last bits. Products are cut into blocks smaller than that."""


class RowProduct:
    """x W + b for rows x.

    Parameters
    ----------
    weight
        (k, n)
    bias
        (n,)
    """

    def __init__(self, weight: npt.NDArray[np.floating], bias: npt.NDArray[np.floating]) -> None:
        k, n = weight.shape
        blocks = -(-n // max(1, _SINGLE_THREAD_LIMIT // k))
        width = -(-n // blocks)
        padded = np.zeros((k, blocks * width), np.float32)
        padded[:, :n] = weight
        self._columns = n
        self._padded = blocks * width
        self._blocks = np.ascontiguousarray(padded.reshape(k, blocks, width).transpose(1, 0, 2))
        self._bias = np.asarray(bias, np.float32)

    def __call__(self, x: Floats) -> Floats:
        """(B, n) from x (B, k)."""
        product: Floats = np.matmul(x[:, None, None, :], self._blocks).reshape(len(x), self._padded)
        if self._padded != self._columns:
            product = product[:, : self._columns]
        product += self._bias
        return product
