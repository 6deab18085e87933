"""The fused score of the device's SRM and the cloud's embedding, as tables of a bundle.

The SRM scores item i with h · o_i + c_i (hidden state h), the cloud's calibrated embedding with ê · v_i + b_i. The
fused score is the score fusion of LSC4Rec (arXiv 2501.05647, collaborative inference)::

    fused = α z(cloud) + (1 - α) z(SRM),      z(x) = (x - mean) / std over the whole catalogue
    α = (1 - s) α₀ + s α₁                     s the staleness of the embedding that is served with

and without an embedding the SRM ranks alone. That α follows s is ours. Since z is taken over the whole catalogue (seen
items and items outside the candidate list included), the score of an item does not depend on what it is compared with,
and the standard deviations are quadratic forms of ê and h: std² = xᵀ Cov x with x = [ê, 1] and Cov the covariance of
the rows [v_i, b_i], a constant of the bundle. So a fused score is one dot product q · t_i with

    q = [α/σ_cloud · [ê, 1], (1-α)/σ_SRM · [h, 1]]        t_i = [v_i, b_i, o_i, c_i], each column less its mean

which gives the catalogue in one matrix product, and a candidate list in one gather and one product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from streams.bundle import Bundle

Floats = npt.NDArray[np.float32]
ItemVectors = Literal["float32", "int8"]

SMALLEST_VARIANCE: Final = 1e-12
"""Scores that differ less over the catalogue have no say."""


@dataclass(frozen=True)
class FusionTables:
    """What fused scores are made of.

    Attributes
    ----------
    rows
        (N, D) t_i, with D = d + 1 + h + 1.
    split
        d + 1: where the SRM's columns begin.
    covariance
        (D, D) float64, of the rows.
    alpha
        α₀ and α₁: weight of the cloud's z-scores at staleness 0 and 1.
    trends
        β₀ and β₁: weight of what a neighbour table says (`streams.neighbours`) at staleness 0 and 1.
    """

    rows: Floats
    split: int
    covariance: npt.NDArray[np.float64]
    alpha: tuple[float, float]
    trends: tuple[float, float]

    @property
    def cloud_covariance(self) -> npt.NDArray[np.float64]:
        """(d + 1, d + 1) of the cloud's columns."""
        return self.covariance[: self.split, : self.split]

    @property
    def srm_covariance(self) -> npt.NDArray[np.float64]:
        """(h + 1, h + 1) of the SRM's columns."""
        return self.covariance[self.split :, self.split :]

    @property
    def cross_covariance(self) -> npt.NDArray[np.float64]:
        """(h + 1, d + 1): of the SRM's columns with the cloud's."""
        return self.covariance[self.split :, : self.split]

    @staticmethod
    def of(bundle: Bundle) -> FusionTables:
        """The tables of a bundle."""
        tensors = bundle.device
        parts = ("item_vectors", "item_bias", "srm.item_out", "srm.bias_out")
        rows = np.column_stack([tensors[name].astype(np.float64) for name in parts])
        rows -= rows.mean(axis=0)
        alpha, trends = (tensors[f"fusion.{name}"].tolist() for name in ("alpha", "trends"))
        return FusionTables(
            rows=rows.astype(np.float32),
            split=tensors["item_vectors"].shape[1] + 1,
            covariance=rows.T @ rows / len(rows),
            alpha=(alpha[0], alpha[1]),
            trends=(trends[0], trends[1]),
        )

    def rounded(self) -> FusionTables:
        """The same with the rows that `QuantisedRows` makes of these."""
        quantised, at = QuantisedRows.of(self), self.split - 1
        rows = self.rows.copy()
        rows[:, :at] = quantised.codes[:, :at] * quantised.side[:, :1]
        rows[:, at + 1 : -1] = quantised.codes[:, at:] * (quantised.side[:, :1] / np.float32(quantised.srm_factor))
        return replace(self, rows=rows)


def square_root(covariance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n, n) G with G Gᵀ = Cov, so that a standard deviation is a length: xᵀ Cov x = ‖x G‖²."""
    values, vectors = np.linalg.eigh(covariance)
    root: npt.NDArray[np.float64] = vectors * np.sqrt(np.maximum(values, 0))
    return root


@dataclass(frozen=True)
class QuantisedRows:
    """Item rows [v_i, o_i] in eight bits, with one scale a row; the biases stay float32.

    The columns of the SRM are first made as large as those of the cloud, on average, so that one scale serves a row;
    the query is divided by the same (`srm_factor`).

    Attributes
    ----------
    codes
        (N, d + h) int8; row i is codes_i · scale_i.
    side
        (N, 3) float32: scale_i, b_i, c_i.
    srm_factor
        What the SRM's columns were multiplied with.
    """

    codes: npt.NDArray[np.int8]
    side: Floats
    srm_factor: float

    @staticmethod
    def of(tables: FusionTables) -> QuantisedRows:
        """Round to the nearest of 255 levels, symmetric about 0."""
        split = tables.split
        cloud, srm = tables.rows[:, : split - 1], tables.rows[:, split:-1]
        factor = float(np.sqrt(np.mean(np.square(cloud)) / max(float(np.mean(np.square(srm))), 1e-20))) or 1.0
        joined = np.concatenate([cloud, srm * np.float32(factor)], axis=1)
        scale = np.maximum(np.abs(joined).max(axis=1), 1e-20) / 127
        codes = np.rint(joined / scale[:, None]).astype(np.int8)
        side = np.stack([scale, tables.rows[:, split - 1], tables.rows[:, -1]], axis=1).astype(np.float32)
        return QuantisedRows(codes, side, factor)
