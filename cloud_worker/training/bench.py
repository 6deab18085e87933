"""The snapshots seen through one stage's networks: what serving there looks like, with any embedding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cloud_worker.training import evaluate, signals
from cloud_worker.training.calibrator import CalibrationData
from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.networks import Networks
from cloud_worker.training.snapshots import Pairs, Snapshots

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Bench:
    """Catalogue, embeddings at the snapshots, and what follows from both.

    Attributes
    ----------
    unit
        (N, d) item vectors of length one.
    hidden, embeddings
        (S, h) the SRM's states, and (S, d) what the cloud would send.
    phi_mean, phi_scale
        (P,) standardisation of φ.
    decay
        γ of the recent mean m.
    """

    histories: Histories
    exclude_seen: bool
    decay: float
    catalogue: evaluate.Catalogue
    spaces: signals.Spaces
    unit: Floats
    snapshots: Snapshots
    hidden: Floats
    embeddings: Floats
    phi_mean: Floats
    phi_scale: Floats

    def moments(self, rows: Ints) -> evaluate.Moments:
        """Serving at snapshots."""
        s = self.snapshots
        return evaluate.Moments(self.histories, s.users[rows], s.positions[rows], self.hidden[rows], self.exclude_seen)

    def raw_signals(self, pairs: Pairs) -> tuple[Floats, Floats]:
        """(Q, d) means m and (Q, P) φ, not standardised, of serving at fresh snapshots with stale embeddings."""
        users, begin = self.snapshots.users[pairs.fresh], self.snapshots.positions[pairs.stale]
        end, stale = self.snapshots.positions[pairs.fresh], self.embeddings[pairs.stale]
        means = signals.recent_means(self.histories, users, begin, end, self.unit, self.decay)
        hidden = self.hidden[pairs.fresh]
        phi = signals.signals(self.histories, users, begin, end, stale, hidden, means, self.unit, self.spaces)
        return means, phi

    def data(self, pairs: Pairs) -> CalibrationData:
        """Serving at the fresh snapshots with the stale embeddings; a pair of one snapshot has gap 0."""
        means, phi = self.raw_signals(pairs)
        users, end = self.snapshots.users[pairs.fresh], self.snapshots.positions[pairs.fresh]
        return CalibrationData(
            stale=self.embeddings[pairs.stale],
            means=means,
            hidden=self.hidden[pairs.fresh],
            phi=((phi - self.phi_mean) / self.phi_scale).astype(np.float32),
            gap=end - self.snapshots.positions[pairs.stale],
            fresh=self.embeddings[pairs.fresh],
            targets=self.histories.items[self.histories.starts[users] + end],
        )


def make_bench(
    networks: Networks,
    histories: Histories,
    snapshots: Snapshots,
    embeddings: Floats,
    *,
    exclude_seen: bool,
    decay: float,
    standard: tuple[Floats, Floats] | None = None,
    pairs: Pairs | None = None,
) -> Bench:
    """Build the bench of one stage.

    Parameters
    ----------
    standard
        (P,) mean and scale of φ; None: those of ``pairs`` are taken.
    pairs
        Which moments φ is standardised over.
    """
    table, bias = networks.space()
    vectors = table.cpu().numpy()
    tensors = networks.srm.tensors()
    catalogue = evaluate.Catalogue(
        vectors, bias.cpu().numpy().copy(), tensors["srm.item_out"].copy(), tensors["srm.bias_out"].copy()
    )
    hidden = networks.srm.running_states(histories, snapshots.users, snapshots.positions)
    spaces = signals.Spaces.of(catalogue.vectors, catalogue.bias, catalogue.srm_out, catalogue.srm_bias)
    zero = np.zeros(0, np.float32)
    mean, scale = standard if standard is not None else (zero, zero)
    unit = signals.unit_vectors(vectors)
    bench = Bench(histories, exclude_seen, decay, catalogue, spaces, unit, snapshots, hidden, embeddings, mean, scale)
    if standard is None and pairs is not None:
        raw = bench.raw_signals(pairs)[1]
        mean, scale = raw.mean(axis=0).astype(np.float32), np.maximum(raw.std(axis=0), 1e-2).astype(np.float32)
        bench = replace(bench, phi_mean=mean, phi_scale=scale)
    return bench
