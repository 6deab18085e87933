"""The SRMs of LSC4Rec's collaborative training, beside a bundle (arXiv 2501.05647, collaborative training).

- **independent**: the bundle's own SRM, that knows nothing of the cloud;
- **cooperative**: warm-started from it, then trained on the cloud's lists (`cloud_worker.training.list_training`);
- **adaptive**: the cooperative one, trained on over the recent window alone.

They lie beside a bundle, are no part of it, and `driftline evaluate collaborative` compares them. The bundle's
calibrator and staleness head read the state of its own SRM: a device that is to serve another one needs them anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cloud_worker.training.beside import Tensors, read_beside, write_beside
from cloud_worker.training.srm import Srm, srm_from_tensors

FILE: Final = "collaborative.safetensors"
INDEPENDENT, COOPERATIVE, ADAPTIVE = "independent", "cooperative", "adaptive"
TRAININGS: Final = (INDEPENDENT, COOPERATIVE, ADAPTIVE)
REMEDY: Final = "train them again with `driftline train collaborative`"


@dataclass(frozen=True)
class Collaborative:
    """What collaborative training made.

    Attributes
    ----------
    srms
        By training; the independent one is the bundle's.
    weights
        λ of the learned fusion rule by training, the independent one's too: all chosen on the validation period with
        SRMs that had not seen it. The cloud that made the lists had (`cloud_worker.training.train_collaborative`).
    """

    srms: Mapping[str, Srm]
    weights: Mapping[str, float]


def save_collaborative(bundle: Path, bundle_id: str, made: Collaborative) -> None:
    """Write them into the bundle's folder, whole or not at all."""
    tensors = {
        f"{training}.{name}": array
        for training, model in made.srms.items()
        for name, array in model.tensors().items()
        if name != "srm.item_out"  # tied
    }
    tensors["weights"] = np.array([made.weights[training] for training in TRAININGS])
    write_beside(bundle / FILE, bundle_id, tensors)


def load_collaborative(bundle: Path, bundle_id: str) -> Collaborative | None:
    """Read them; None where the bundle has none.

    Raises
    ------
    BundleError
        They belong to another bundle, or are damaged.
    """
    return read_beside(bundle / FILE, bundle_id, REMEDY, _collaborative)


def _collaborative(tensors: Tensors) -> Collaborative:
    srms = {
        training: srm_from_tensors(
            {name.removeprefix(f"{training}."): each for name, each in tensors.items() if name.startswith(training)}
        )
        for training in (COOPERATIVE, ADAPTIVE)
    }
    return Collaborative(srms, dict(zip(TRAININGS, map(float, tensors["weights"]), strict=True)))
