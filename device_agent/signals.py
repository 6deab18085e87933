"""Computing the staleness signals φ on the device, and the mean m that some of them are about.

What each signal says is in `device_agent.staleness`; `cloud_worker.training.signals` computes the same for training.
The three signals over the whole catalogue are closed forms of constants of the bundle, so none of them looks at the
catalogue. With C the covariance of the rows [v, b, o, c] in blocks C_cc, C_cs, C_ss (`device_agent.fusion`),

    σ_c² = [e, 1]ᵀ C_cc [e, 1]      σ_s² = [h, 1]ᵀ C_ss [h, 1]      agreement = [e, 1]ᵀ C_cs [h, 1] / (σ_c σ_s)

σ_c changes only with the embedding: it is computed when one is taken into use and stays in the record's φ. The rest
costs one product of h with a constant matrix for a device, whatever the number of arms, and dot products.

Given the same record, φ after an interaction has the same bits whatever other devices are in the wave: products with
matrices are `RowProduct`, the rest treats each row alone. (φ is no part of what a record keeps from interactions alone:
it depends on when embeddings arrive.)
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from device_agent.fusion import SMALLEST_VARIANCE, FusionTables, square_root
from device_agent.row_product import RowProduct
from device_agent.srm import largest_state
from device_agent.staleness import (
    AGREEMENT,
    CLOUD_DEVIATION,
    COS_LAST,
    COS_RECENT,
    LOG_AGE,
    LOG_COUNT,
    LOG_GAP,
    SPREAD,
    SRM_DEVIATION,
    SURPRISE,
)
from streams.bundle import Bundle
from streams.errors import BundleError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

LARGEST_HALF: Final = 65504.0
"""The largest number of an embedding, which is float16."""

# Constants are arrays without a dimension: numpy takes a microsecond to make one of a Python number at each use.
_PER_HOUR: Final = np.array(1 / 3_600_000)
_TINY: Final = np.array(1e-30, np.float32)
_ONE: Final = np.array(1, np.float32)
_HALF: Final = np.array(0.5, np.float32)
_SMALLEST_VARIANCE: Final = np.array(SMALLEST_VARIANCE, np.float32)
_BLOCK: Final = 256
"""Rows at a time in `recent_of_window`: 256 × 50 items × 128 floats are 6.5 MB."""


def unit_vectors(vectors: Floats) -> Floats:
    """(n, d) vectors with length one; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions: Floats = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return directions


class SignalWriter:
    """Writes φ, with the tables of one bundle.

    Attributes
    ----------
    directions
        (N + 1, d) unit item vectors; the last row is zero: the direction of item -1, the last item of a device
        without a history.

    Raises
    ------
    BundleError
        Numbers of the bundle are so large, or a scale of φ so small, that φ could be no number.
    """

    def __init__(self, bundle: Bundle) -> None:
        _check_range(bundle)
        tensors, tables = bundle.device, FusionTables.of(bundle)
        vectors, bias = (tensors[name].astype(np.float64) for name in ("item_vectors", "item_bias"))
        self.directions = np.zeros((len(vectors) + 1, vectors.shape[1]), np.float32)
        self.directions[:-1] = unit_vectors(tensors["item_vectors"])
        of_cloud = square_root(tables.cloud_covariance)
        self._of_embedding = RowProduct(of_cloud[:-1], of_cloud[-1])
        of_srm = np.concatenate([square_root(tables.srm_covariance), tables.cross_covariance], axis=1)
        self._of_hidden = RowProduct(of_srm[:-1], of_srm[-1])
        self._cut = len(of_srm)
        self._centre = vectors.mean(axis=0).astype(np.float32)
        # ‖v‖, b less the mean of b, and 1; zeros for item -1
        self._items = np.zeros((len(vectors) + 1, 3), np.float32)
        self._items[:-1] = np.stack(
            [np.linalg.norm(vectors, axis=1), bias - bias.mean(), np.ones(len(vectors))], axis=1
        )

    def write_embedded(self, phi: Floats, embedding: Floats) -> None:
        """Write into `phi` (n, P) what depends on a new embedding (n, d) alone; `write` wants it there."""
        y = self._of_embedding(embedding)
        phi[:, CLOUD_DEVIATION] = np.log(np.maximum(np.vecdot(y, y), _SMALLEST_VARIANCE)) * _HALF

    def write(
        self,
        phi: Floats,
        *,
        embedding: Floats,
        inverse_norm: Floats,
        mean: Floats,
        norm: Floats | None,
        gap: Ints,
        last_item: npt.NDArray[np.int32],
        hidden: Floats,
        count: Ints,
    ) -> None:
        """Write the other signals, but for log_age, into `phi` (B, A, P).

        Parameters
        ----------
        embedding, inverse_norm
            (B, A, d) cached embeddings e, and (B, A) 1 / ‖e‖.
        mean, norm
            (B, A, d) and (B, A): m and its weight Σ γ^j, which is 0 where nothing was taken since as_of. None: it is
            nowhere 0.
        gap
            (B, A) interactions since as_of, at least 0.
        last_item, hidden, count
            (B,), (B, h) and (B,) of the devices: last item (-1: none), SRM state, interactions.
        """
        along_last = np.vecdot(embedding, self.directions.take(last_item, axis=0)[:, None])
        length = np.sqrt(np.vecdot(mean, mean)) + _TINY
        np.divide(np.vecdot(embedding, mean) * inverse_norm, length, out=phi[..., COS_RECENT])
        np.multiply(along_last, inverse_norm, out=phi[..., COS_LAST])
        np.log1p(gap.astype(np.float32), out=phi[..., LOG_GAP])
        np.subtract(_ONE, length, out=phi[..., SPREAD])
        if norm is not None:
            nothing = norm == 0
            phi[nothing, COS_RECENT] = 1
            phi[nothing, SPREAD] = 0

        of_hidden = self._of_hidden(hidden)
        of_srm = of_hidden[:, : self._cut]
        deviation = np.sqrt(np.maximum(np.vecdot(of_srm, of_srm), _SMALLEST_VARIANCE))
        phi[..., SRM_DEVIATION] = np.log(deviation)[:, None]
        inverse = np.exp(-phi[..., CLOUD_DEVIATION])
        together = np.vecdot(embedding, of_hidden[:, None, self._cut : -1])
        together += of_hidden[:, -1:]
        together /= deviation[:, None]
        np.multiply(together, inverse, out=phi[..., AGREEMENT])
        item = self._items.take(last_item, axis=0)
        own = along_last * item[:, :1]
        own += item[:, 1:2]
        own -= np.vecdot(embedding, self._centre) * item[:, 2:]
        np.multiply(own, inverse, out=phi[..., SURPRISE])
        phi[..., LOG_COUNT] = np.log1p(count.astype(np.float32))[:, None]


def write_age(phi: Floats, age_ms: Ints) -> None:
    """Write log_age into `phi` (..., P) from the event time (...) since the embedding was asked for, at least 0."""
    phi[..., LOG_AGE] = np.log1p(age_ms * _PER_HOUR)


def _check_range(bundle: Bundle) -> None:
    tensors = bundle.device
    if not (tensors["phi.scale"] >= np.finfo(np.float32).tiny).all():
        raise BundleError(f"bundle {bundle.path}: phi.scale has a scale that is not positive", remedy="train it anew")
    largest, state = float(np.finfo(np.float32).max), max(1.0, largest_state(bundle))
    for weights, bias, size in (("item_vectors", "item_bias", LARGEST_HALF), ("srm.item_out", "srm.bias_out", state)):
        rows = np.column_stack([tensors[weights], tensors[bias]]).astype(np.float64)
        if not np.square(rows).sum(axis=1).max() * (rows.shape[1] * size**2) < largest:
            raise BundleError(
                f"bundle {bundle.path}: {weights} and {bias} are so large that scores would overflow",
                remedy="train it anew with weight decay",
            )


def recent_of_window(
    history_items: npt.NDArray[np.int32],
    history_len: Ints,
    gap: Ints,
    directions: Floats,
    decay: float,
) -> tuple[Floats, Floats]:
    """The mean m over the interactions since as_of, and its weight Σ γ^j, from the history ring.

    An embedding that arrives late has missed `gap` interactions; m covers the last min(gap, W) items in the ring. The
    gap also counts interactions with items that the bundle does not know, so where there were such, some items from
    before as_of are in m too.

    Parameters
    ----------
    history_items
        (B, W) ring of item indexes; the newest is in slot (history_len - 1) mod W.
    history_len, gap
        (B,) items pushed into the ring, and interactions since as_of.
    directions
        (N, d) unit item vectors.
    decay
        γ.

    Returns
    -------
    (B, d) means, zero where there was nothing, and (B,) weights
    """
    window = history_items.shape[1]
    covered = np.minimum(np.minimum(gap, history_len), window)
    back = np.arange(int(covered.max(initial=0)))
    weight = (back[None, :] < covered[:, None]) * np.float64(decay) ** back
    slots = (history_len[:, None] - 1 - back) % window
    items = np.take_along_axis(history_items, slots, axis=1)
    sums = np.zeros((len(gap), directions.shape[1]), np.float32)
    weight32 = weight.astype(np.float32)
    for start in range(0, len(gap) if len(back) else 0, _BLOCK):
        rows = slice(start, start + _BLOCK)
        sums[rows] = np.matmul(weight32[rows, None, :], directions.take(items[rows], axis=0))[:, 0]
    norms = weight32.sum(axis=1, dtype=np.float32)
    sums /= np.maximum(norms, _ONE)[:, None]
    return sums, norms


def inverse_norms(embeddings: Floats) -> Floats:
    """(n,) 1 / ‖e‖ of the embeddings (n, d); of a zero one 0, so that it points nowhere: all its cosines are 0."""
    lengths = np.linalg.norm(embeddings, axis=1)
    inverse: Floats = np.divide(1, lengths, out=np.zeros(len(lengths), np.float32), where=lengths > 0)
    return inverse
