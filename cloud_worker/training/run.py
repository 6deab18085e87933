"""What every step of a training needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cloud_worker.training.checkpoints import Checkpoints
from cloud_worker.training.data import Histories
from cloud_worker.training.options import OnProgress, Progress, TrainOptions
from streams.errors import TrainingError
from streams.events import event_hash


@dataclass(frozen=True)
class Run:
    """The data, the options, where it computes, where it keeps what is done, whom it tells."""

    histories: Histories
    options: TrainOptions
    exclude_seen: bool
    device: torch.device
    checkpoints: Checkpoints
    on_progress: OnProgress

    def say(self, stage: str, done: int, total: int, loss: float, note: str = "") -> None:
        """Tell where a stage stands.

        Raises
        ------
        TrainingError
            The loss is not finite.
        """
        if not np.isfinite(loss):
            raise TrainingError(
                f"{stage}: the loss became {loss} at step {done} of {total}",
                remedy="train with another --seed; if it happens again, report it with the dataset's name",
            )
        self.on_progress(Progress(stage, done, total, f"loss {loss:.3f}{note}"))

    def generator(self, step: str) -> np.random.Generator:
        """Randomness of one step, that does not depend on which steps were taken before."""
        return np.random.default_rng([self.options.seed, event_hash(step)])

    def seed_torch(self, step: str) -> None:
        """The same for torch, which has one generator for everybody: only the training's own thread draws from it."""
        torch.manual_seed(event_hash(f"{self.options.seed}/{step}") % 2**63)


def torch_device(name: str) -> torch.device:
    """Return the device of that name; ``auto``: CUDA where there is one.

    Raises
    ------
    TrainingError
        It is not there, or nothing is called so.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("torch finds no CUDA device", remedy="use --device cpu")
    if name not in {"cpu", "cuda"}:
        raise TrainingError(f"device {name!r} is none of auto, cpu, cuda")
    return torch.device(name)
