"""The small recommendation model on the device: one port, three networks, each the same to the bit for any batch size.

A device that crashed and replays its events in other batches must arrive at the very same state: that is how a crashed
run is compared with an undisturbed one. What a record keeps of each network is a vector h, with scores h · o_i + c_i:
fusion, calibration and signals do not ask which of them it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from device_agent.din import Din
from device_agent.gru4rec import Gru4Rec
from device_agent.sasrec import Sasrec
from streams.bundle import Bundle
from streams.errors import BundleError

Floats = npt.NDArray[np.float32]


class Srm(Protocol):
    """What an interaction does to the state."""

    dim: int
    """h"""

    def step(
        self,
        hidden: Floats,
        items: npt.NDArray[np.integer],
        history: npt.NDArray[np.int32],
        before: npt.NDArray[np.int64],
    ) -> Floats:
        """(B, h) states after the items; row by row the same to the bit for any B.

        Parameters
        ----------
        hidden
            (B, h) states before them.
        items
            (B,) what was taken, items of the bundle.
        history, before
            (B, W) rings of the last items, these among them, and (B,) how many had gone into a ring before them: an
            item lies in slot ``before`` modulo W.
        """
        ...


_NETWORKS: Final[Mapping[str, Callable[[Mapping[str, Floats]], Srm]]] = {
    "gru4rec": Gru4Rec,
    "sasrec": Sasrec,
    "din": Din,
}


def make_srm(bundle: Bundle) -> Srm:
    """Return the network of a bundle.

    Raises
    ------
    BundleError
        Its weights are so large that its state could be no number.
    """
    try:
        return _NETWORKS[bundle.manifest.srm](bundle.device)
    except OverflowError as exc:
        raise BundleError(f"bundle {bundle.path}: {exc}", remedy="train it anew with weight decay") from exc


def largest_state(bundle: Bundle) -> float:
    """Bound of the numbers in a state: a GRU's are below 1, a DIN's are means, a LayerNorm's lie within its weights."""
    if bundle.manifest.srm == "gru4rec":
        return 1.0
    if bundle.manifest.srm == "din":
        return float(np.abs(bundle.device["srm.item_in"]).max())
    weight, bias = (np.abs(bundle.device[f"srm.last_norm.{each}"].astype(np.float64)) for each in ("weight", "bias"))
    return float((np.sqrt(len(weight)) * weight + bias).max())
