"""The moments of the test period that a bundle is judged on, and everything the pipeline would have known at them.

The moments are those of `cloud_worker.evaluation.drawn`, and each is judged from all that was known before it. For a
gap g the device serves with the embedding that the cloud would have sent g interactions ago, with the live index as it
was then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from cloud_worker.blend import Blend
from cloud_worker.encoder import Encoder
from cloud_worker.evaluation.drawn import draw_moments
from cloud_worker.training import calibrator
from cloud_worker.training.bench import Bench
from cloud_worker.training.calibrator import CalibrationData
from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.fusion import between
from cloud_worker.training.networks import Answers, Networks, fitted
from cloud_worker.training.served import OnProgress, answers_of, bench_of, check_encoder, networks_of
from cloud_worker.training.signal_head import SignalHead
from cloud_worker.training.snapshots import Pairs, Snapshots
from cloud_worker.user_model import blend_of
from streams.bundle import Bundle
from streams.datasets import Prepared
from streams.errors import DatasetError

Floats = npt.NDArray[np.float32]

__all__ = [
    "GAPS",
    "OnProgress",
    "TestPeriod",
    "alpha_of",
    "ask_cloud",
    "load_test_period",
    "staleness_of",
    "trends_weight_of",
]

GAPS: Final = (0, 1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class TestPeriod:
    """The moments and what is known at them.

    Attributes
    ----------
    bench
        Snapshots of all moments and of those from which their stale embeddings come; ``hidden`` and ``embeddings`` of
        each.
    answers
        What the parts of the cloud say there.
    moments
        (Q,) index of each judged moment's snapshot.
    repair, head, worth_head
        The bundle's calibrator, and its heads of staleness s and of the gain w that a refresh is expected to bring.
    """

    bundle: Bundle
    bench: Bench
    answers: Answers
    networks: Networks
    blend: Blend
    moments: Ints
    repair: calibrator.Calibrator
    head: SignalHead
    worth_head: SignalHead

    @property
    def histories(self) -> Histories:
        """Everybody's interactions, the test period's among them."""
        return self.bench.histories

    @property
    def longest_gap(self) -> int:
        """The largest gap that any moment's history bears."""
        return int(self.bench.snapshots.positions[self.moments].max()) - 1

    def pairs(self, gap: int, *, nearest: bool = False) -> tuple[Ints, Pairs]:
        """Moments whose user had interactions enough for a gap: their places in ``moments``, and the pairs.

        Parameters
        ----------
        gap
            One of those that the period was loaded with.
        nearest
            A moment with a shorter history has the largest gap that it bears, so that all moments are there. The
            period must have been loaded so.
        """
        snapshots = self.bench.snapshots
        users, positions = snapshots.users[self.moments], snapshots.positions[self.moments]
        able, stale = _bearing(positions, gap, nearest=nearest)
        return able, Pairs(snapshots.find(users[able], stale), self.moments[able])

    def staleness(self, data: CalibrationData) -> npt.NDArray[np.float64]:
        """(Q,) s of moments, by the bundle's head."""
        return staleness_of(self.head, data)

    def worth(self, data: CalibrationData) -> npt.NDArray[np.float64]:
        """(Q,) w of moments, by the bundle's head; 0 at gap 0, where a refresh brings what is there."""
        return np.where(data.gap > 0, self.worth_head.values(data.phi), 0.0)

    def alpha(self, staleness: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """(Q,) weight of the cloud in the fusion, at staleness s (Q,)."""
        return alpha_of(self.bundle, staleness)


def staleness_of(head: SignalHead, data: CalibrationData) -> npt.NDArray[np.float64]:
    """(Q,) s of moments; 0 at gap 0, where the cached embedding is the fresh one."""
    return np.where(data.gap > 0, expit(head.values(data.phi)), 0.0)


def alpha_of(bundle: Bundle, staleness: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """(Q,) weight of the cloud in a bundle's fusion, at staleness s (Q,)."""
    fresh, stale = (float(each) for each in bundle.device["fusion.alpha"])
    return between(fresh, stale, staleness)


def trends_weight_of(bundle: Bundle, staleness: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """(Q,) β of a bundle at staleness s (Q,), 1 without an embedding."""
    fresh, stale = (float(each) for each in bundle.device["fusion.trends"])
    return between(fresh, stale, staleness)


def load_test_period(
    bundle: Bundle,
    prepared: Prepared,
    encoder: Encoder,
    *,
    moments: int,
    seed: int,
    gaps: Sequence[int] = GAPS,
    nearest: bool = False,
    on_progress: OnProgress = lambda _stage, _done, _total: None,
) -> TestPeriod:
    """Draw the moments and let every part of the bundle look at them.

    Parameters
    ----------
    moments
        At least so many, if there are; the last user drawn is taken whole.
    nearest
        See `TestPeriod.pairs`.

    Raises
    ------
    BundleError
        The bundle was trained on other data, or with another encoder.
    DatasetError
        No interaction of the test period has one of its user before it, or no history is as long as a gap.
    """
    check_encoder(bundle, encoder)
    drawn = draw_moments(bundle, prepared, moments=moments, seed=seed)
    histories, at_users, at_positions = drawn.histories, drawn.users, drawn.positions
    if (longest := int(at_positions.max()) - 1) < min(gaps):
        raise DatasetError(
            f"dataset {bundle.manifest.dataset}: a gap of {min(gaps)} is longer than any history; "
            f"at the moments drawn it can be {longest} at most",
            remedy="ask for a shorter gap, or for more moments",
        )
    bearing = [_bearing(at_positions, gap, nearest=nearest) for gap in gaps]
    snapshots = Snapshots.of(
        np.concatenate([at_users, *(at_users[able] for able, _ in bearing)]),
        np.concatenate([at_positions, *(stale for _, stale in bearing)]),
    )
    networks = networks_of(bundle)
    answers, embeddings = ask_cloud(bundle, networks, histories, snapshots, encoder, on_progress)
    bench = bench_of(bundle, networks, histories, snapshots, embeddings)
    return TestPeriod(
        bundle,
        bench,
        answers,
        networks,
        blend_of(bundle),
        snapshots.find(at_users, at_positions),
        calibrator.Calibrator.from_tensors(bundle.device),
        SignalHead.from_tensors(bundle.device, "staleness"),
        SignalHead.from_tensors(bundle.device, "worth"),
    )


def _bearing(positions: Ints, gap: int, *, nearest: bool) -> tuple[Ints, Ints]:
    """Which of the moments at positions (Q,) have interactions enough for a gap, and where their stale moments are."""
    able = np.arange(len(positions)) if nearest else np.flatnonzero(positions - gap >= 1)
    return able, np.maximum(positions[able] - gap, 1)


def ask_cloud(
    bundle: Bundle,
    networks: Networks,
    histories: Histories,
    snapshots: Snapshots,
    encoder: Encoder,
    on_progress: OnProgress = lambda _stage, _done, _total: None,
) -> tuple[Answers, Floats]:
    """What the parts of the cloud say at S snapshots, and (S, d) the embeddings that it would send."""
    answers = answers_of(bundle, networks, histories, snapshots, encoder, on_progress)
    blend = blend_of(bundle)
    return answers, fitted(answers, networks.space(), blend, lambda done, total: on_progress("fitting", done, total))
