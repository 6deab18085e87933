"""The calibrator that a device repairs a stale embedding with, distilled from the embedding the cloud would send now.

    x = [e, m, h, φ_std]      ê = e + (1 - σ(W_g x + b_g)) ⊙ tanh(gap / τ) ⊙ (MLP(x) - e)      MLP: linear, GELU, linear

h is the state of the device's own SRM, which has seen everything the cloud has not. The loss is the KL divergence from
the scores of the fresh embedding to those of ê, plus a small cross-entropy on the next item: distillation recovers far
more than the next item alone does. Source: SCaLRec (arXiv 2601.22543), on-device calibration: a reconstruction from the
abstract; h, the tanh, which leaves a fresh embedding alone, and the distillation are ours.

τ is not distilled but chosen on the validation period (`cloud_worker.training.judging`): an embedding of a moment that
the networks were trained on says more about the next one than an embedding of a later moment will.

`Stranger` is the control: the same distillation into a head that sees h only, so that no cloud is needed when it serves
(a light sequence model that predicts the semantic embedding, after SEAL). What calibration adds over it is what the
cached embedding, and the signals about it, are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from cloud_worker.training.options import CalibratorOptions
from streams.bundle import PHI

Floats = npt.NDArray[np.float32]

_TOLD_EVERY: Final = 50


@dataclass(frozen=True)
class CalibrationData:
    """Q moments of serving with an embedding that may be stale.

    Attributes
    ----------
    stale, means, fresh
        (Q, d) e, m, and the embedding the cloud would send now.
    hidden
        (Q, h) the SRM's state.
    phi
        (Q, P) standardised signals.
    gap
        (Q,) interactions since e.
    targets
        (Q,) next items.
    """

    stale: Floats
    means: Floats
    hidden: Floats
    phi: Floats
    gap: npt.NDArray[np.int64]
    fresh: Floats
    targets: npt.NDArray[np.int64]

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> CalibrationData:
        """Some moments."""
        return CalibrationData(
            self.stale[rows],
            self.means[rows],
            self.hidden[rows],
            self.phi[rows],
            self.gap[rows],
            self.fresh[rows],
            self.targets[rows],
        )


class Repair(Protocol):
    """What `fit` trains."""

    def __call__(self, stale: Tensor, means: Tensor, hidden: Tensor, phi: Tensor, gap: Tensor) -> Tensor:
        """(Q, d) ê."""
        ...


class Calibrator(nn.Module):
    """The gate and the MLP.

    Parameters
    ----------
    d, srm_dim, hidden
        Widths of e, of h, and of the MLP.
    tau
        τ, interactions; above 0.
    """

    tau: Tensor

    def __init__(self, d: int, srm_dim: int, hidden: int, tau: float) -> None:
        super().__init__()
        self.register_buffer("tau", torch.tensor([tau]))
        width = 2 * d + srm_dim + len(PHI)
        self.d = d
        # m is a mean of unit vectors: its numbers are √d times smaller than what the layers are initialised for.
        self.mean_scale = float(np.sqrt(d))
        self.gate = nn.Linear(width, d)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, d))

    def forward(self, stale: Tensor, means: Tensor, hidden: Tensor, phi: Tensor, gap: Tensor) -> Tensor:
        """(Q, d) ê."""
        x = torch.cat([stale, means * self.mean_scale, hidden, phi], dim=-1)
        closed = 1.0 - torch.sigmoid(self.gate(x))
        repaired: Tensor = stale + closed * torch.tanh(gap[:, None] / self.tau) * (self.mlp(x) - stale)
        return repaired

    def tensors(self) -> dict[str, Floats]:
        """As in `streams.bundle.DEVICE_TENSORS`; the scale of m is folded into the weights."""
        named = {f"calibrator.{k}": v.detach().cpu().numpy().astype(np.float32) for k, v in self.state_dict().items()}
        for name in ("calibrator.gate.weight", "calibrator.mlp.0.weight"):
            named[name] = named[name].copy()
            named[name][:, self.d : 2 * self.d] *= self.mean_scale
        return named

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Floats]) -> Self:
        """Build the calibrator of a bundle's device part."""
        d, hidden = tensors["calibrator.mlp.2.weight"].shape
        srm_dim = tensors["calibrator.gate.weight"].shape[1] - 2 * d - len(PHI)
        model = cls(d, srm_dim, hidden, float(tensors["calibrator.tau"][0]))
        named = {name: np.array(tensors[f"calibrator.{name}"]) for name in model.state_dict()}
        for name in ("gate.weight", "mlp.0.weight"):
            named[name][:, d : 2 * d] /= model.mean_scale
        model.load_state_dict({name: torch.from_numpy(array) for name, array in named.items()})
        return model.eval()


class Stranger(nn.Module):
    """The control: ê from the device's own state, without any embedding from the cloud."""

    def __init__(self, d: int, srm_dim: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(srm_dim, hidden), nn.GELU(), nn.Linear(hidden, d))

    def forward(self, stale: Tensor, means: Tensor, hidden: Tensor, phi: Tensor, gap: Tensor) -> Tensor:  # noqa: ARG002 - it is the control
        """(Q, d) ê."""
        repaired: Tensor = self.mlp(hidden)
        return repaired


@torch.no_grad()
def apply(model: Repair, data: CalibrationData) -> Floats:
    """(Q, d) ê of all of `data`."""
    assert isinstance(model, nn.Module)
    device = next(model.parameters()).device
    arrays = (data.stale, data.means, data.hidden, data.phi, data.gap.astype(np.float32))
    repaired: Floats = model(*(torch.from_numpy(a).to(device) for a in arrays)).cpu().numpy()
    return repaired


def _no_word(_step: int, _loss: float) -> None: ...


def fit(
    model: Repair,
    data: CalibrationData,
    vectors: Floats,
    bias: Floats,
    options: CalibratorOptions,
    steps: int,
    generator: np.random.Generator,
    after: Callable[[int, float], None] = _no_word,
) -> None:
    """Train `model` in place.

    Parameters
    ----------
    vectors, bias
        (N, d) and (N,) of the shared space. Of a catalogue larger than ``options.negatives`` each batch compares so
        many items, the next ones always among them.
    steps
        Batches, over as many epochs as it takes.
    after
        Called now and then with the number of steps done and the mean loss since the call before.
    """
    assert isinstance(model, nn.Module)
    device = next(model.parameters()).device
    v, b = torch.from_numpy(vectors).to(device), torch.from_numpy(bias).to(device)
    arrays = (data.stale, data.means, data.hidden, data.phi, data.gap.astype(np.float32), data.fresh)
    stale, means, hidden, phi, gap, fresh = (torch.from_numpy(a).to(device) for a in arrays)
    targets = torch.from_numpy(data.targets).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    model.train()
    losses: list[Tensor] = []
    for step, rows in enumerate(_batches(len(stale), options.batch, steps, generator), 1):
        at = rows.to(device)
        some_v, some_b, some_targets = v, b, targets[at]
        if len(v) > options.negatives:
            drawn = torch.from_numpy(generator.choice(len(v), options.negatives, replace=False)).to(device)
            items, inverse = torch.unique(torch.cat([some_targets, drawn]), return_inverse=True)
            some_v, some_b, some_targets = v[items], b[items], inverse[: len(at)]
        repaired = model(stale[at], means[at], hidden[at], phi[at], gap[at])
        logged = F.log_softmax(F.linear(repaired, some_v, some_b), dim=-1)
        wanted = F.log_softmax(F.linear(fresh[at], some_v, some_b), dim=-1)
        loss = F.kl_div(logged, wanted, reduction="batchmean", log_target=True)
        loss = loss + options.next_item_weight * F.nll_loss(logged, some_targets)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(loss.detach())
        if step % _TOLD_EVERY == 0 or step == steps:
            after(step, float(torch.stack(losses).mean()))
            losses.clear()
    model.eval()


def _batches(many: int, size: int, steps: int, generator: np.random.Generator) -> Iterator[Tensor]:
    """So many batches of rows, epoch after epoch, each in another order; none where there are no rows."""
    left = steps if many else 0
    while left:
        epoch = torch.split(torch.from_numpy(generator.permutation(many)), size)[:left]
        yield from epoch
        left -= len(epoch)
