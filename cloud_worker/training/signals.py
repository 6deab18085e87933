"""The staleness signals φ and the recent mean m, for training; the device has its own (`device_agent.staleness`).

v̂ is an item vector of length one; over the interactions since as_of m = Σ γ^j v̂_(q-1-j) / Σ γ^j. φ in the order of
`streams.bundle.PHI`: cos(e, m) (1 without an m), cos(e, v̂ of the last item), ln(1 + gap), ln(1 + hours of age),
1 - ‖m‖ (0 without an m). The age at a moment of serving is counted up to the interaction that is served.

Source: SCaLRec (arXiv 2601.22543): a reconstruction from the abstract.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloud_worker.training.data import Histories, Ints

Floats = npt.NDArray[np.float32]


def recent_means(histories: Histories, users: Ints, stale: Ints, fresh: Ints, unit: Floats, decay: float) -> Floats:
    """(Q, d) m of users (Q,) over positions stale .. fresh - 1 (Q,); zero where there are none.

    Parameters
    ----------
    unit
        (N, d) item vectors of length one.
    """
    means = np.zeros((len(users), unit.shape[1]), np.float32)
    for row, (user, begin, end) in enumerate(zip(users, stale, fresh, strict=True)):
        start = histories.starts[user]
        items = histories.items[start + begin : start + end][::-1][:200]  # 0.8^200 is nothing in float32
        if len(items):
            weight = (decay ** np.arange(len(items))).astype(np.float32)
            means[row] = weight @ unit[items] / weight.sum()
    return means


def signals(
    histories: Histories, users: Ints, stale: Ints, fresh: Ints, embeddings: Floats, means: Floats, unit: Floats
) -> Floats:
    """(Q, P) φ of embeddings (Q, d) made at positions stale, when the interaction at position fresh is served."""
    starts = histories.starts[users]
    last = unit[histories.items[starts + fresh - 1]]
    e_length = np.linalg.norm(embeddings, axis=1) + 1e-30
    m_length = np.linalg.norm(means, axis=1)
    gap = fresh - stale
    known = (gap > 0) & (m_length > 0)
    cosine = (embeddings * means).sum(axis=1) / e_length / np.maximum(m_length, 1e-30)
    age_ms = np.maximum(histories.times_ms[starts + fresh] - histories.times_ms[starts + stale - 1], 0)
    return np.stack(
        [
            np.where(known, cosine, 1.0),
            (embeddings * last).sum(axis=1) / e_length,
            np.log1p(gap),
            np.log1p(age_ms / 3_600_000),
            np.where(known, 1.0 - m_length, 0.0),
        ],
        axis=1,
    ).astype(np.float32)


def unit_vectors(vectors: Floats) -> Floats:
    """(n, d) vectors with length one; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions: Floats = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return directions
