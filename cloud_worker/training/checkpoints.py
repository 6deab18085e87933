"""Trained networks on disk while a training is under way: one that was interrupted goes on after the last of them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn


class Checkpoints:
    """A folder beside the bundle to be.

    Parameters
    ----------
    bundle
        Where the bundle will be.
    made_from
        Everything the networks depend on; a training with another one starts anew.
    """

    def __init__(self, bundle: Path, made_from: object) -> None:
        self._beside = bundle.with_name(f".{bundle.name}.training")
        self._folder = self._beside / hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]

    def load(self, step: str, model: nn.Module) -> bool:
        """Give `model` the weights that the step ended with; False where it did not end, or they cannot be read."""
        try:
            model.load_state_dict(torch.load(self._path(step), weights_only=True))
        except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError):
            return False
        return True

    def save(self, step: str, model: nn.Module) -> None:
        """Keep the weights that the step ended with, whole or not at all."""
        path = self._path(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".part")
        torch.save(model.state_dict(), scratch)
        scratch.replace(path)

    def remove(self) -> None:
        """Forget every step: the bundle is there."""
        shutil.rmtree(self._beside, ignore_errors=True)

    def _path(self, step: str) -> Path:
        return self._folder / f"{step.replace(' ', '-')}.pt"
