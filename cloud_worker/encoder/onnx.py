"""The encoder port over ONNX Runtime: the model's own torch graph, exported once, then served without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from cloud_worker.encoder.base import EncodedBatch, batches_by_length, checked
from cloud_worker.encoder.export_cache import cached_export
from cloud_worker.encoder.model_folder import model_id_of, stay_offline
from cloud_worker.encoder.onnx_export import GRAPH, META, OUTPUT, TOKENIZER, GraphMeta, write_graph
from cloud_worker.encoder.sentence_transformers import SentenceTransformersEncoder
from cloud_worker.encoder.unpadded import load_session, load_tokenizer
from streams.errors import EncoderError

FORMAT: Final = 1
"""Part of the cache folder's name: a change of the export leaves old ones unused."""
MIN_COSINE: Final = 0.999
"""Between the graph's and the model's vector of every probe text."""
PROBES: Final = (
    "",
    "Heat (crime, drama)",
    "天空の城ラピュタ",
    "one text that is a good deal longer than the others " * 30,
)


class OnnxEncoder:
    """Runs an exported graph; see `from_model_folder`.

    Parameters
    ----------
    exported
        Folder with the graph, its tokenizer and its numbers.
    threads
        Threads of ONNX Runtime; None: all cores.
    batch_size
        Texts in one run.

    Raises
    ------
    EncoderError
        A library is missing or the folder is damaged.
    """

    def __init__(self, exported: Path, *, threads: int | None = None, batch_size: int = 32) -> None:
        stay_offline()
        self._batch_size = batch_size
        try:
            self._meta = msgspec.json.decode((exported / META).read_bytes(), type=GraphMeta)
            self._tokenizer = load_tokenizer(exported / TOKENIZER, self._meta.max_tokens)
            self._session = load_session(exported / GRAPH, threads)
            self._graph_bytes = (exported / GRAPH).stat().st_size
        except ImportError as exc:
            raise EncoderError(f"the ONNX encoder needs {exc.name}", remedy="install driftline[cloud]") from exc
        except Exception as exc:  # tokenizers and ONNX Runtime raise bare exceptions
            raise EncoderError(
                f"the exported graph in {exported} cannot be used: {exc}", remedy="delete that folder; it is made anew"
            ) from exc
        self._inputs = [each.name for each in self._session.get_inputs()]

    @classmethod
    def from_model_folder(
        cls, folder: Path, exports: Path, *, threads: int | None = None, batch_size: int = 32
    ) -> OnnxEncoder:
        """Serve a sentence-transformers model folder.

        The first use of a model exports it (seconds, needs torch) to a folder of `exports` named for its contents; so
        does the next use of a damaged export.

        Raises
        ------
        EncoderError
            It cannot be exported, or its graph does not equal the model.
        """
        return cached_export(
            exports / f"{model_id_of(folder)}-v{FORMAT}",
            lambda made: _write(folder, made),
            lambda made: cls(made, threads=threads, batch_size=batch_size),
        )

    @property
    def model_id(self) -> str:
        """The same as that of sentence-transformers over the same folder."""
        return self._meta.model_id

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._meta.dim

    @property
    def graph_bytes(self) -> int:
        """Size of the graph's file."""
        return self._graph_bytes

    def encode(self, texts: Sequence[str]) -> EncodedBatch:
        """Encode (B,) texts; what is longer than the model's maximum is cut.

        Raises
        ------
        EncoderError
            The graph answered something that is no vector.
        """
        vectors = np.empty((len(texts), self.dim), np.float32)
        encodings = self._tokenizer.encode_batch(list(texts))
        tokens = np.array([len(each.ids) for each in encodings], np.int64)
        for rows in batches_by_length(tokens, self._batch_size):
            features = self._padded([encodings[row] for row in rows])
            (vectors[rows],) = self._session.run([OUTPUT], features)
        return checked(vectors, tokens, len(texts), self.dim, self.model_id)

    def _padded(self, encodings: Sequence[Any]) -> dict[str, npt.NDArray[np.int64]]:
        """(B, L) arrays for the graph, longest text first."""
        shape = len(encodings), len(encodings[0].ids)
        features = {
            "input_ids": np.full(shape, self._meta.pad_id, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }
        for row, each in enumerate(encodings):
            length = len(each.ids)
            features["input_ids"][row, :length] = each.ids
            features["attention_mask"][row, :length] = 1
            features["token_type_ids"][row, :length] = each.type_ids
        return {name: features[name] for name in self._inputs}


def _write(folder: Path, target: Path) -> None:
    """Export `folder` into `target`, and show that the graph equals the model."""
    write_graph(folder, model_id_of(folder), target)
    wanted = SentenceTransformersEncoder(folder, device="cpu").encode(PROBES).vectors
    found = OnnxEncoder(target).encode(PROBES).vectors
    if (worst := float((wanted * found).sum(axis=1).min())) < MIN_COSINE:
        raise EncoderError(
            f"the ONNX graph of {folder} differs from the model: cosine {worst:.4f} on a probe text",
            remedy="use the encoder 'sentence-transformers'",
        )
