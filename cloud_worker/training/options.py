"""What can be chosen about a training run, and how it tells where it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class FitOptions:
    """How a network that names the next item is trained. The rate rises for a tenth of the epochs, then falls to zero.

    ``learning_rate`` is the highest, and decides more than anything else here. It was chosen on the validation periods
    of ML-100K and Beauty: at 2e-3, a usual one, GRU4Rec ends a sixth lower on the one and a third lower on the other,
    and the cloud's network some 5 and 10 % lower than at 4e-3.
    ``positions`` are the interactions of a batch, ``chunk`` those of one of its rows. Catalogues of up to
    ``full_softmax_items`` are trained with the full softmax, larger ones with a batch's targets and ``negatives`` more.
    ``final_epochs`` over training and validation period together follow when everything is chosen: a model that stops
    at the validation period knows fewer items. They too begin and end at no rate, with the full one in between.
    """

    dim: int
    epochs: int
    final_epochs: int
    dropout: float
    chunk: int
    learning_rate: float
    weight_decay: float = 1e-2
    positions: int = 2048
    negatives: int = 1024
    full_softmax_items: int = 5_000


@dataclass(frozen=True)
class ProjectorOptions:
    """How the projector from text vectors to the shared space is trained.

    ``stand_in_positions`` of all histories are embedded from a stand-in for their profile vector, which costs nothing;
    then the projector is tuned on moments whose profile was really encoded. ``horizon`` next interactions are such a
    moment's target.
    """

    hidden: int = 256
    stand_in_positions: int = 40_000
    epochs: int = 6
    batch: int = 512
    horizon: int = 5
    learning_rate: float = 4e-3
    text_decay: float = 0.85
    ridge: float = 3.0


@dataclass(frozen=True)
class MomentOptions:
    """Which moments the cloud model is asked about in training, and of how many the profile is really encoded."""

    train: int = 7_000
    valid: int = 4_000
    valid_stretch: int = 24
    encoded_train: int = 850
    encoded_valid: int = 500
    characters: int = 800_000
    """Of encoded profiles; fewer are encoded where profiles are long: encoding is what training costs most."""


@dataclass(frozen=True)
class CalibratorOptions:
    """How the calibrator is distilled.

    ``steps`` are batches: short histories make few pairs, and an epoch over them is soon done; of long ones it may be
    less than two. On the validation periods of ML-100K and Beauty 500 are as good as twice as many and better than four
    times. ``final_steps`` follow when the networks have gone on over the validation period; how many was not studied.
    With each τ of ``taus`` (within `streams.bundle.TAU_RANGE`) it is trained anew, and the one that ranks best on the
    validation period is kept; of equal ones the first, which is also the only one of a training in a hurry.
    """

    hidden: int = 128
    steps: int = 500
    final_steps: int = 200
    batch: int = 256
    learning_rate: float = 2e-3
    next_item_weight: float = 0.1
    largest_gap: int = 96
    negatives: int = 4096
    taus: tuple[float, ...] = (4.0, 1.0, 2.0, 8.0)


@dataclass(frozen=True)
class HeadOptions:
    """How the heads over the staleness signals are trained."""

    hidden: int = 16
    epochs: int = 40
    batch: int = 256
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2


@dataclass(frozen=True)
class TrainOptions:
    """A training run. Equal data, options, encoder and machine give equal bundles, to the bit from equal text vectors.

    A text's vector depends in its last bits on the batch that it was encoded in, and a cache keeps that of the first.
    """

    seed: int = 0
    quick: bool = False
    """Remembered by the bundle; `in_a_hurry` sets it."""
    device: str = "auto"
    """``cpu``, ``cuda`` or ``auto``."""
    d: int = 128
    hidden: int = 192
    """Width of the cloud's sequence network."""
    profile_items: int = 6
    window: int = 50
    recency_decay: float = 0.8
    retrain: bool = True
    """Go on training both networks over the validation period when everything is chosen."""
    controls: bool = True
    """Train the controls that `driftline evaluate` compares with; they cost a second SRM."""
    least_devices: int = 10
    most_positions: int = 3_500_000
    """Interactions that a network is trained on, all epochs together: large datasets have fewer epochs."""
    srm: FitOptions = field(default_factory=lambda: FitOptions(64, 18, 9, 0.3, 64, 1e-2))
    sequence: FitOptions = field(default_factory=lambda: FitOptions(128, 11, 6, 0.4, 50, 4e-3))
    projector: ProjectorOptions = field(default_factory=ProjectorOptions)
    moments: MomentOptions = field(default_factory=MomentOptions)
    calibrator: CalibratorOptions = field(default_factory=CalibratorOptions)
    heads: HeadOptions = field(default_factory=HeadOptions)
    srm_kind: str = "gru4rec"
    """The device's small model, one of `streams.bundle.SRM_TENSORS`; `with_srm` sets it."""


def with_srm(options: TrainOptions, kind: str) -> TrainOptions:
    """Options for a small model of this kind, with what suits it.

    A network that looks at a window is trained on stretches of it and the interaction that follows.
    """
    chunk = options.window + 1 if kind == "sasrec" else options.srm.chunk
    return replace(options, srm_kind=kind, srm=replace(options.srm, chunk=chunk))


def in_a_hurry(options: TrainOptions) -> TrainOptions:
    """Options for a first demo: less than half of the work, no controls."""
    return replace(
        options,
        quick=True,
        controls=False,
        srm=replace(options.srm, epochs=5, final_epochs=2, learning_rate=1.6e-2),
        sequence=replace(options.sequence, epochs=5, final_epochs=2, learning_rate=8e-3),
        most_positions=1_000_000,
        moments=replace(options.moments, train=2_500, valid=1_500, encoded_train=400, encoded_valid=200),
        calibrator=replace(options.calibrator, steps=300, final_steps=100, taus=options.calibrator.taus[:1]),
    )


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
