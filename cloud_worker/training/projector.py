"""The projector: from the text vector of a profile to the shared space, whose item vectors it takes as they are.

    e = projector(Text(profile))        score(i) = ⟨e, v_i⟩ + b_i        projector: linear, GELU, linear

A profile vector costs a forward pass of the text encoder, so only some hundred can be had. Therefore three steps: (1)
the projector from *stand-ins* at many positions, the recency-weighted mean of the items' own text vectors; (2) a ridge
regression from real profile vectors to stand-ins, folded into the first layer; (3) fine-tuning on the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.options import ProjectorOptions
from cloud_worker.training.text import stand_ins

Floats = npt.NDArray[np.float32]
AfterStep = Callable[[int, int, float], None]


def _no_word(_done: int, _total: int, _loss: float) -> None: ...


SAMPLED = 4096
"""Items that a batch compares where the catalogue is larger."""


class Projector(nn.Module):
    """The two layers.

    Parameters
    ----------
    width, hidden, dim
        T, H and d.
    """

    def __init__(self, width: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, dim)

    def forward(self, profiles: Tensor) -> Tensor:
        """(Q, d) e of profile vectors (Q, T)."""
        e: Tensor = self.second(F.gelu(self.first(profiles)))
        return e

    @torch.no_grad()
    def embed(self, profiles: Floats) -> Floats:
        """(Q, d) e of profile vectors (Q, T)."""
        e: Floats = self(torch.from_numpy(profiles).to(self.first.weight.device)).cpu().numpy()
        return e

    def tensors(self) -> dict[str, Floats]:
        """As in `streams.bundle.CLOUD_TENSORS`."""
        layers = {"projector.0": self.first, "projector.2": self.second}
        named = {
            f"{name}.{part}": getattr(layer, part) for name, layer in layers.items() for part in ("weight", "bias")
        }
        return {name: tensor.detach().cpu().numpy().astype(np.float32) for name, tensor in named.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Floats]) -> Self:
        """Build the projector of a bundle's cloud part."""
        hidden, width = tensors["projector.0.weight"].shape
        model = cls(width, hidden, len(tensors["projector.2.bias"]))
        for place, layer in (("0", model.first), ("2", model.second)):
            layer.load_state_dict(
                {part: torch.from_numpy(np.array(tensors[f"projector.{place}.{part}"])) for part in ("weight", "bias")}
            )
        return model.eval()


def loss_of(
    model: Projector,
    profiles: Tensor,
    targets: Tensor,
    seen: Tensor | None,
    drawn: Tensor | None,
    table: Tensor,
    bias: Tensor,
) -> Tensor:
    """Mean cross-entropy of targets (Q, K), -1 where there are fewer, among all items or those drawn (S,).

    Parameters
    ----------
    seen
        (Q, W) items not to compare with, -1 where there are fewer; None: none.
    table, bias
        (N, d) and (N,) of the shared space.
    """
    e = model(profiles)
    if drawn is None:
        scores = F.linear(e, table, bias)
        if seen is not None:
            row, column = torch.nonzero(seen >= 0, as_tuple=True)
            mask = torch.zeros_like(scores, dtype=torch.bool)
            mask[row, seen[row, column]] = True
            row, column = torch.nonzero(targets >= 0, as_tuple=True)
            mask[row, targets[row, column]] = False
            scores = scores.masked_fill(mask, -torch.inf)
        logged = F.log_softmax(scores, dim=-1)
        places = targets.clamp_min(0)
    else:
        known = targets.clamp_min(0)
        items, inverse = torch.unique(torch.cat([known.reshape(-1), drawn]), return_inverse=True)
        logged = F.log_softmax(F.linear(e, table[items], bias[items]), dim=-1)
        places = inverse[: known.numel()].reshape(known.shape)
    weight = (targets >= 0).float()
    own = logged.gather(1, places).masked_fill(targets < 0, 0.0)
    return -(own * weight).sum() / weight.sum().clamp_min(1.0)


def next_items(histories: Histories, users: Ints, positions: Ints, ends: Ints, horizon: int) -> Ints:
    """(Q, horizon) what is taken from positions on, before ends; -1 behind."""
    places = positions[:, None] + np.arange(horizon)
    inside = places < ends[:, None]
    items = histories.items[np.minimum(histories.starts[users][:, None] + places, len(histories.items) - 1)]
    return np.where(inside, items, -1)


def seen_items(histories: Histories, users: Ints, positions: Ints, limit: int = 400) -> Ints:
    """(Q, W) the last items before positions, at most `limit`; -1 behind."""
    width = int(min(limit, positions.max(initial=1)))
    back = np.arange(1, width + 1)
    places = positions[:, None] - back
    items = histories.items[np.maximum(histories.starts[users][:, None] + places, 0)]
    return np.where(places >= 0, items, -1)


def train_on_stand_ins(
    model: Projector,
    space: tuple[Tensor, Tensor],
    item_text: Floats,
    histories: Histories,
    options: ProjectorOptions,
    *,
    last: int,
    exclude_seen: bool,
    generator: np.random.Generator,
    after: AfterStep = _no_word,
) -> None:
    """Step 1, in place: from stand-ins at random positions of the training period.

    Parameters
    ----------
    space
        Item vectors and biases.
    item_text
        (N, T)
    """
    many = np.maximum(histories.trained - 1, 0)
    if not many.any():
        return
    users = np.repeat(np.arange(histories.n_users), many)
    positions = np.arange(len(users)) - np.repeat(np.cumsum(many) - many, many) + 1
    rounds = -(-options.stand_in_positions // len(users))
    order = np.concatenate([generator.permutation(len(users)) for _ in range(rounds)])[: options.stand_in_positions]
    cut = np.array_split(order, max(1, len(order) // options.batch))
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.learning_rate, total_steps=len(cut), pct_start=0.1
    )
    for step, rows in enumerate(cut):
        u, p = users[rows], positions[rows]
        profiles = stand_ins(histories, u, p, item_text, last=last, decay=options.text_decay)
        targets = next_items(histories, u, p, histories.trained[u], 1)
        loss = loss_of(model, *_batch(space, histories, u, p, profiles, targets, exclude_seen, generator))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step % 10 == 9:
            after(step + 1, len(cut), float(loss.detach()))


@torch.no_grad()
def fold_in_real_profiles(model: Projector, profiles: Floats, stand_in: Floats, ridge: float) -> None:
    """Step 2, in place: put x -> R x + c, the ridge regression from profiles to stand-ins (S, T), before layer one."""
    if not len(profiles):
        return
    x, y = profiles.astype(np.float64), stand_in.astype(np.float64)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    centred = x - x_mean
    gram = centred.T @ centred + ridge * np.eye(x.shape[1])
    r = np.linalg.solve(gram, centred.T @ (y - y_mean)).T
    c = y_mean - r @ x_mean
    first = model.first
    weight = first.weight.double().cpu()
    first.bias.add_((weight @ torch.from_numpy(c)).to(first.bias))
    first.weight.copy_((weight @ torch.from_numpy(r)).to(first.weight))


def train_on_profiles(
    model: Projector,
    space: tuple[Tensor, Tensor],
    histories: Histories,
    users: Ints,
    positions: Ints,
    profiles: Floats,
    options: ProjectorOptions,
    *,
    exclude_seen: bool,
    generator: np.random.Generator,
    after: AfterStep = _no_word,
) -> None:
    """Step 3, in place: on real profile vectors (S, T) of the training period."""
    if not len(users):
        return
    rate = options.learning_rate / 10
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    targets = next_items(histories, users, positions, histories.trained[users], options.horizon)
    for epoch in range(options.epochs):
        losses = []
        for rows in np.array_split(generator.permutation(len(users)), max(1, len(users) // 128)):
            batch = _batch(
                space, histories, users[rows], positions[rows], profiles[rows], targets[rows], exclude_seen, generator
            )
            loss = loss_of(model, *batch)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(float(loss.detach()))
        after(epoch + 1, options.epochs, float(np.mean(losses)))


def _batch(
    space: tuple[Tensor, Tensor],
    histories: Histories,
    users: Ints,
    positions: Ints,
    profiles: Floats,
    targets: Ints,
    exclude_seen: bool,
    generator: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
    """The arguments of `loss_of` after the model."""
    table, bias = space
    seen = drawn = None
    if len(bias) > SAMPLED:
        drawn = torch.from_numpy(generator.choice(len(bias), SAMPLED, replace=False)).to(bias.device)
    elif exclude_seen:
        seen = torch.from_numpy(seen_items(histories, users, positions)).to(bias.device)
    return (
        torch.from_numpy(profiles).to(bias.device),
        torch.from_numpy(targets).to(bias.device),
        seen,
        drawn,
        table,
        bias,
    )
