"""The two controls of every comparison: what a gain is worth that costs no cloud.

- **second seed**: another SRM of the same kind, fused with the first. What it gains, any second model gains.
- **distilled head**: a head over the SRM's state that was distilled from the cloud's embeddings, after SEAL. What it
  gains, the cloud knows only because it is larger: a device can have it without ever asking.

They lie beside a bundle, are no part of it, and nothing serves them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from cloud_worker.training.beside import Tensors, read_beside, write_beside
from cloud_worker.training.calibrator import Stranger
from cloud_worker.training.srm import Srm, srm_from_tensors

Floats = npt.NDArray[np.float32]
FILE: Final = "controls.safetensors"
REMEDY: Final = "train the bundle again, with --force"


@dataclass(frozen=True)
class Controls:
    """Both controls, and the weight of each in its fusion with the SRM, chosen as the bundle's own."""

    second: Srm
    second_alpha: float
    head: Stranger
    head_alpha: float


def save_controls(bundle: Path, bundle_id: str, controls: Controls) -> None:
    """Write them into the bundle's folder."""
    tensors = {f"second.{name}": array for name, array in controls.second.tensors().items()}
    tensors |= {f"head.{name}": tensor.detach().cpu().numpy() for name, tensor in controls.head.state_dict().items()}
    tensors["alphas"] = np.array([controls.second_alpha, controls.head_alpha])
    write_beside(bundle / FILE, bundle_id, tensors)


def load_controls(bundle: Path, bundle_id: str) -> Controls | None:
    """Read them; None where the bundle was trained without.

    Raises
    ------
    BundleError
        They belong to another bundle, or are damaged.
    """
    return read_beside(bundle / FILE, bundle_id, REMEDY, _controls)


def _controls(tensors: Tensors) -> Controls:
    second = srm_from_tensors({name[7:]: each for name, each in tensors.items() if name.startswith("second.")})
    d, hidden = tensors["head.mlp.2.weight"].shape
    head = Stranger(d, tensors["head.mlp.0.weight"].shape[1], hidden)
    head.load_state_dict(
        {name[5:]: torch.from_numpy(np.array(each)) for name, each in tensors.items() if name.startswith("head.")}
    )
    second_alpha, head_alpha = (float(each) for each in tensors["alphas"])
    return Controls(second, second_alpha, head.eval(), head_alpha)
