"""Training the SRM on the cloud's lists: which of a list's items is the one that is taken (LSC4Rec, arXiv 2501.05647).

A device holds a list for some interactions, so a list that was made at position p of a history serves `SERVES` of them.
Each is an example: what was taken, and up to `OTHERS` others that the list still offers; the loss is the binary
cross-entropy of σ(h · E_i + b_i). An SRM that carries its state runs over the whole history as on the device: a stretch
of it begins with the state that the network itself had there at the epoch's start (a burn-in without gradient, as in
R2D2, Kapturowski et al. 2019). One that looks at a window is given what of the window lies before the stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from cloud_worker.sequence import PAD
from cloud_worker.training.cloud_lists import CloudLists
from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.list_fusion import DRAWN
from cloud_worker.training.srm import Srm

SERVES: Final = 8
"""Interactions that a list serves: the next ones from where it was made."""
STRETCH: Final = 6 * SERVES
"""Interactions that are trained on in a row, if the window of the SRM bears them."""
OTHERS: Final = 99
_AT_ONCE: Final = 16
"""Stretches of a batch."""
_SAMPLED: Final = 512
"""States that the first bias is judged by."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Stretches:
    """Pieces of histories: (C,) users, first positions, numbers of interactions."""

    users: Ints
    begins: Ints
    counts: Ints

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Stretches:
        """Some of them."""
        return Stretches(self.users[rows], self.begins[rows], self.counts[rows])

    @property
    def lists(self) -> Ints:
        """(C,) lists that each needs."""
        return np.asarray(-(-self.counts // SERVES))

    def made_at(self) -> tuple[Ints, Ints]:
        """(L,) users and positions at which the lists are made, stretch by stretch."""
        many = self.lists
        nth = np.arange(int(many.sum())) - np.repeat(np.cumsum(many) - many, many)
        return np.repeat(self.users, many), np.repeat(self.begins, many) + SERVES * nth

    def served(self) -> tuple[Ints, Ints, Ints]:
        """(P,) users, positions, and which list serves there, of every interaction, stretch by stretch."""
        step = np.arange(int(self.counts.sum())) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        many = self.lists
        first = np.repeat(np.cumsum(many) - many, self.counts)
        return np.repeat(self.users, self.counts), np.repeat(self.begins, self.counts) + step, first + step // SERVES


def cut(first: Ints, end: Ints, window: int) -> Stretches:
    """Cut what lies between two positions of each user, (U,) and (U,), into stretches of at most a window and one."""
    size = min(STRETCH, window + 1)
    lengths = np.maximum(end - first, 0)
    many = -(-lengths // size)
    users = np.repeat(np.arange(len(first)), many)
    nth = np.arange(len(users)) - np.repeat(np.cumsum(many) - many, many)
    return Stretches(users, first[users] + size * nth, np.minimum(size, lengths[users] - size * nth))


@dataclass(frozen=True)
class Examples:
    """Stretches with their lists, as training reads them.

    Attributes
    ----------
    items, valid
        (P, 1 + n) what was taken, then the list's items; and which of them are compared.
    at
        (C + 1,) where each stretch's interactions begin.
    """

    stretches: Stretches
    items: npt.NDArray[np.int32]
    valid: Bools
    at: Ints

    def __len__(self) -> int:
        return len(self.stretches)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Examples:
        """Some of the stretches, in the order given."""
        some = self.stretches.take(rows)
        at = np.concatenate([[0], np.cumsum(some.counts)])
        flat = np.repeat(self.at[:-1][rows] - at[:-1], some.counts) + np.arange(int(at[-1]))
        return Examples(some, self.items[flat], self.valid[flat], at)


def examples(histories: Histories, stretches: Stretches, lists: CloudLists, *, exclude_seen: bool) -> Examples:
    """Put what was taken beside the lists, and leave out what a list cannot offer any more.

    Parameters
    ----------
    lists
        (L,) in the order of `Stretches.made_at`.
    exclude_seen
        What was taken since the list was made is not offered again.
    """
    users, positions, which = stretches.served()
    starts = histories.starts[users]
    taken = histories.items[starts + positions].astype(np.int32)
    items, valid = lists.items[which], lists.listed[which] & (lists.items[which] != taken[:, None])
    if exclude_seen:
        since = positions - stretches.made_at()[1][which]
        for back in range(1, SERVES):
            earlier = histories.items[starts + np.maximum(positions - back, 0)]
            valid &= (since < back)[:, None] | (items != earlier[:, None])
    valid &= np.cumsum(valid, axis=1) <= OTHERS
    return Examples(
        stretches,
        np.concatenate([taken[:, None], items], axis=1),
        np.concatenate([np.ones((len(taken), 1), np.bool_), valid], axis=1),
        np.concatenate([[0], np.cumsum(stretches.counts)]),
    )


def list_loss(scores: Tensor, valid: Tensor) -> Tensor:
    """Mean binary cross-entropy of lists.

    Parameters
    ----------
    scores, valid
        (Q, 1 + n) logits, of what was taken first, and which of them count; a list's loss is its mean.
    """
    wanted = torch.zeros_like(scores)
    wanted[:, 0] = 1.0
    each = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none") * valid
    return (each.sum(dim=1) / valid.sum(dim=1)).mean()


@torch.no_grad()
def shift_bias(model: Srm, histories: Histories, stretches: Stretches) -> None:
    """Turn the logits of a softmax into log-odds against `DRAWN` others: a constant, so no rank changes."""
    some = np.linspace(0, len(stretches) - 1, min(_SAMPLED, len(stretches))).astype(np.int64)  # of all users
    hidden = model.running_states(histories, stretches.users[some], stretches.begins[some])
    scores = F.linear(torch.from_numpy(hidden).to(model.bias.device), model.table(), model.bias)
    model.bias.add_(float(np.log(len(model.bias) / DRAWN)) - scores.logsumexp(dim=1).mean())


def fit(
    model: Srm,
    histories: Histories,
    given: Examples,
    *,
    window: int,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    generator: np.random.Generator,
    after_epoch: Callable[[int, float], None] = lambda _epoch, _loss: None,
) -> None:
    """Train `model` in place; the rate falls to zero as a cosine.

    Parameters
    ----------
    window
        W, what a network that carries no state looks at.
    after_epoch
        Called with the number of epochs done and their last mean loss.
    """
    if not len(given):
        return
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    steps = epochs * -(-len(given) // _AT_ONCE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for epoch in range(epochs):
        first = None
        if model.carries_state:
            first = torch.from_numpy(model.running_states(histories, given.stretches.users, given.stretches.begins))
        model.train()
        losses: list[Tensor] = []
        for rows in _batches(given.stretches.counts, generator):
            loss = _loss(model, histories, given.take(rows), first if first is None else first[rows], window)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.detach())
        model.eval()
        after_epoch(epoch + 1, float(torch.stack(losses).mean()))


def _loss(model: Srm, histories: Histories, some: Examples, first: Tensor | None, window: int) -> Tensor:
    device, stretches = model.bias.device, some.stretches
    before_it = np.zeros(len(stretches), np.int64)
    if first is None:
        before_it = np.minimum(stretches.begins, window + 1 - stretches.counts)
    lengths = before_it + stretches.counts
    steps = np.arange(int(lengths.max()))
    known = steps < lengths[:, None]
    begins = histories.starts[stretches.users] + stretches.begins - before_it
    at = np.minimum(begins[:, None] + steps, len(histories.items) - 1)
    rows = torch.from_numpy(np.where(known, histories.items[at], PAD)).to(device)
    table = model.table()
    initial = None if first is None else first.to(device)
    states, _ = model.before_each(rows, torch.zeros_like(rows), table, initial)
    hidden = states[torch.from_numpy(known & (steps >= before_it[:, None])).to(device)]
    items = torch.from_numpy(some.items.astype(np.int64)).to(device)
    scores = torch.einsum("qh,qnh->qn", hidden, F.embedding(items, table)) + model.bias[items]
    return list_loss(scores, torch.from_numpy(some.valid).to(device))


def _batches(counts: Ints, generator: np.random.Generator) -> Iterator[Ints]:
    """Stretches of like length together, in random order."""
    order = np.argsort(counts * generator.uniform(0.85, 1.15, len(counts)), kind="stable")
    made = np.split(order, np.arange(_AT_ONCE, len(order), _AT_ONCE))
    for index in generator.permutation(len(made)):
        yield made[index]
