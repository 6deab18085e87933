"""A reference gets the care that our own models get: settings and epochs by the validation period, then all the data.

Every candidate is trained on the training period and judged after each epoch at the same moments of the validation
period; the best one is trained anew, for as many epochs, on both periods. Nothing here knows of the test period.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import numpy as np

from cloud_worker.evaluation.references import Scorer, Trained, reference_ranks
from cloud_worker.training import evaluate
from cloud_worker.training.data import Histories, Ints
from streams.errors import TrainingError
from streams.experiment.ranking_metrics import ndcg_at

WATCHED: Final = 1_500
"""Moments of the validation period that choose."""
PATIENCE: Final = 5
"""Epochs without a new best one after which a candidate ends."""

Options = TypeVar("Options")
Fit = Callable[[Options, Sequence[Ints], int, Callable[[Scorer], bool]], Scorer]
"""Trains a model with options on users' sequences (two interactions or more each), for at most so many epochs, and asks
after each whether that is enough."""
OnEpoch = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Trial(Generic[Options]):
    """What became of a candidate on the validation period."""

    options: Options
    epochs: int
    ndcg: float


@dataclass(frozen=True)
class Tuned(Generic[Options]):
    """A reference, the trials that chose it, best first, and at how many moments."""

    trained: Trained
    trials: Sequence[Trial[Options]]
    watched: int


def train_tuned(
    name: str,
    fit: Fit[Options],
    candidates: Sequence[Options],
    histories: Histories,
    *,
    exclude_seen: bool,
    most_epochs: int,
    seed: int,
    on_epoch: OnEpoch = lambda _stage, _done, _total, _note: None,
) -> Tuned[Options]:
    """Choose on the validation period and train on everything.

    Parameters
    ----------
    histories
        Nothing of the test period; ``trained`` ends before the validation period.
    most_epochs
        At which a candidate ends though it still gets better.
    seed
        Of the moments that are watched.

    Raises
    ------
    TrainingError
        There is nothing to learn from, or nothing to choose by.
    """
    watched = _watched(histories, exclude_seen, np.random.default_rng(seed))
    popular = histories.popularity(valid=False).astype(np.float32)
    started = time.monotonic()
    first = _sequences(histories, histories.trained)

    def trial(nth: int, options: Options) -> Trial[Options]:
        best, epoch = Trial(options, 0, -1.0), 0
        stage = f"candidate {nth + 1} of {len(candidates)}"

        def after_epoch(scorer: Scorer) -> bool:
            nonlocal best, epoch
            epoch += 1
            ndcg = float(ndcg_at(reference_ranks(scorer, watched, popular)[0]).mean())
            on_epoch(stage, epoch, most_epochs, f"NDCG@10 {ndcg:.4f}")
            if ndcg > best.ndcg:
                best = Trial(options, epoch, ndcg)
            return epoch - best.epochs >= PATIENCE

        fit(options, first, most_epochs, after_epoch)
        return best

    trials = sorted((trial(*each) for each in enumerate(candidates)), key=lambda each: -each.ndcg)
    chosen, searched = trials[0], time.monotonic()
    epochs = 0

    def count(_: Scorer) -> bool:
        nonlocal epochs
        epochs += 1
        on_epoch("to the end", epochs, chosen.epochs, "")
        return epochs >= chosen.epochs

    model = fit(chosen.options, _sequences(histories, histories.lengths), chosen.epochs, count)
    settings = f"{chosen.options}, {chosen.epochs} epochs"
    trained = Trained(name, model, time.monotonic() - searched, searched - started, settings)
    return Tuned(trained, trials, len(watched))


def _watched(histories: Histories, exclude_seen: bool, generator: np.random.Generator) -> evaluate.Moments:
    """Some moments of the validation period."""
    users, positions = histories.draw_valid(WATCHED, generator)
    if not len(users):
        raise TrainingError(
            "no user of the validation period has an interaction before it: nothing to choose settings by",
            remedy="train a bundle with another --split",
        )
    return evaluate.Moments.without_states(histories, users, positions, exclude_seen=exclude_seen)


def _sequences(histories: Histories, lengths: Ints) -> list[Ints]:
    """The users' first interactions, where there are two or more."""
    found = [histories.of(int(user), int(lengths[user])) for user in np.flatnonzero(lengths >= 2)]
    if not found:
        raise TrainingError("no user has two interactions before the validation period: there is nothing to learn from")
    return found
