"""Our SRM against rankers that others published, at the same moments of the test period.

All of them know everything before the test period when they are trained, are not trained again, and see before each
moment all that its user took (prequential). Ranks are over the whole catalogue, pessimistic, without what was taken
before where the dataset has no repeats: `cloud_worker.training.metrics.ranks_of`, as everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cloud_worker.evaluation.drawn import draw_moments
from cloud_worker.evaluation.neighbours import DECAY, LAST, ItemNeighbours, recent_counts
from cloud_worker.evaluation.staleness import SRM, Column, repeated
from cloud_worker.training import evaluate
from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.metrics import Ranks, ranks_of
from cloud_worker.training.served import histories_of
from cloud_worker.training.srm import srm_from_tensors
from streams.bundle import Bundle
from streams.datasets import Prepared
from streams.errors import TrainingError

Floats = npt.NDArray[np.floating]
OnProgress = Callable[[str, int, int], None]

POPULARITY, KNN = "popularity", "item-kNN"


class Scorer(Protocol):
    """A trained model of somebody else."""

    def scores(self, sequences: Sequence[Ints]) -> Floats:
        """(B, N) scores of the whole catalogue after each sequence of item indexes, oldest first; none is empty.

        -inf is an item that the model does not know; a row of nothing else is a sequence that it can say nothing of.
        """
        ...


@dataclass(frozen=True)
class Trained:
    """A reference, ready to rank.

    Attributes
    ----------
    seconds
        Of the training on all that lies before the test period; ``search_seconds`` before it, on choosing.
    settings
        What was chosen on the validation period, in words.
    """

    name: str
    scorer: Scorer
    seconds: float
    search_seconds: float
    settings: str


@dataclass(frozen=True)
class Method:
    """What a row of the table says beside its measures; ``seconds`` is None where nobody took the time."""

    name: str
    seconds: float | None
    settings: str


@dataclass(frozen=True)
class Comparison:
    """The ranks of every method, as those of one gap (0), and what each method is.

    Attributes
    ----------
    stood_in
        Moments at which the reference knew nothing of the user's history, so that popularity ranked instead.
    """

    column: Column
    methods: Sequence[Method]
    stood_in: int


def compare(
    bundle: Bundle,
    prepared: Prepared,
    train: Callable[[Histories], Trained],
    *,
    moments: int,
    seed: int,
    on_progress: OnProgress = lambda _stage, _done, _total: None,
) -> Comparison:
    """Train the references and rank all moments by each.

    Parameters
    ----------
    train
        Makes the reference from all interactions before the test period; ``trained`` of these histories ends before
        the validation period, on which it chooses its settings.
    moments, seed
        Of `draw_moments`.

    Raises
    ------
    BundleError
        The bundle was trained on other data.
    DatasetError
        There is no moment in the test period.
    TrainingError
        The reference cannot be trained, or its scores are no numbers.
    """
    drawn = draw_moments(bundle, prepared, moments=moments, seed=seed)
    histories = drawn.histories
    srm = srm_from_tensors(bundle.device)
    hidden = srm.running_states(histories, drawn.users, drawn.positions)
    asked = evaluate.Moments(histories, drawn.users, drawn.positions, hidden, bundle.manifest.exclude_seen)

    started = time.monotonic()
    counts = recent_counts(histories)
    counted = time.monotonic()
    neighbours = ItemNeighbours(histories)
    methods = [
        Method(POPULARITY, counted - started, "interactions in the last tenth before the test period"),
        Method(KNN, time.monotonic() - counted, f"cosine, last {LAST} interactions, decay {DECAY}"),
    ]
    trained = train(histories_of(bundle, prepared))
    methods.append(Method(trained.name, trained.seconds, trained.settings))
    ours = f"{type(srm).__name__} of the bundle, h = {bundle.manifest.srm_dim}"
    methods.append(Method(SRM, None, ours))

    device = bundle.device
    catalogue = evaluate.Catalogue(
        device["item_vectors"], device["item_bias"], device["srm.item_out"], device["srm.bias_out"]
    )
    theirs, stood_in = reference_ranks(
        trained.scorer, asked, counts, partial(on_progress, f"ranking by {trained.name}")
    )
    ranks = {
        POPULARITY: evaluate.constant_ranks(counts, asked),
        KNN: neighbours.ranks(asked),
        trained.name: theirs,
        SRM: evaluate.ranks(catalogue, asked, None, 0.0),
    }
    return Comparison(Column(0, drawn.users, repeated(asked), ranks, seed), methods, stood_in)


def reference_ranks(
    scorer: Scorer,
    moments: evaluate.Moments,
    instead: npt.NDArray[np.float32],
    on_done: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[Ranks, int]:
    """(Q,) ranks by a model of somebody else, and at how many moments it could say nothing.

    Parameters
    ----------
    instead
        (N,) scores for the moments at which the model can say nothing: it should not lose because it was not asked.

    Raises
    ------
    TrainingError
        A score is not a number: a comparison with it would be wrong in silence.
    """
    found = [np.zeros(0, np.int64)]
    stood_in = done = 0
    for _, part in moments.blocks():
        histories = part.histories
        sequences = [histories.of(user, position) for user, position in zip(part.users, part.positions, strict=True)]
        scores = np.array(scorer.scores(sequences))
        if scores.shape != (len(part), histories.n_items) or np.isnan(scores).any():
            raise TrainingError(
                f"the reference gave scores of shape {scores.shape} with {np.isnan(scores).sum()} that are no numbers, "
                f"wanted {(len(part), histories.n_items)} numbers",
                remedy="try another --seed; if it stays, the package's version is not one that this verb knows",
            )
        silent = np.isneginf(scores).all(axis=1)
        scores[silent] = instead
        found.append(ranks_of(scores, part.targets, part.seen()))
        stood_in, done = stood_in + int(silent.sum()), done + len(part)
        on_done(done, len(moments))
    return np.concatenate(found), stood_in
