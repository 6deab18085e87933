"""The encoder port over sentence-transformers: any model folder, CPU or GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cloud_worker.encoder.base import EncodedBatch, batches_by_length, checked
from cloud_worker.encoder.model_folder import model_id_of, stay_offline
from streams.errors import EncoderError

TOKENISED_AT_ONCE: Final = 4096
"""Texts; all their token ids are in memory, padded to the longest: 25 MiB at a maximum of 256 tokens."""


class SentenceTransformersEncoder:
    """Runs the whole module chain of a model folder (transformer, pooling and what follows) in torch.

    Parameters
    ----------
    folder
        The model.
    threads
        Threads that torch uses in this process; None leaves its default, all cores.
    device
        torch's name of the device; None: the GPU where there is one.
    batch_size
        Texts in one forward pass.

    Raises
    ------
    EncoderError
        torch or sentence-transformers is missing, or the folder is no such model.
    """

    def __init__(
        self, folder: Path, *, threads: int | None = None, device: str | None = None, batch_size: int = 32
    ) -> None:
        self._model = load_model(folder, device=device, threads=threads)
        self._batch_size = batch_size
        self._model_id = model_id_of(folder)
        self._dim = int(self._model.get_embedding_dimension())

    @property
    def model_id(self) -> str:
        """Name and content hash of the model folder."""
        return self._model_id

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    def encode(self, texts: Sequence[str]) -> EncodedBatch:
        """Encode (B,) texts; what is longer than the model's maximum is cut.

        The library's own `encode` does not tell the tokens, which are the cost, and packs batches by characters; here
        texts are tokenised once, counted, and packed by tokens, which pads 5 % less.

        Raises
        ------
        EncoderError
            The model answered something that is no vector.
        """
        vectors = np.empty((len(texts), self._dim), np.float32)
        tokens = np.empty(len(texts), np.int64)
        for start in range(0, len(texts), TOKENISED_AT_ONCE):
            part = slice(start, start + TOKENISED_AT_ONCE)
            vectors[part], tokens[part] = self._encode_part(list(texts[part]))
        return checked(vectors, tokens, len(texts), self._dim, self._model_id)

    def _encode_part(self, texts: list[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        import torch  # noqa: PLC0415 - a device worker's machine has no torch

        features = self._model.preprocess(texts)
        width = int(features["attention_mask"].shape[1])
        tokens = features["attention_mask"].sum(dim=1).numpy()
        padded_left = getattr(self._model.tokenizer, "padding_side", "right") == "left"
        vectors = np.empty((len(texts), self._dim), np.float32)
        with torch.inference_mode():
            for rows in batches_by_length(tokens, self._batch_size):
                longest = int(tokens[rows[0]])
                kept = slice(width - longest, width) if padded_left else slice(longest)
                batch = {
                    name: value[rows][:, kept].to(self._model.device) if isinstance(value, torch.Tensor) else value
                    for name, value in features.items()
                }
                vectors[rows] = self._model(batch)["sentence_embedding"].float().cpu().numpy()
        return vectors, tokens


def load_model(folder: Path, *, device: str | None, threads: int | None = None, **options: Any) -> Any:
    """Load a `SentenceTransformer` from a folder without asking any hub.

    Parameters
    ----------
    options
        Passed on to `SentenceTransformer`.

    Raises
    ------
    EncoderError
        A library is missing or the folder cannot be loaded.
    """
    stay_offline()
    try:
        import torch  # noqa: PLC0415 - heavy, and only those who encode pay for it
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415
        from transformers.utils import logging  # noqa: PLC0415
    except ImportError as exc:
        raise EncoderError(f"the text encoder needs {exc.name}", remedy="install driftline[cloud]") from exc
    logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        model = SentenceTransformer(str(folder), device=device, local_files_only=True, **options)
    except Exception as exc:  # whatever the reader of its weights, its code or its configuration raises
        raise EncoderError(f"model folder {folder} cannot be loaded: {exc}") from exc
    return model.eval()
