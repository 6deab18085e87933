"""Text encoders: one port, four real implementations, and the factory that picks one by the settings."""

from __future__ import annotations

from cloud_worker.encoder.base import EncodedBatch, Encoder
from cloud_worker.encoder.factory import make_encoder

__all__ = ["EncodedBatch", "Encoder", "make_encoder"]
