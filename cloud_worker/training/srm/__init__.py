"""The device's small recommendation model (SRM): one port, three networks.

They are trained here in torch and run on the device in numpy. What a network has to offer is `Srm`; which one a bundle
has is a word of its manifest.
"""

from cloud_worker.training.srm.base import Srm
from cloud_worker.training.srm.din import Din
from cloud_worker.training.srm.gru4rec import Gru4Rec
from cloud_worker.training.srm.kinds import KINDS, make_srm, srm_from_tensors
from cloud_worker.training.srm.sasrec import Sasrec

__all__ = ["KINDS", "Din", "Gru4Rec", "Sasrec", "Srm", "make_srm", "srm_from_tensors"]
