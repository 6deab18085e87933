"""Which encoder the settings ask for."""

from __future__ import annotations

from pathlib import Path

from cloud_worker.encoder.base import Encoder
from cloud_worker.encoder.model_folder import find_model_folder, model_id_of
from cloud_worker.encoder.onnx import OnnxEncoder
from cloud_worker.encoder.onnx_int8 import OnnxInt8Encoder, int8_id
from cloud_worker.encoder.openai import OpenAIEncoder, openai_id
from cloud_worker.encoder.sentence_transformers import SentenceTransformersEncoder
from streams.settings import CloudSettings


def encoder_id(settings: CloudSettings) -> str:
    """Model id of the encoder that `settings` names; nothing is loaded and nobody is asked.

    Raises
    ------
    EncoderError
        The model is missing.
    """
    if settings.encoder == "openai":
        return openai_id(settings.encoder_model)
    float32 = model_id_of(find_model_folder(settings.encoder_model))
    return int8_id(float32) if settings.encoder == "onnx-int8" else float32


def make_encoder(settings: CloudSettings, home: Path, threads: int | None = None) -> Encoder:
    """Load the encoder that `settings` names.

    Parameters
    ----------
    home
        Driftline's folder: exported ONNX graphs are kept under it.
    threads
        CPU threads of a local model; None: all cores.

    Raises
    ------
    EncoderError
        The model is missing, cannot be loaded, or its endpoint does not answer.
    """
    if settings.encoder == "openai":
        return OpenAIEncoder(settings.encoder_url, settings.encoder_model, settings.encoder_api_key.get_secret_value())
    folder = find_model_folder(settings.encoder_model)
    if settings.encoder == "onnx":
        return OnnxEncoder.from_model_folder(folder, home / "onnx", threads=threads)
    if settings.encoder == "onnx-int8":
        return OnnxInt8Encoder.from_model_folder(folder, home / "onnx", threads=threads)
    return SentenceTransformersEncoder(folder, threads=threads)
