"""DIN's state after an item, in numpy, the same to the bit for any batch size.

    h' = γ ⊙ h + (1 - γ) ⊙ in_item           γ in [0, 1], (h,); in (N, h)

What of DIN lies in h, and why nothing else is left to compute on a device, says `cloud_worker.training.srm.din`. Every
number of a state is computed alone, from one number of the state before and one of a table: so neither the other
devices of a wave nor the number of threads has a say. It lies between the least and the largest of 0 and its column.

Source: DIN (Zhou et al., arXiv 1706.06978), with an activation unit that is a sum of products.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def decay_and_inputs(tensors: Mapping[str, Floats]) -> tuple[Floats, Floats]:
    """(h,) γ and (N, h) (1 - γ) ⊙ in of a bundle's device part.

    Raises
    ------
    OverflowError
        γ does not lie in [0, 1]: the state would grow with every event.
    """
    decay = np.asarray(tensors["srm.decay"], np.float32)
    if not ((decay >= 0) & (decay <= 1)).all():
        raise OverflowError("the SRM's decay does not lie between 0 and 1, so its state would grow")
    return decay, np.asarray(tensors["srm.item_in"], np.float32) * (1 - decay)


class Din:
    """The DIN of a bundle.

    Parameters
    ----------
    tensors
        Those of `streams.bundle.device_tensors` that begin with ``srm.``.

    Raises
    ------
    OverflowError
        See `decay_and_inputs`.
    """

    def __init__(self, tensors: Mapping[str, Floats]) -> None:
        self._decay, self._inputs = decay_and_inputs(tensors)
        self.dim = len(self._decay)

    def step(
        self,
        hidden: Floats,
        items: npt.NDArray[np.integer],
        history: npt.NDArray[np.int32],  # noqa: ARG002 - the port has it
        before: npt.NDArray[np.int64],  # noqa: ARG002 - the port has it
    ) -> Floats:
        """See `device_agent.srm.Srm.step`; the history is not looked at."""
        after: Floats = hidden * self._decay
        after += self._inputs.take(items, axis=0)
        return after
