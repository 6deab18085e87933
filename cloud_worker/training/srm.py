"""The device's small recommendation model: GRU4Rec (Hidasi et al., arXiv 1511.06939), trained here, run in numpy there.

    x_t = LayerNorm(E[item_t])      h_t = GRU(x_t, h_{t-1})      scores = h_t · Eᵀ + b       (E tied, h_0 = 0)

The device runs the hidden state over a user's whole history, event by event, and never resets it. So training unrolls
whole histories too, and everything that is measured here comes from the running state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from cloud_worker.training.data import Histories
from cloud_worker.training.options import SrmOptions

PAD = -1


class Gru4Rec(nn.Module):
    """GRU4Rec with tied item embeddings and LayerNorm on the input.

    Parameters
    ----------
    n_items, dim
        N and h.
    dropout
        On the normalised input and on the hidden state that scores.
    """

    def __init__(self, n_items: int, dim: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items, dim)
        nn.init.normal_(self.items.weight, std=dim**-0.5)
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.bias = nn.Parameter(torch.zeros(n_items))
        self.dropout = nn.Dropout(dropout)

    def states(self, items: Tensor) -> Tensor:
        """Hidden state before each interaction and after the last one: (B, L) -> (B, L + 1, h); state 0 is zero.

        Entries of ``items`` that are `PAD` must stand at the end of a row.
        """
        inputs = self.dropout(self.norm(self.items(items.clamp_min(0))))
        hidden: Tensor = self.gru(inputs)[0]
        return F.pad(hidden, (0, 0, 1, 0))

    def scores(self, states: Tensor) -> Tensor:
        """(…, h) -> (…, N)."""
        return F.linear(states, self.items.weight, self.bias)

    def tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """What a bundle's device part holds of this model (`streams.bundle.DEVICE_TENSORS`)."""
        gru = dict(self.gru.named_parameters())
        named: dict[str, Tensor] = {
            "srm.item_in": self.items.weight,
            "srm.norm.weight": self.norm.weight,
            "srm.norm.bias": self.norm.bias,
            "srm.gru.weight_ih": gru["weight_ih_l0"],
            "srm.gru.weight_hh": gru["weight_hh_l0"],
            "srm.gru.bias_ih": gru["bias_ih_l0"],
            "srm.gru.bias_hh": gru["bias_hh_l0"],
            "srm.item_out": self.items.weight,
            "srm.bias_out": self.bias,
        }
        return {name: tensor.detach().cpu().numpy().astype(np.float32) for name, tensor in named.items()}


def batches(
    lengths: npt.NDArray[np.int64], positions: int, generator: np.random.Generator | None
) -> Iterator[npt.NDArray[np.int64]]:
    """Cut users into batches of at most so many padded positions, users of like length together.

    Parameters
    ----------
    lengths
        (U,); users of length 0 are left out.
    positions
        Padded positions in a batch; a longer user is a batch alone.
    generator
        Shuffles ties and near ties within the lengths, and the batches; None: fixed order.
    """
    users = np.flatnonzero(lengths)
    jitter = generator.uniform(0.85, 1.15, len(users)) if generator is not None else 1.0
    users = users[np.argsort(-lengths[users] * jitter, kind="stable")]
    cut: list[npt.NDArray[np.int64]] = []
    begin = longest = 0
    for end, user in enumerate(users):
        longest = max(longest, int(lengths[user]))
        if end > begin and longest * (end - begin + 1) > positions:
            cut.append(users[begin:end])
            begin, longest = end, int(lengths[user])
    if len(users):
        cut.append(users[begin:])
    for index in generator.permutation(len(cut)) if generator is not None else range(len(cut)):
        yield cut[index]


def padded(histories: Histories, users: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Tensor:
    """(B, L) item indexes of the users' first interactions, `PAD` behind them."""
    rows = np.full((len(users), int(lengths[users].max())), PAD, np.int64)
    for row, user in enumerate(users):
        rows[row, : lengths[user]] = histories.of(user, int(lengths[user]))
    return torch.from_numpy(rows)


def seen_before(rows: npt.NDArray[np.int64], n_items: int) -> npt.NDArray[np.bool_]:
    """(Q, N) what was taken before each interaction of histories (B, L), without the padding, in row order."""
    taken = np.zeros((*rows.shape, n_items), np.bool_)
    row, position = np.nonzero(rows[:, :-1] >= 0)
    taken[row, position + 1, rows[row, position]] = True
    return np.logical_or.accumulate(taken, axis=1)[rows >= 0]


def loss_of(
    model: Gru4Rec,
    rows: Tensor,
    candidates: Tensor | None = None,
    log_expected: Tensor | None = None,
    *,
    exclude_seen: bool = False,
) -> Tensor:
    """Mean cross-entropy of every interaction given those before it.

    Parameters
    ----------
    rows
        (B, L) histories, `PAD` behind.
    candidates
        (S,) sampled negatives; None: the full softmax.
    log_expected
        (N,) log of how often an item is expected among the negatives: the logQ correction (Bengio & Senécal 2008).
    exclude_seen
        Leave what a user took out of the full softmax: it is not recommended again, so nothing need be learned there.
    """
    states = model.states(rows)[:, :-1]
    counts = rows >= 0
    hidden, targets = model.dropout(states[counts]), rows[counts]
    if candidates is None or log_expected is None:
        scores = model.scores(hidden)
        if exclude_seen:
            seen = seen_before(rows.cpu().numpy(), scores.shape[1])
            seen[np.arange(len(targets)), targets.cpu().numpy()] = False
            scores = scores.masked_fill(torch.from_numpy(seen).to(scores.device), -torch.inf)
        return F.cross_entropy(scores, targets)
    own = (hidden * model.items(targets)).sum(-1) + model.bias[targets] - log_expected[targets]
    others = F.linear(hidden, model.items(candidates), model.bias[candidates]) - log_expected[candidates]
    others = others.masked_fill(candidates[None, :] == targets[:, None], -torch.inf)
    return F.cross_entropy(torch.cat([own[:, None], others], dim=1), torch.zeros_like(targets))


def _go_on(_epoch: int, _loss: float) -> bool:
    return False


def fit(
    model: Gru4Rec,
    histories: Histories,
    options: SrmOptions,
    *,
    lengths: npt.NDArray[np.int64],
    epochs: int,
    learning_rate: float,
    exclude_seen: bool,
    generator: np.random.Generator,
    after_epoch: Callable[[int, float], bool] = _go_on,
) -> None:
    """Train `model` in place on each user's first ``lengths`` interactions.

    Parameters
    ----------
    after_epoch
        Called with the number of epochs done and their last mean loss; True ends the training.
    """
    device = model.bias.device
    sampled = histories.n_items > options.full_softmax_items
    counts = np.bincount(
        np.concatenate([histories.of(u, int(n)) for u, n in enumerate(lengths) if n] or [np.zeros(0, np.int64)]),
        minlength=histories.n_items,
    )
    # Half by popularity, half uniform: the popular are the hard negatives, and no item is left without a gradient.
    proposal = 0.5 * counts / max(int(counts.sum()), 1) + 0.5 / histories.n_items
    log_expected = torch.from_numpy(np.log(options.negatives * proposal)).float().to(device) if sampled else None
    cumulative = np.cumsum(proposal)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for epoch in range(epochs):
        model.train()
        losses: list[Tensor] = []
        cut = list(batches(lengths, options.positions, generator))
        for index, users in enumerate(cut):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * _share((epoch + index / len(cut)) / epochs)
            candidates = None
            if sampled:
                drawn = np.searchsorted(cumulative, generator.random(options.negatives) * cumulative[-1])
                candidates = torch.from_numpy(drawn.astype(np.int64)).to(device)
            rows = padded(histories, users, lengths).to(device)
            loss = loss_of(model, rows, candidates, log_expected, exclude_seen=exclude_seen)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.detach())
        if after_epoch(epoch + 1, float(torch.stack(losses).mean()) if losses else 0.0):
            break
    model.eval()


def _share(done: float) -> float:
    """Of the learning rate: up over the first tenth, then down to zero as a cosine."""
    return done / 0.1 if done < 0.1 else 0.5 * (1.0 + float(np.cos(np.pi * (done - 0.1) / 0.9)))


@torch.no_grad()
def running_states(
    model: Gru4Rec, histories: Histories, users: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """(Q, h) hidden states of users (Q,) when their first positions (Q,) interactions are known, never reset."""
    model.eval()
    device = model.bias.device
    lengths = np.zeros(histories.n_users, np.int64)
    np.maximum.at(lengths, users, positions)
    states = np.zeros((len(users), model.items.embedding_dim), np.float32)
    order = np.argsort(users, kind="stable")
    edges = np.searchsorted(users[order], np.arange(histories.n_users + 1))
    for batch in batches(lengths, 8192, None):
        hidden = model.states(padded(histories, batch, lengths).to(device)).cpu().numpy()
        for row, user in enumerate(batch):
            wanted = order[edges[user] : edges[user + 1]]
            states[wanted] = hidden[row, positions[wanted]]
    return states
