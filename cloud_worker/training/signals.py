"""The staleness signals φ and the recent mean m, for training; the device has its own (`device_agent.staleness`).

v̂ is an item vector of length one; over the interactions since as_of m = Σ γ^j v̂_(q-1-j) / Σ γ^j. φ in the order of
`streams.bundle.PHI`: cos(e, m) (1 without an m), cos(e, v̂ of the last item), ln(1 + gap), ln(1 + hours of age),
1 - ‖m‖ (0 without an m); over the catalogue, the correlation of the cloud's and the SRM's scores and the logarithm of
their deviations; the z-score of the last item under e; ln(1 + interactions). The age at a moment of serving is counted
up to the interaction that is served.

Source: SCaLRec (arXiv 2601.22543): a reconstruction from the abstract.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cloud_worker.training.data import Histories, Ints

Floats = npt.NDArray[np.float32]
SMALLEST_VARIANCE: Final = 1e-12


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
    histories: Histories,
    users: Ints,
    stale: Ints,
    fresh: Ints,
    embeddings: Floats,
    hidden: Floats,
    means: Floats,
    unit: Floats,
    spaces: Spaces,
) -> Floats:
    """(Q, P) φ of embeddings (Q, d) made at positions stale, when the interaction at position fresh is served.

    Parameters
    ----------
    hidden
        (Q, h) the SRM's states at positions fresh.
    spaces
        What the scores of cloud and SRM have in common.
    """
    starts = histories.starts[users]
    last_items = histories.items[starts + fresh - 1]
    last = unit[last_items]
    e_length = np.linalg.norm(embeddings, axis=1) + 1e-30
    m_length = np.linalg.norm(means, axis=1)
    gap = fresh - stale
    known = (gap > 0) & (m_length > 0)
    cosine = (embeddings * means).sum(axis=1) / e_length / np.maximum(m_length, 1e-30)
    age_ms = np.maximum(histories.times_ms[starts + fresh] - histories.times_ms[starts + stale - 1], 0)
    cloud, srm, together = spaces.deviations(embeddings, hidden)
    own = spaces.centred_score(embeddings, last_items)
    return np.stack(
        [
            np.where(known, cosine, 1.0),
            (embeddings * last).sum(axis=1) / e_length,
            np.log1p(gap),
            np.log1p(age_ms / 3_600_000),
            np.where(known, 1.0 - m_length, 0.0),
            together / (cloud * srm),
            np.log(cloud),
            np.log(srm),
            own / cloud,
            np.log1p(fresh),
        ],
        axis=1,
    ).astype(np.float32)


@dataclass(frozen=True)
class Spaces:
    """Item sides of cloud and SRM, each column less its mean, so that scores are compared over the whole catalogue.

    Attributes
    ----------
    cloud
        (N, d + 1) rows [v_i, b_i].
    covariance
        (d + 1 + h + 1, same) of the rows [v_i, b_i, o_i, c_i].
    """

    cloud: Floats
    covariance: npt.NDArray[np.float64]

    @staticmethod
    def of(vectors: Floats, bias: Floats, srm_out: Floats, srm_bias: Floats) -> Spaces:
        """From (N, d), (N,), (N, h) and (N,)."""
        rows = np.concatenate([vectors, bias[:, None], srm_out, srm_bias[:, None]], axis=1).astype(np.float64)
        rows -= rows.mean(axis=0)
        return Spaces(rows[:, : vectors.shape[1] + 1].astype(np.float32), rows.T @ rows / len(rows))

    def deviations(self, embeddings: Floats, hidden: Floats) -> tuple[Floats, Floats, Floats]:
        """(Q,) standard deviations of the cloud's and of the SRM's scores over the catalogue, and their covariance."""
        one = np.ones((len(embeddings), 1))
        e, h = np.concatenate([embeddings, one], axis=1), np.concatenate([hidden, one], axis=1)
        cut = e.shape[1]
        c = self.covariance
        cloud = np.sqrt(np.maximum(((e @ c[:cut, :cut]) * e).sum(axis=1), SMALLEST_VARIANCE))
        srm = np.sqrt(np.maximum(((h @ c[cut:, cut:]) * h).sum(axis=1), SMALLEST_VARIANCE))
        together = ((e @ c[:cut, cut:]) * h).sum(axis=1)
        return cloud.astype(np.float32), srm.astype(np.float32), together.astype(np.float32)

    def centred_score(self, embeddings: Floats, items: Ints) -> Floats:
        """(Q,) the cloud's score of one item each, less the mean over the catalogue."""
        row = self.cloud[items]
        own: Floats = (embeddings * row[:, :-1]).sum(axis=1) + row[:, -1]
        return own


def unit_vectors(vectors: Floats) -> Floats:
    """(n, d) vectors with length one; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions: Floats = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return directions
