"""The device step in torch, from the modules that were trained: what both runtimes of a device must agree with.

Scores are standardised as training does it, over all scores of the catalogue: the closed forms by which a device
finds the same numbers are not used.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cloud_worker.training.calibrator import Calibrator
from cloud_worker.training.signal_head import SignalHead
from cloud_worker.training.srm import srm_from_tensors
from device_agent.ranking import Mode
from device_agent.serving import Pairs
from streams.bundle import PHI, Bundle


class TorchServed(NamedTuple):
    """What the step makes of R pairs."""

    staleness: Tensor
    """(R, 1)"""
    calibrated: Tensor
    """(R, d)"""
    scores: Tensor
    """(R, C or N), -inf where an item is not to be ranked."""
    rank: Tensor
    """(R,)"""
    top: Tensor
    """(R, k)"""


class TorchStep:
    """Serves one kind of ranking, all pairs with an embedding."""

    def __init__(self, bundle: Bundle, ranking: Mode, list_length: int = 10) -> None:
        tensors = {name: torch.from_numpy(np.array(each)) for name, each in bundle.device.items()}
        self.ranking = ranking
        self._k = list_length
        self._d, self._n = bundle.manifest.d, bundle.manifest.n_items
        self._exclude_seen = bundle.manifest.exclude_seen
        self._repair = Calibrator.from_tensors(bundle.device)
        self._head = SignalHead.from_tensors(bundle.device, "staleness")
        self._srm = srm_from_tensors(bundle.device)
        self._mean, self._scale = tensors["phi.mean"], tensors["phi.scale"]
        self._cloud = tensors["item_vectors"].T.contiguous(), tensors["item_bias"]
        self._own = tensors["srm.item_out"].T.contiguous(), tensors["srm.bias_out"]
        self._alpha = tensors["fusion.alpha"]

    @torch.inference_mode()
    def __call__(self, pairs: Pairs) -> TorchServed:
        """Serve R pairs."""
        hidden, recent = torch.from_numpy(pairs.hidden), torch.from_numpy(pairs.recent)
        embedding = torch.from_numpy(pairs.embedding).float()
        phi = (recent[:, -len(PHI) :] - self._mean) / self._scale
        gap = torch.from_numpy(pairs.gap[:, 0]).float()
        s = (torch.sigmoid(self._head(phi)) * (gap > 0))[:, None]
        repaired = self._repair(embedding, recent[:, : self._d], hidden, phi, gap)
        alpha = self._alpha[0] + (self._alpha[1] - self._alpha[0]) * s
        cloud, own = (
            _standardised(x @ side[0] + side[1]) for x, side in ((repaired, self._cloud), (hidden, self._own))
        )
        scores = alpha * cloud + (1 - alpha) * own
        targets = torch.from_numpy(pairs.items).long()
        if self.ranking == "candidates":
            listed = torch.from_numpy(pairs.choice.view(np.int32)).long()
            scores = scores.gather(1, listed.clamp_min(0)).masked_fill(listed < 0, -torch.inf)
            own_score = scores.masked_fill(listed != targets, -torch.inf).amax(dim=1, keepdim=True)
        else:
            if self._exclude_seen:
                bits = np.unpackbits(pairs.choice.view(np.uint8), axis=1, count=self._n, bitorder="little")
                scores = scores.masked_fill(torch.from_numpy(bits).bool(), -torch.inf)
            own_score = scores.gather(1, targets)
        rank = (scores >= own_score).sum(dim=1) * (own_score[:, 0] > -torch.inf)
        places = torch.topk(scores, min(self._k, scores.shape[1]), dim=1).indices
        top = places if self.ranking == "catalogue" else listed.gather(1, places)
        return TorchServed(s, repaired, scores, rank, top)

    @torch.inference_mode()
    def hidden_after(self, pairs: Pairs, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(R, h) the SRM's state after the interaction; windows (R, W) as of `Recorded.windows`."""
        after: npt.NDArray[np.float32] = self._srm.after(
            torch.from_numpy(pairs.hidden), torch.from_numpy(windows)
        ).numpy()
        return after


def _standardised(scores: Tensor) -> Tensor:
    centred = scores - scores.mean(dim=1, keepdim=True)
    return centred / centred.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6)
