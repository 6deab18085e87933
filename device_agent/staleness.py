"""How stale is a cached embedding: the signals φ, and the score that a bundle's model makes of them.

The signals (P = 5, in the order of `streams.bundle.PHI`) compare the cached embedding e with what the device has done
since. v̂ is an item vector of length one and m the recency-weighted mean of the v̂ since the embedding's as_of,
m = Σ γ^j v̂_(t-j) / Σ γ^j with γ the manifest's ``recency_decay``:

====================  ======================================================================================
cos_cached_recent     cos(e, m); 1 while there is no m (gap 0, or only items the bundle does not know since)
cos_cached_last       cos(e, v̂ of the last item); 0 on a device without a history
log_gap               ln(1 + interactions since as_of)
log_age               ln(1 + hours of event time since the embedding was asked for)
spread                1 - ‖m‖: 0 where the recent items agree, near 1 where they point everywhere; 0 without an m
====================  ======================================================================================

Staleness s = σ(w · φ_standardised + b); reliability is 1 - s; without an embedding s = 1.

Source: SCaLRec (arXiv 2601.22543), "reliability of cached semantics": a reconstruction from the abstract.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from streams.bundle import PHI

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

COS_RECENT: Final = PHI.index("cos_cached_recent")
COS_LAST: Final = PHI.index("cos_cached_last")
LOG_GAP: Final = PHI.index("log_gap")
LOG_AGE: Final = PHI.index("log_age")
SPREAD: Final = PHI.index("spread")

# Constants are arrays without a dimension: numpy takes a microsecond to make one of a Python number at each use.
_PER_HOUR: Final = np.array(1 / 3_600_000)
_TINY: Final = np.array(1e-30, np.float32)
_ONE: Final = np.array(1, np.float32)
_BLOCK: Final = 256
"""Rows at a time in `recent_of_window`: 256 × 50 items × 128 floats are 6.5 MB."""


def unit_vectors(vectors: Floats) -> Floats:
    """(n, d) vectors with length one; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions: Floats = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return directions


class StalenessModel:
    """The bundle's staleness score, with the standardisation of φ folded into its weights."""

    def __init__(self, tensors: Mapping[str, Floats]) -> None:
        weight = tensors["staleness.weight"] / tensors["phi.scale"]
        self._weight = np.ascontiguousarray(weight, dtype=np.float32)
        self._bias = np.array(tensors["staleness.bias"][0] - weight @ tensors["phi.mean"], np.float32)

    def __call__(self, phi: Floats, has_embedding: npt.NDArray[np.bool_] | None = None) -> Floats:
        """(...) staleness in [0, 1] from φ (..., P); 1 where there is no embedding. None: all have one."""
        s: Floats = expit(np.vecdot(phi, self._weight) + self._bias)
        if has_embedding is not None:
            s[~has_embedding] = 1
        return s


def write_age(phi: Floats, age_ms: Ints) -> None:
    """Write log_age into `phi` (..., P) from the event time (...) since the embedding was asked for, at least 0."""
    phi[..., LOG_AGE] = np.log1p(age_ms * _PER_HOUR)


def write_signals(
    phi: Floats, *, embedding: Floats, inverse_norm: Floats, mean: Floats, norm: Floats | None, last: Floats, gap: Ints
) -> None:
    """Write the other signals into `phi` (B, A, P).

    Parameters
    ----------
    embedding, inverse_norm
        (B, A, d) cached embeddings e, and (B, A) 1 / ‖e‖.
    mean, norm
        (B, A, d) and (B, A): m and its weight Σ γ^j, which is 0 where nothing was taken since as_of. None: it is
        nowhere 0.
    last
        (B, d) v̂ of the last item, zero where there is none.
    gap
        (B, A) interactions since as_of, at least 0.
    """
    length = np.sqrt(np.vecdot(mean, mean)) + _TINY
    np.divide(np.vecdot(embedding, mean) * inverse_norm, length, out=phi[..., COS_RECENT])
    np.multiply(np.vecdot(embedding, last[:, None]), inverse_norm, out=phi[..., COS_LAST])
    np.log1p(gap.astype(np.float32), out=phi[..., LOG_GAP])
    np.subtract(_ONE, length, out=phi[..., SPREAD])
    if norm is not None:
        nothing = norm == 0
        phi[nothing, COS_RECENT] = 1
        phi[nothing, SPREAD] = 0


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
