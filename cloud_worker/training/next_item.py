"""Training a network to name the next item: chunks of histories, full or sampled softmax, one schedule.

Histories are cut into chunks, so that a batch is a few long rows rather than one very long one. A network that carries
its state over a user's whole life (the device's) begins a chunk with the state that the chunk before ended with, as it
was last seen (stored states, as in R2D2, Kapturowski et al. 2019); a network that sees a window (the cloud's) begins
with zero, and its chunks are cut elsewhere in each epoch.

The loss is the cross-entropy over the whole catalogue, or over a batch's own targets and some other items, with the
logQ correction (Bengio & Senécal 2008; Yi et al. 2019). Where nothing is recommended twice, what a user took is left
out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from cloud_worker.sequence import PAD, gap_buckets
from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.options import FitOptions

_WARM_UP: Final = 0.1
_FEWEST_ROWS: Final = 4


class NextItemModel(Protocol):
    """What can be trained here."""

    bias: nn.Parameter
    carries_state: bool
    """Begin a chunk with the state that the one before ended with."""

    def table(self) -> Tensor:
        """(N, E) output vectors of the items."""
        ...

    def before_each(self, items: Tensor, gaps: Tensor, table: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, L, E) what scores each interaction, and (B, L, h) states after each."""
        ...


@dataclass(frozen=True)
class Chunks:
    """Stretches of histories: (C,) users, first positions, numbers of interactions."""

    users: Ints
    begins: Ints
    counts: Ints


def cut(lengths: Ints, size: int, offsets: Ints | None = None) -> Chunks:
    """Cut histories into chunks of at most `size` interactions.

    Parameters
    ----------
    lengths
        (U,) interactions of each user that count.
    offsets
        (U,) length of each user's first chunk, in 1 .. size; None: `size`.
    """
    first = np.minimum(lengths, size if offsets is None else offsets)
    more = -(-(lengths - first) // size)
    pieces = np.where(lengths > 0, 1 + more, 0)
    users = np.repeat(np.arange(len(lengths)), pieces)
    nth = np.arange(len(users)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begins = np.where(nth == 0, 0, first[users] + (nth - 1) * size)
    counts = np.where(nth == 0, first[users], np.minimum(size, lengths[users] - begins))
    return Chunks(users, begins, counts)


def fit(
    model: NextItemModel,
    histories: Histories,
    options: FitOptions,
    *,
    lengths: Ints,
    epochs: int,
    exclude_seen: bool,
    generator: np.random.Generator,
    after_epoch: Callable[[int, float], bool] | None = None,
) -> None:
    """Train `model` in place on each user's first ``lengths`` interactions.

    Parameters
    ----------
    after_epoch
        Called with the number of epochs done and their last mean loss; True ends the training.
    """
    assert isinstance(model, nn.Module)
    if not epochs or not lengths.any():
        return
    device = model.bias.device
    negatives = _Negatives(histories, lengths, options, generator, device)
    gaps = _gaps(histories)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    fixed = cut(lengths, options.chunk)
    stored: Tensor | None = None
    for epoch in range(epochs):
        model.train()
        chunks = fixed
        if not model.carries_state:
            chunks = cut(lengths, options.chunk, generator.integers(1, options.chunk + 1, len(lengths)))
        batches = _batches(chunks.counts, options.positions, generator)
        losses: list[Tensor] = []
        for step, rows in enumerate(batches):
            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * _share((epoch + step / len(batches)) / epochs)
            batch = _Batch.of(histories, gaps, chunks, rows, device)
            table = model.table()
            initial = stored[torch.from_numpy(rows).to(device)] if stored is not None else None
            before, states = model.before_each(batch.items, batch.gaps, table, initial)
            if model.carries_state:
                if stored is None:
                    stored = torch.zeros(len(chunks.users), states.shape[-1], device=device)
                _store(stored, states.detach(), chunks, rows, options.chunk)
            hidden, targets = before[batch.real], batch.items[batch.real]
            seen = batch.seen(histories) if exclude_seen and negatives.full else None
            loss = negatives.loss(hidden, targets, table, model.bias, seen)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.detach())
        if after_epoch is not None and after_epoch(epoch + 1, float(torch.stack(losses).mean())):
            break
    model.eval()


@dataclass(frozen=True)
class _Batch:
    """Some chunks as tensors (B, L)."""

    items: Tensor
    gaps: Tensor
    real: Tensor
    users: Ints
    begins: Ints

    @staticmethod
    def of(histories: Histories, gaps: Ints, chunks: Chunks, rows: Ints, device: torch.device) -> _Batch:
        users, begins, counts = chunks.users[rows], chunks.begins[rows], chunks.counts[rows]
        steps = np.arange(int(counts.max()))
        real = steps < counts[:, None]
        at = np.minimum((histories.starts[users] + begins)[:, None] + steps, len(histories.items) - 1)
        items = np.where(real, histories.items[at], PAD)
        since = np.where(real, gaps[at], 0)
        since[:, 0] = 0  # a window does not know what came before it; training must not either
        return _Batch(
            torch.from_numpy(items).to(device),
            torch.from_numpy(since).to(device),
            torch.from_numpy(real).to(device),
            users,
            begins,
        )

    def seen(self, histories: Histories) -> Tensor:
        """(Q, N) what each real interaction's user had taken before it, but for the interaction's own item."""
        items = self.items.cpu().numpy()
        taken = np.zeros((*items.shape, histories.n_items), np.bool_)
        row, step = np.nonzero(items[:, :-1] >= 0)
        taken[row, step + 1, items[row, step]] = True
        for index, (user, begin) in enumerate(zip(self.users, self.begins, strict=True)):
            taken[index, 0, histories.of(user, int(begin))] = True
        np.logical_or.accumulate(taken, axis=1, out=taken)
        real = items >= 0
        flat = taken[real]
        flat[np.arange(len(flat)), items[real]] = False
        return torch.from_numpy(flat).to(self.items.device)


class _Negatives:
    """What a target is compared with: everything, or a draw that a batch shares."""

    def __init__(
        self,
        histories: Histories,
        lengths: Ints,
        options: FitOptions,
        generator: np.random.Generator,
        device: torch.device,
    ) -> None:
        n = histories.n_items
        self.full = n <= options.full_softmax_items
        self._generator, self._device, self._many = generator, device, options.negatives
        counts = np.bincount(histories.items[histories.places < lengths[histories.owners]], minlength=n)
        # A batch's own targets, which are drawn by popularity, and some drawn uniformly, so that no item is left
        # without a gradient. Each once: 1 - (1 - p)^n is how likely an item is among them.
        share = counts / max(int(counts.sum()), 1)
        often = min(options.positions, int(counts.sum()))
        missed = often * np.log1p(-np.minimum(share, 0.999)) + options.negatives * np.log1p(-1.0 / max(n, 2))
        self._log_expected = torch.from_numpy(np.log(-np.expm1(missed))).float().to(device)

    def loss(self, hidden: Tensor, targets: Tensor, table: Tensor, bias: Tensor, seen: Tensor | None) -> Tensor:
        """Mean cross-entropy of targets (Q,) under hidden (Q, E)."""
        if self.full:
            scores = F.linear(hidden, table, bias)
            if seen is not None:
                scores = scores.masked_fill(seen, -torch.inf)
            return F.cross_entropy(scores, targets)
        drawn = torch.from_numpy(self._generator.integers(0, len(table), self._many)).to(self._device)
        items, places = torch.unique(torch.cat([targets, drawn]), return_inverse=True)
        scores = F.linear(hidden, table[items], bias[items] - self._log_expected[items])
        return F.cross_entropy(scores, places[: len(targets)])


def _batches(counts: Ints, positions: int, generator: np.random.Generator) -> list[Ints]:
    """Chunks of like length together, so that little of a batch is padding; shuffled."""
    order = np.argsort(-counts * generator.uniform(0.85, 1.15, len(counts)), kind="stable")
    made: list[Ints] = []
    begin = 0
    while begin < len(order):
        rows = max(_FEWEST_ROWS, positions // max(1, int(counts[order[begin]])))
        made.append(order[begin : begin + rows])
        begin += rows
    return [made[index] for index in generator.permutation(len(made))]


def _store(stored: Tensor, states: Tensor, chunks: Chunks, rows: Ints, size: int) -> None:
    """Where a chunk is full, its last state is what the next chunk of the user begins with."""
    after = np.minimum(rows + 1, len(chunks.users) - 1)
    follows = (after > rows) & (chunks.users[after] == chunks.users[rows])
    index = np.flatnonzero(follows)
    if len(index):
        stored[torch.from_numpy(rows[index] + 1).to(stored.device)] = states[
            torch.from_numpy(index).to(stored.device), size - 1
        ]


def _gaps(histories: Histories) -> Ints:
    """(E,) bucket of the time before each interaction; 0 for a user's first."""
    buckets = np.zeros(len(histories.items), np.int64)
    buckets[1:] = gap_buckets(np.diff(histories.times_ms))
    starts = histories.starts[:-1]
    buckets[starts[starts < len(buckets)]] = 0
    return buckets


def _share(done: float) -> float:
    """Of the learning rate: up over the first tenth, then down to zero as a cosine."""
    if done < _WARM_UP:
        return done / _WARM_UP
    return 0.5 * (1.0 + float(np.cos(np.pi * (done - _WARM_UP) / (1.0 - _WARM_UP))))
