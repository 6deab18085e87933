"""The encoder port over an int8 graph of ONNX Runtime: near the float32 model, and several times as fast on a CPU.

It is another model than the float32 one, with an id of its own: single texts differ by a cosine of 0.98, which the
projector and the heads of a bundle were not trained for. A bundle remembers the id; train with the encoder that serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from cloud_worker.encoder.base import EncodedBatch, checked
from cloud_worker.encoder.export_cache import cached_export
from cloud_worker.encoder.model_folder import model_id_of, stay_offline
from cloud_worker.encoder.onnx_export import GRAPH, META, TOKENIZER
from cloud_worker.encoder.onnx_int8_export import CALIBRATION, RECIPE, Int8Meta, digest_of, write_int8_graph
from cloud_worker.encoder.unpadded import UnpaddedGraph
from streams.errors import EncoderError

SAME_MACHINE_COSINE: Final = 0.999
"""Of the probe's vector to the one at export. Processors that sum int8 otherwise (or saturate) fall below it."""


class OnnxInt8Encoder:
    """Runs an exported int8 graph; see `from_model_folder`.

    A text's vector does not depend on the other texts of a call: each is encoded alone (see `UnpaddedGraph`).

    Parameters
    ----------
    exported
        Folder with the graph, its tokenizer and its numbers.
    threads
        Texts encoded at a time, one thread each; None: all cores.

    Raises
    ------
    EncoderError
        A library is missing, the folder is damaged, or this processor computes the graph otherwise.
    """

    def __init__(self, exported: Path, *, threads: int | None = None) -> None:
        stay_offline()
        remedy = "delete that folder; it is made anew"
        try:
            self._meta = msgspec.json.decode((exported / META).read_bytes(), type=Int8Meta)
            self._dim = self._meta.graph.dim
            self._graph_bytes = (exported / GRAPH).stat().st_size
            intact = digest_of(exported / GRAPH) == self._meta.digest
            if intact:
                self._graph = UnpaddedGraph(
                    exported / GRAPH, exported / TOKENIZER, self._meta.graph.max_tokens, threads=threads
                )
                probe = checked(*self._graph.run(CALIBRATION[-1:], self._dim), 1, self._dim, self.model_id).vectors[0]
        except EncoderError:
            raise
        except ImportError as exc:
            raise EncoderError(f"the ONNX encoder needs {exc.name}", remedy="install driftline[cloud]") from exc
        except Exception as exc:  # tokenizers and ONNX Runtime raise bare exceptions
            raise EncoderError(f"the exported graph in {exported} cannot be used: {exc}", remedy=remedy) from exc
        if not intact:
            raise EncoderError(f"the exported graph in {exported} is not what was written", remedy=remedy)
        then = np.asarray(self._meta.probe, np.float32)
        if then.shape != probe.shape or probe @ then < SAME_MACHINE_COSINE * np.linalg.norm(then):
            raise EncoderError(f"the exported graph in {exported} has other vectors on this processor", remedy=remedy)

    @classmethod
    def from_model_folder(cls, folder: Path, exports: Path, *, threads: int | None = None) -> OnnxInt8Encoder:
        """Serve a sentence-transformers model folder in int8.

        The first use of a model exports it (under a minute, needs torch) to a folder of `exports` named for its
        contents and the recipe; so does the next use of a damaged export.

        Raises
        ------
        EncoderError
            It cannot be exported, or its int8 graph is not near enough to the model.
        """
        model_id = int8_id(model_id_of(folder))
        return cached_export(
            exports / model_id,
            lambda made: write_int8_graph(folder, model_id, made),
            lambda made: cls(made, threads=threads),
        )

    @property
    def model_id(self) -> str:
        """That of the float32 model, ``-int8-`` and the version of the recipe."""
        return self._meta.graph.model_id

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

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
        vectors, tokens = self._graph.run(texts, self._dim)
        return checked(vectors, tokens, len(texts), self._dim, self.model_id)


def int8_id(float32_id: str) -> str:
    """The id of the int8 encoder made of the model `float32_id`."""
    return f"{float32_id}-int8-{RECIPE}"
