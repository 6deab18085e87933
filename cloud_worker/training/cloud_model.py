"""The shared space: item vectors v_i = A T_i + id_i with biases b_i, and the projector from profile text to e.

    e = projector(Text(profile))        score(i) = ⟨e, v_i⟩ + b_i        projector: linear, GELU, linear

A profile vector costs a forward pass of the text encoder, so only some thousand can be had, too few to learn item
vectors from. Therefore three steps: (1) items and projector from *stand-ins* at many positions, the recency-weighted
mean of the items' own vectors; (2) a ridge regression from real profile vectors to stand-ins, folded into the
projector's first layer; (3) the projector alone, on the real ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from cloud_worker.training.data import Histories, Ints
from cloud_worker.training.options import CloudOptions
from cloud_worker.training.text import stand_ins

Floats = npt.NDArray[np.float32]
AfterEpoch = Callable[[int, int, float], None]


def _no_word(_done: int, _total: int, _loss: float) -> None: ...


SAMPLED = 4096
"""Items that a batch compares where the catalogue is larger."""


class CloudModel(nn.Module):
    """Item side and projector.

    Parameters
    ----------
    text
        (N, T) text vectors of the items.
    popularity
        (N,) interactions; the biases start at their logarithm.
    """

    text: Tensor

    def __init__(self, text: Floats, popularity: Ints, d: int, hidden: int) -> None:
        super().__init__()
        n_items, width = text.shape
        self.register_buffer("text", torch.from_numpy(text), persistent=False)
        self.from_text = nn.Linear(width, d, bias=False)
        self.ids = nn.Parameter(torch.randn(n_items, d) * 0.02)
        logged = np.log1p(popularity)
        self.bias = nn.Parameter(torch.from_numpy((logged - logged.mean()).astype(np.float32)) * 0.5)
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, d)

    def vectors(self, items: Tensor | None = None) -> Tensor:
        """(n, d) v of some items, or of all."""
        if items is None:
            mixed: Tensor = self.from_text(self.text) + self.ids
        else:
            mixed = self.from_text(self.text[items]) + self.ids[items]
        return mixed

    def project(self, profiles: Tensor) -> Tensor:
        """(Q, d) e of profile vectors (Q, T)."""
        e: Tensor = self.second(F.gelu(self.first(profiles)))
        return e

    @torch.no_grad()
    def embed(self, profiles: Floats) -> Floats:
        """(Q, d) e of profile vectors (Q, T), as the topics carry them: float16."""
        device = self.bias.device
        e: Floats = self.project(torch.from_numpy(profiles).to(device)).cpu().numpy()
        return e.astype(np.float16).astype(np.float32)

    @torch.no_grad()
    def rescale(self, profiles: Floats) -> None:
        """Make the mean length of e one and item vectors as much longer: scores stay, magnitudes suit float16."""
        length = float(np.linalg.norm(self.embed(profiles), axis=1).mean())
        if length <= 0 or not np.isfinite(length):
            return
        self.second.weight.div_(length)
        self.second.bias.div_(length)
        self.from_text.weight.mul_(length)
        self.ids.mul_(length)

    def cloud_tensors(self) -> dict[str, Floats]:
        """As in `streams.bundle.CLOUD_TENSORS`."""
        layers = {"projector.0": self.first, "projector.2": self.second}
        named = {
            f"{name}.{part}": getattr(layer, part) for name, layer in layers.items() for part in ("weight", "bias")
        }
        return {name: tensor.detach().cpu().numpy().astype(np.float32) for name, tensor in named.items()}


def loss_of(model: CloudModel, profiles: Tensor, targets: Tensor, seen: Tensor | None, drawn: Tensor | None) -> Tensor:
    """Mean cross-entropy of targets (Q, K), -1 where there are fewer, among all items or those drawn (S,).

    Parameters
    ----------
    seen
        (Q, W) items not to compare with, -1 where there are fewer; None: none.
    """
    e = model.project(profiles)
    if drawn is None:
        scores = F.linear(e, model.vectors(), model.bias)
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
        logged = F.log_softmax(F.linear(e, model.vectors(items), model.bias[items]), dim=-1)
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
    model: CloudModel,
    histories: Histories,
    options: CloudOptions,
    *,
    last: int,
    exclude_seen: bool,
    generator: np.random.Generator,
    after: AfterEpoch = _no_word,
) -> None:
    """Step 1, in place: items and projector, from stand-ins at random positions of the training period."""
    users = np.repeat(np.arange(histories.n_users), np.maximum(histories.trained - 1, 0))
    first = np.repeat(np.cumsum(np.maximum(histories.trained - 1, 0)), np.maximum(histories.trained - 1, 0))
    positions = np.arange(len(users)) - (first - np.maximum(histories.trained - 1, 0)[users]) + 1
    if not len(users):
        return
    text = model.text.cpu().numpy()
    rounds = -(-options.stand_in_positions // len(users))
    order = np.concatenate([generator.permutation(len(users)) for _ in range(rounds)])
    order = order[: options.stand_in_positions]
    cut = np.array_split(order, max(1, len(order) // options.batch))
    ids = [model.ids]
    others = [p for name, p in model.named_parameters() if name != "ids"]
    optimiser = torch.optim.AdamW(
        [{"params": ids, "weight_decay": 0.05}, {"params": others, "weight_decay": 1e-2}], lr=options.learning_rate
    )
    rate = options.learning_rate
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=len(cut), pct_start=0.1)
    for step, rows in enumerate(cut):
        u, p = users[rows], positions[rows]
        profiles = stand_ins(histories, u, p, text, last=last, decay=options.text_decay)
        targets = next_items(histories, u, p, histories.trained[u], 1)
        loss = loss_of(model, *_batch(model, histories, u, p, profiles, targets, exclude_seen, generator))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step % 10 == 9:
            after(step + 1, len(cut), float(loss.detach()))


@torch.no_grad()
def fold_in_real_profiles(model: CloudModel, profiles: Floats, stand_in: Floats, ridge: float) -> None:
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
    model: CloudModel,
    histories: Histories,
    users: Ints,
    positions: Ints,
    profiles: Floats,
    options: CloudOptions,
    *,
    exclude_seen: bool,
    generator: np.random.Generator,
    after: AfterEpoch = _no_word,
) -> None:
    """Step 3, in place: the projector, on real profile vectors (S, T) of the training period."""
    if not len(users):
        return
    for parameter in (model.ids, model.from_text.weight, model.bias):
        parameter.requires_grad_(False)
    rate = options.learning_rate / 10
    optimiser = torch.optim.AdamW([*model.first.parameters(), *model.second.parameters()], lr=rate, weight_decay=1e-2)
    targets = next_items(histories, users, positions, histories.trained[users], options.horizon)
    for epoch in range(options.snapshot_epochs):
        losses = []
        for rows in np.array_split(generator.permutation(len(users)), max(1, len(users) // 128)):
            batch = _batch(
                model, histories, users[rows], positions[rows], profiles[rows], targets[rows], exclude_seen, generator
            )
            loss = loss_of(model, *batch)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(float(loss.detach()))
        after(epoch + 1, options.snapshot_epochs, float(np.mean(losses)))


def _batch(
    model: CloudModel,
    histories: Histories,
    users: Ints,
    positions: Ints,
    profiles: Floats,
    targets: Ints,
    exclude_seen: bool,
    generator: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """What `loss_of` wants, on the model's device."""
    device = model.bias.device
    n_items = len(model.bias)
    drawn = seen = None
    if n_items > SAMPLED:
        drawn = torch.from_numpy(generator.choice(n_items, SAMPLED, replace=False)).to(device)
    elif exclude_seen:
        seen = torch.from_numpy(seen_items(histories, users, positions)).to(device)
    return torch.from_numpy(profiles).to(device), torch.from_numpy(targets).to(device), seen, drawn
