"""Which moments of the test period a bundle is judged at: the same for every verb that has the same seed.

A moment is an interaction of the test period whose user has one before; it is judged by the rank of what was taken,
over the whole catalogue. Users are drawn whole: neighbouring moments share what is looked at, and intervals are over
users.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cloud_worker.training.bundles import check_data
from cloud_worker.training.data import Histories, Ints, histories_of_events
from streams.bundle import Bundle
from streams.datasets import Prepared
from streams.errors import DatasetError


@dataclass(frozen=True)
class Drawn:
    """Moments before anything has looked at them.

    Attributes
    ----------
    histories
        Everybody's interactions, the test period's among them; ``trained`` counts those before the test period.
    users, positions
        (Q,) whose moments they are, and how many interactions are known then; by user and position.
    """

    histories: Histories
    users: Ints
    positions: Ints

    def __len__(self) -> int:
        return len(self.users)


def draw_moments(bundle: Bundle, prepared: Prepared, *, moments: int, seed: int) -> Drawn:
    """Draw the moments that a bundle is judged at.

    Parameters
    ----------
    moments
        At least so many, if there are; the last user drawn is taken whole.

    Raises
    ------
    BundleError
        The bundle was trained on other data.
    DatasetError
        No interaction of the test period has one of its user before it.
    """
    histories = whole_histories(bundle, prepared)
    users, positions = _draw(histories, moments, np.random.default_rng(seed))
    if not len(users):
        raise DatasetError(
            f"dataset {bundle.manifest.dataset}: no user of the test period has an interaction before it",
            remedy="train a bundle on more data, or with another --split",
        )
    return Drawn(histories, users, positions)


def whole_histories(bundle: Bundle, prepared: Prepared) -> Histories:
    """Everybody's interactions, the test period's among them; ``trained`` counts those before the test period.

    Raises
    ------
    BundleError
        The bundle was trained on other data.
    """
    check_data(bundle.manifest, prepared)
    return histories_of_events(prepared.events, bundle.items.ids, bundle.manifest.test.start_ms)


def _draw(histories: Histories, most: int, generator: np.random.Generator) -> tuple[Ints, Ints]:
    """(Q,) users and positions: users in random order, all their moments of the test period, until there are enough."""
    lengths, first = histories.lengths, np.maximum(histories.trained, 1)
    order = generator.permutation(np.flatnonzero(lengths > first))
    many = np.cumsum(lengths[order] - first[order])
    order = np.sort(order[: int(np.searchsorted(many, most)) + 1])
    counts = lengths[order] - first[order]
    users = np.repeat(order, counts)
    nth = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    return users, first[users] + nth
