"""The staleness score s = σ(w · φ_std + b): the probability that a fresh embedding would rank the next item better.

Logistic regression, by Newton's method: six numbers from some thousand pairs need no more. Source: SCaLRec
(arXiv 2601.22543), reliability of cached semantics: a reconstruction from the abstract.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def fit(phi: npt.NDArray[np.floating], labels: npt.NDArray[np.bool_], ridge: float = 1.0) -> tuple[Floats, float]:
    """Weights (P,) and bias of the logistic regression of labels (Q,) on standardised signals (Q, P).

    Parameters
    ----------
    ridge
        L2 penalty on the weights, not on the bias.
    """
    x = np.concatenate([phi.astype(np.float64), np.ones((len(phi), 1))], axis=1)
    y = labels.astype(np.float64)
    penalty = np.full(x.shape[1], ridge)
    penalty[-1] = 1e-3  # all labels equal would send the bias to infinity
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (p - y) + penalty * w
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        w -= step
        if np.abs(step).max() < 1e-9:
            break
    return w[:-1], float(w[-1])


def predict(phi: npt.NDArray[np.floating], weight: Floats, bias: float) -> Floats:
    """(Q,) staleness in [0, 1]."""
    return 1.0 / (1.0 + np.exp(-np.clip(phi @ weight + bias, -30, 30)))
