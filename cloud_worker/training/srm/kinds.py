"""Which networks a device's small model can be, by the words that a manifest has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cloud_worker.training.srm.base import Floats, Srm
from cloud_worker.training.srm.din import Din
from cloud_worker.training.srm.gru4rec import Gru4Rec
from cloud_worker.training.srm.sasrec import Sasrec
from streams.bundle import SRM_TENSORS
from streams.errors import TrainingError

KINDS: Final[Mapping[str, type[Srm]]] = {"gru4rec": Gru4Rec, "sasrec": Sasrec, "din": Din}


def make_srm(kind: str, n_items: int, dim: int, *, window: int, dropout: float) -> Srm:
    """Return an untrained network.

    Parameters
    ----------
    kind
        One of `KINDS`.
    window
        W, the interactions that a device keeps: what a network without a carried state looks at.

    Raises
    ------
    TrainingError
        Nothing is called so.
    """
    if kind == "gru4rec":
        return Gru4Rec(n_items, dim, dropout)
    if kind == "sasrec":
        return Sasrec(n_items, dim, window, dropout)
    if kind == "din":
        return Din(n_items, dim, dropout)
    raise TrainingError(f"SRM {kind!r} is none of {', '.join(KINDS)}")


def srm_from_tensors(tensors: Mapping[str, Floats]) -> Srm:
    """Build the network that the tensors of a device part, or of a control, belong to.

    Raises
    ------
    KeyError
        They belong to none.
    """
    kind = next((kind for kind, own in SRM_TENSORS.items() if own.keys() <= tensors.keys()), "gru4rec")
    return KINDS[kind].from_tensors(tensors)
