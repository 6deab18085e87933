"""The live index: who took what lately, and what that says a user may take next.

It is fed with interactions as they happen and keeps, in arrays of fixed size,

- for each of the U users that were active last, a ring of the last L items and their times,
- for each item, a ring of the last M users who took it, and a count that fades with event time.

A question is a user's last items i_1 … i_q, newest first, with weights w_k = decay^(k-1) · idf(i_k)^idf_power. The
**nearest users** are those of the item rings with the largest overlap σ(u) = Σ_k w_k [i_k in u's ring]. In each one's
ring every match pulls what stands near it, by a kernel over the distance δ in interactions::

    score(j) = pop(j)^-β Σ_u σ(u)^s Σ_p [ring_u(p) = j] · 2^(-age(p)/half-life) · Σ_(p' matches) w(p') κ(p - p')
    κ(δ) = 1 / (1 + δ/f) for what came after the match, b / (1 + |δ|/f) for what came before it, 0 at the match

so co-occurrence (f large, b = 1), transitions (f small, b near 0) and user-kNN (few neighbours, s = 1) are settings
of one formula; training chooses among them on the validation period. Sources: user-kNN for sequences (V-SKNN and
STAN: Ludewig & Jannach, arXiv 1803.09587; Garg et al. 2019); the rest is ours.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Final, Self

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

DAY_MS: Final = 86_400_000.0
_EVICTED_SHARE: Final = 16
"""When the rings are full, one user in so many makes room at a time: looking for the oldest costs a pass over all."""


class LiveOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the index is asked and how much it keeps; chosen in training, fixed in a bundle."""

    last: int = 20
    """q, items of a question."""
    decay: float = 0.8
    idf_power: float = 1.0
    neighbours: int = 300
    similarity_power: float = 1.0
    """s."""
    reach: float = 3.0
    """f, interactions."""
    backward: float = 0.2
    """b."""
    half_life_days: float = 0.0
    """Of an interaction's weight, by event time; 0: none."""
    popularity_power: float = 0.3
    """β."""
    ring: int = 100
    """L."""
    takers: int = 256
    """M."""
    users: int = 200_000
    """U: 1.3 kB each."""
    count_half_life_days: float = 180.0
    """Of the counts behind idf and popularity."""


class LiveIndex:
    """The rings, and the questions to them.

    Parameters
    ----------
    n_items
        N.
    options
        Sizes and formula.
    """

    def __init__(self, n_items: int, options: LiveOptions) -> None:
        self.n_items = n_items
        rows = min(options.users, 1024)
        self._items = np.full((rows, options.ring), n_items, np.int32)
        self._times = np.zeros((rows, options.ring), np.int64)
        self._lengths = np.zeros(rows, np.int64)
        self._slots: dict[int, int] = {}
        self._keys = np.zeros(rows, np.uint64)
        self._free: list[int] = []
        self._takers = np.full((n_items, options.takers), -1, np.int32)
        self._taken = np.zeros(n_items, np.int64)
        self._counts = np.zeros(n_items)
        self._counts_at_ms = 0
        self._ask(options)

    def __len__(self) -> int:
        """Users that the index knows."""
        return len(self._slots)

    @property
    def items_taken(self) -> int:
        """Items that somebody took."""
        return int(np.count_nonzero(self._taken))

    def taken_before(self, key: int, time_ms: int) -> Ints:
        """What a user took before an event time, as far as his ring goes back; in no order."""
        slot = self._slots.get(key)
        if slot is None:
            return np.zeros(0, np.int64)
        earlier = (self._items[slot] < self.n_items) & (self._times[slot] < time_ms)
        return np.asarray(self._items[slot, earlier], np.int64)

    @property
    def newest_ms(self) -> int:
        """Event time of the newest interaction that it ever took in; 0 where there was none."""
        return self._counts_at_ms

    def sequences(self, before_ms: int, most: int) -> tuple[Ints, Ints]:
        """What the rings hold from before an event time: who was active last comes first.

        The order does not depend on the rows that users happen to have, so any two workers that know the same say the
        same.

        Parameters
        ----------
        most
            Interactions altogether. If there are more, the users who were active last are kept, each whole.

        Returns
        -------
        lengths
            (U,) interactions of each user, none of them 0.
        items
            (E,) theirs, one user after the other, each one's oldest first.
        """
        slots = np.fromiter(self._slots.values(), np.int64, len(self._slots))
        known = (self._items < self.n_items) & (self._times < before_ms)
        lengths = known.sum(axis=1)[slots]
        newest = np.max(self._times, axis=1, where=known, initial=-1)[slots]
        order = np.lexsort((self._keys[slots], -newest))
        order = order[lengths[order] > 0]
        order = order[np.cumsum(lengths[order]) <= most]
        slots, lengths = slots[order], lengths[order]
        row, place = np.nonzero(known[slots])
        pushed = self._lengths[slots]
        oldest = np.where(pushed > self.options.ring, pushed % self.options.ring, 0)
        age = (place - oldest[row]) % self.options.ring
        in_order = np.argsort(row * self.options.ring + age, kind="stable")
        return lengths, self._items[slots[row], place][in_order].astype(np.int64)

    def asked_with(self, options: LiveOptions) -> Self:
        """The same memory, asked by another formula of equal sizes: good until the next `observe`."""
        view = copy.copy(self)
        view._ask(options)  # noqa: SLF001 - a copy of itself
        return view

    def _ask(self, options: LiveOptions) -> None:
        self.options = options
        distance = np.arange(options.ring)[None, :] - np.arange(options.ring)[:, None]
        near = 1.0 / (1.0 + np.abs(distance) / options.reach)
        kernel = np.where(distance > 0, near, np.where(distance < 0, options.backward * near, 0.0))
        self._kernel: Floats = kernel.astype(np.float32)

    def observe(self, keys: npt.NDArray[np.uint64], items: npt.NDArray[np.integer], times_ms: Ints) -> None:
        """Take in interactions, oldest first.

        Parameters
        ----------
        keys
            (E,) 64-bit pseudonyms of the users.
        items, times_ms
            (E,) item indexes, each in 0 .. N-1, and event times.
        """
        if not len(keys):
            return
        self._fade_to(int(times_ms.max()))
        np.add.at(self._counts, items, self._share_left(self._counts_at_ms - times_ms))
        ring, takers = self.options.ring, self.options.takers
        for key, item, time_ms in zip(keys.tolist(), items.tolist(), times_ms.tolist(), strict=True):
            slot = self._slots.get(key)
            if slot is None:
                slot = self._new_slot(key)
            at = self._lengths[slot] % ring
            self._items[slot, at] = item
            self._times[slot, at] = time_ms
            self._lengths[slot] += 1
            self._takers[item, self._taken[item] % takers] = slot
            self._taken[item] += 1

    def scores(self, histories: Sequence[npt.NDArray[np.integer]], keys: Sequence[int], now_ms: Ints) -> Floats:
        """(B, N) scores, at least 0; a row of zeros where nobody else took what the user did.

        Parameters
        ----------
        histories
            Each user's items, oldest first; only the last q are looked at.
        keys
            Their pseudonyms: nobody is his own neighbour.
        now_ms
            (B,) event times of the questions.
        """
        found = np.zeros((len(histories), self.n_items), np.float32)
        damped = np.maximum(self._counts, 1.0) ** -self.options.popularity_power
        for row, history in enumerate(histories):
            if len(history):
                found[row] = self._one(np.asarray(history)[::-1], keys[row], int(now_ms[row]))
        found *= damped.astype(np.float32)
        return found

    def _one(self, newest_first: npt.NDArray[np.integer], key: int, now_ms: int) -> npt.NDArray[np.float64]:
        options, n = self.options, self.n_items
        asked = newest_first[: options.last]
        idf = np.log1p(self._counts.sum() / (1.0 + self._counts[asked]))
        weights = options.decay ** np.arange(len(asked)) * idf**options.idf_power
        of_item = np.zeros(n + 1, np.float32)
        np.maximum.at(of_item, asked, weights.astype(np.float32))
        asked = np.unique(asked)
        takers = self._takers[asked]
        row, column = np.nonzero(takers >= 0)
        # Once for each item, however often he took it.
        pairs = np.unique(row * len(self._lengths) + takers[row, column])
        row, taker = np.divmod(pairs, len(self._lengths))
        overlap = np.bincount(taker, of_item[asked[row]], len(self._lengths))
        if (me := self._slots.get(key)) is not None:
            overlap[me] = 0.0
        users = np.flatnonzero(overlap)
        if len(users) > options.neighbours:
            users = users[np.argpartition(-overlap[users], options.neighbours)[: options.neighbours]]
        if not len(users):
            return np.zeros(n)
        items, times, lengths = self._items[users], self._times[users], self._lengths[users]
        turned = np.flatnonzero(lengths > options.ring)
        if len(turned):
            oldest_first = (np.arange(options.ring) + (lengths[turned] % options.ring)[:, None]) % options.ring
            items[turned] = np.take_along_axis(items[turned], oldest_first, axis=1)
            times[turned] = np.take_along_axis(times[turned], oldest_first, axis=1)
        width = int(min(lengths.max(), options.ring))
        times = times[:, :width]
        # The index may be ahead of the one who asks: what happened after his moment must not answer him.
        items = np.where(times <= now_ms, items[:, :width], n)
        matched = of_item[items]
        pulled = matched @ self._kernel[:width, :width]
        pulled *= (matched.sum(axis=1) ** options.similarity_power)[:, None]
        if options.half_life_days:
            age_days = np.maximum(now_ms - times, 0) / DAY_MS
            pulled *= np.exp2(-age_days / options.half_life_days)
        return np.asarray(np.bincount(items.ravel(), pulled.ravel(), n + 1)[:n], np.float64)

    def _fade_to(self, time_ms: int) -> None:
        """Let the counts fade up to an event time; older events do not turn it back."""
        if time_ms > self._counts_at_ms:
            if self._counts_at_ms:
                self._counts *= self._share_left(time_ms - self._counts_at_ms)
            self._counts_at_ms = time_ms

    def _share_left(self, age_ms: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """What is left of a count after a time: so counts do not depend on how events were batched."""
        half_life = self.options.count_half_life_days
        if not half_life:
            return np.ones(np.shape(age_ms))
        return np.asarray(np.exp2(-np.asarray(age_ms, np.float64) / DAY_MS / half_life))

    def _new_slot(self, key: int) -> int:
        if not self._free:
            used = len(self._slots)
            if used < len(self._lengths):
                self._free = [used]
            elif used < self.options.users:
                self._grow(min(2 * used, self.options.users))
                self._free = [used]
            else:
                self._evict()
        slot = self._free.pop()
        self._slots[key] = slot
        self._keys[slot] = key
        return slot

    def _grow(self, rows: int) -> None:
        more = rows - len(self._lengths)
        ring = self.options.ring
        self._items = np.concatenate([self._items, np.full((more, ring), self.n_items, np.int32)])
        self._times = np.concatenate([self._times, np.zeros((more, ring), np.int64)])
        self._lengths = np.concatenate([self._lengths, np.zeros(more, np.int64)])
        self._keys = np.concatenate([self._keys, np.zeros(more, np.uint64)])

    def _evict(self) -> None:
        """Forget the users whose last interaction is the oldest, and what items remember of them."""
        newest = self._times.max(axis=1)
        many = max(1, len(newest) // _EVICTED_SHARE)
        gone = np.argpartition(newest, many - 1)[:many]
        for slot in gone.tolist():
            del self._slots[int(self._keys[slot])]
        self._items[gone] = self.n_items
        self._times[gone] = 0
        self._lengths[gone] = 0
        self._takers[np.isin(self._takers, gone)] = -1
        self._free = gone.tolist()

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """What the index knows, as arrays without the empty places: what a checkpoint and a bundle hold.

        The item rings are there too: they go further back than a ring of a user who takes much.
        """
        slots = np.fromiter(self._slots.values(), np.int64, len(self._slots))
        ring = self.options.ring
        row, place = _places(self._lengths[slots], ring)
        row = slots[row]
        item, of_item = _places(self._taken, self.options.takers)
        takers = self._takers[item, of_item]
        saved_as = np.full(len(self._lengths) + 1, -1, np.int32)  # the last one is for -1: nobody
        saved_as[slots] = np.arange(len(slots))
        return {
            "keys": self._keys[slots],
            "lengths": self._lengths[slots],
            "items": self._items[row, place],
            "times_ms": self._times[row, place],
            "taken": self._taken.copy(),
            "takers": saved_as[takers],
            "counts": self._counts.copy(),
            "counts_at_ms": np.array([self._counts_at_ms], np.int64),
        }

    @classmethod
    def from_state(cls, n_items: int, options: LiveOptions, state: Mapping[str, npt.NDArray[np.generic]]) -> Self:
        """Build the index that `state` described.

        Raises
        ------
        ValueError
            The arrays do not fit together, or belong to another catalogue or other sizes.
        """
        index = cls(n_items, options)
        lengths = np.asarray(state["lengths"], np.int64)
        items, times = np.asarray(state["items"], np.int64), np.asarray(state["times_ms"], np.int64)
        kept = np.minimum(lengths, options.ring)
        if not len(items) == len(times) == kept.sum() or len(state["keys"]) != len(lengths):
            raise ValueError(f"{len(items)} items and {len(times)} times of {len(lengths)} users do not fit together")
        if state["counts"].shape != (n_items,) or (len(items) and not 0 <= items.min() <= items.max() < n_items):
            raise ValueError(f"it belongs to another catalogue than this one of {n_items} items")
        taken, takers = np.asarray(state["taken"], np.int64), np.asarray(state["takers"], np.int32)
        item, of_item = _places(taken, options.takers)
        if taken.shape != (n_items,) or len(takers) != len(item):
            raise ValueError(f"{len(takers)} takers do not fit what is said of {len(taken)} items")
        if len(takers) and not -1 <= takers.min() <= takers.max() < len(lengths):
            raise ValueError(f"it names a user that is none of its {len(lengths)}")
        if len(lengths) > options.users:
            raise ValueError(f"{len(lengths)} users, at most {options.users} are kept")
        if len(lengths) > len(index._lengths):
            index._grow(len(lengths))
        index._lengths[: len(lengths)] = lengths
        index._keys[: len(lengths)] = state["keys"]
        index._slots = {key: slot for slot, key in enumerate(index._keys[: len(lengths)].tolist())}
        row, place = _places(lengths, options.ring)
        index._items[row, place] = items
        index._times[row, place] = times
        index._taken[...] = taken
        index._takers[item, of_item] = takers
        index._counts[...] = np.asarray(state["counts"], np.float64)
        index._counts_at_ms = int(np.asarray(state["counts_at_ms"], np.int64)[0])
        return index


def _places(pushed: Ints, size: int) -> tuple[Ints, Ints]:
    """What rings of `size` places still hold after (R,) pushes into each: their rows and places, oldest first."""
    kept = np.minimum(pushed, size)
    row = np.repeat(np.arange(len(pushed)), kept)
    back = np.repeat(np.cumsum(kept), kept) - np.arange(int(kept.sum()))  # 1: the newest of its row
    return row, (pushed[row] - back) % size
