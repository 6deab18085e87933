"""The port behind which the device's small models are trained and judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cloud_worker.training.data import Histories, Ints

Floats = npt.NDArray[np.float32]


class Srm(nn.Module, ABC):
    """A small model with tied item embeddings: scores = h · Eᵀ + b, with h the state that a device's record keeps.

    It is a `cloud_worker.training.next_item.NextItemModel` with a few things more. Without a history h is zero.

    Parameters
    ----------
    n_items, dim
        N and h.
    """

    carries_state: bool
    """See `NextItemModel`."""

    def __init__(self, n_items: int, dim: int) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items, dim)
        nn.init.normal_(self.items.weight, std=dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_items))

    def table(self) -> Tensor:
        """(N, h) output embeddings: the input embeddings, tied."""
        weight: Tensor = self.items.weight
        return weight

    @abstractmethod
    def before_each(self, items: Tensor, gaps: Tensor, table: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, L, h) what scores each interaction, and (B, L, h) the states after each.

        Parameters
        ----------
        items
            (B, L), `PAD` behind.
        gaps
            No device's model reads a clock.
        table
            From `table`.
        initial
            (B, h) states to begin with, where the state is carried; None: zero.
        """

    @abstractmethod
    def running_states(self, histories: Histories, users: Ints, positions: Ints) -> Floats:
        """(Q, h) what a device has as its state when users (Q,) have made their first positions (Q,) interactions."""

    @abstractmethod
    def after(self, hidden: Tensor, windows: Tensor) -> Tensor:
        """(R, h) states after the last item of windows (R, W), `PAD` behind, from those before it (R, h)."""

    @abstractmethod
    def tensors(self) -> dict[str, Floats]:
        """What a bundle's device part holds of this model (`streams.bundle.device_tensors`)."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Floats]) -> Self:
        """Build the network of a bundle's device part."""


def as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, Floats]:
    """Tensors of a network as a bundle keeps them."""
    return {name: tensor.detach().cpu().numpy().astype(np.float32) for name, tensor in tensors.items()}
