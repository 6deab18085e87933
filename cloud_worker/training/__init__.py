"""Training a bundle: offline, in torch. Only `train` and the models import torch; finding a bundle does not."""
