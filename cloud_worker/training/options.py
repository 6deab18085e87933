"""What can be chosen about a training run, and how it tells where it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SrmOptions:
    """How the SRM is trained. The learning rate rises for a tenth of the epochs and falls to zero over the rest.

    ``positions`` are the interactions of a batch. Catalogues of up to ``full_softmax_items`` are trained with the full
    softmax, larger ones with ``negatives`` that a batch shares. ``final_epochs`` over training and validation period
    together follow when everything is chosen: a model that stops at the validation period knows fewer items.
    """

    dim: int = 64
    epochs: int = 7
    final_epochs: int = 2
    dropout: float = 0.3
    learning_rate: float = 6e-3
    final_learning_rate: float = 1e-3
    positions: int = 4096
    negatives: int = 2048
    full_softmax_items: int = 5_000


@dataclass(frozen=True)
class CloudOptions:
    """How the cloud's item vectors and projector are trained.

    ``stand_in_positions`` of all histories are embedded from a stand-in for their profile vector, which costs nothing;
    then the projector alone is tuned on snapshots whose profile was really encoded. ``horizon`` next interactions are
    a snapshot's target.
    """

    hidden: int = 256
    stand_in_positions: int = 100_000
    snapshot_epochs: int = 6
    batch: int = 512
    horizon: int = 5
    learning_rate: float = 8e-3
    text_decay: float = 0.85
    ridge: float = 3.0


@dataclass(frozen=True)
class SnapshotOptions:
    """Which moments of which users are encoded: what training costs most, so both numbers are bounds."""

    train: int = 850
    valid: int = 500
    valid_stretch: int = 64
    characters: int = 800_000
    """Of profile texts; fewer snapshots are taken where profiles are long."""


@dataclass(frozen=True)
class CalibratorOptions:
    """How the calibrator is distilled."""

    hidden: int = 64
    epochs: int = 10
    batch: int = 256
    learning_rate: float = 2e-3
    next_item_weight: float = 0.1
    largest_gap: int = 96
    negatives: int = 4096


@dataclass(frozen=True)
class TrainOptions:
    """A training run. Equal data, options, encoder and machine give equal bundles."""

    seed: int = 0
    device: str = "auto"
    """``cpu``, ``cuda`` or ``auto``."""
    d: int = 128
    profile_items: int = 6
    window: int = 50
    recency_decay: float = 0.8
    retrain: bool = True
    """Go on training the SRM over the validation period when everything is chosen."""
    least_devices: int = 10
    srm: SrmOptions = field(default_factory=SrmOptions)
    cloud: CloudOptions = field(default_factory=CloudOptions)
    snapshots: SnapshotOptions = field(default_factory=SnapshotOptions)
    calibrator: CalibratorOptions = field(default_factory=CalibratorOptions)


@dataclass(frozen=True)
class Progress:
    """Where a stage stands. Two stages may be under way at once."""

    stage: str
    done: int
    total: int
    note: str = ""
    """The loss, the metric."""


OnProgress = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Show nothing."""
