"""The text part of the cloud model: profile text, text encoder, projector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import erf

from cloud_worker.encoder import Encoder
from cloud_worker.history import History
from cloud_worker.profile_text import profile_text
from streams.bundle import Bundle
from streams.errors import BundleError


@dataclass(frozen=True)
class TextVectors:
    """What the text part says of B histories, and what it cost.

    Parameters
    ----------
    vectors
        (B, d) float32 e_text.
    tokens
        (B,) tokens encoded on behalf of each; 0 where another's equal text or the cache answered.
    encoded
        Texts that the encoder encoded.
    cached
        Texts that the cache knew.
    shared
        Histories whose text equals that of an earlier one in the batch.
    """

    vectors: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int64]
    encoded: int
    cached: int
    shared: int


class TextPart:
    """Profile text, text encoder, projector.

    The text is the reconstruction from the abstracts of CDA4Rec and SCaLRec that `profile_text` describes; the
    projector (linear, GELU, linear) maps the text vector to the space of the item vectors.

    Parameters
    ----------
    bundle
        With its cloud part.
    encoder
        Must be the one that the bundle was trained with.

    Raises
    ------
    BundleError
        The bundle was made with another encoder, or was loaded without its cloud part.
    """

    def __init__(self, bundle: Bundle, encoder: Encoder) -> None:
        manifest = bundle.manifest
        if not bundle.cloud:
            raise BundleError(f"bundle {bundle.path} was loaded without its cloud part")
        if manifest.encoder != encoder.model_id or manifest.text_dim != encoder.dim:
            raise BundleError(
                f"bundle {bundle.id} was trained with the encoder {manifest.encoder} of dimension {manifest.text_dim}; "
                f"this worker has {encoder.model_id} of dimension {encoder.dim}",
                remedy="set cloud.encoder and cloud.encoder_model to that model, or train a bundle with this one",
            )
        self._encoder = encoder
        self._titles, self._categories = bundle.items.titles, bundle.items.categories
        self._last = manifest.profile_items
        self._projector = Projector(
            *(np.asarray(bundle.cloud[f"projector.{name}"]) for name in ("0.weight", "0.bias", "2.weight", "2.bias"))
        )

    @property
    def model_id(self) -> str:
        """The encoder's."""
        return self._encoder.model_id

    def embed(self, histories: Sequence[History]) -> TextVectors:
        """Embed (B,) histories; equal texts are encoded once, and the first of them bears the cost.

        Raises
        ------
        EncoderError
            The encoder failed.
        """
        row_of: dict[str, int] = {}
        rows = np.empty(len(histories), np.intp)
        first = np.zeros(len(histories), bool)
        for index, history in enumerate(histories):
            text = profile_text(history.items, history.times_ms, self._titles, self._categories, last=self._last)
            first[index] = text not in row_of
            rows[index] = row_of.setdefault(text, len(row_of))
        batch = self._encoder.encode(list(row_of))
        return TextVectors(
            vectors=self._projector(batch.vectors)[rows],
            tokens=np.where(first, batch.tokens[rows], 0),
            encoded=len(row_of) - batch.cached,
            cached=batch.cached,
            shared=len(histories) - len(row_of),
        )


@dataclass(frozen=True)
class Projector:
    """Text space (T) to shared space (d) through H hidden units: linear, exact (erf) GELU, linear.

    Parameters
    ----------
    weight_0, bias_0
        (H, T) and (H,).
    weight_2, bias_2
        (d, H) and (d,).
    """

    weight_0: npt.NDArray[np.float32]
    bias_0: npt.NDArray[np.float32]
    weight_2: npt.NDArray[np.float32]
    bias_2: npt.NDArray[np.float32]

    def __call__(self, texts: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Map (B, T) text vectors to (B, d)."""
        hidden = texts @ self.weight_0.T + self.bias_0
        hidden = (0.5 * hidden * (1.0 + erf(hidden / np.float32(np.sqrt(2.0))))).astype(np.float32)
        return np.asarray(hidden @ self.weight_2.T + self.bias_2, dtype=np.float32)
