"""A bundle: the trained models and item vectors of one version, a directory that is verified when loaded.

::

    manifest.json        what it is, for which data and split, and the SHA-256 of every other file
    items.msgpack        item ids, titles, categories, in index order
    device.safetensors   what a device needs (see `device_tensors`)
    cloud.safetensors    what the cloud needs (see `CLOUD_TENSORS`)
    live.safetensors     who took what up to the test period: what the cloud's live index begins with

The bundle id is the hash of the file hashes and of what the manifest says, but for its measures and dates: a changed
byte is another bundle, and loading says so. Other files may lie beside these; they are no part of the bundle.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from streams.errors import BundleError

FORMAT: Final = 5
TAU_RANGE: Final = (0.01, 1_000.0)
"""Of the calibrator's τ: a device has a table of ten numbers for each unit of it, and divides by it in float32."""
MANIFEST: Final = "manifest.json"
ITEMS: Final = "items.msgpack"
DEVICE: Final = "device.safetensors"
CLOUD: Final = "cloud.safetensors"
LIVE: Final = "live.safetensors"

PHI: Final = (
    "cos_cached_recent",
    "cos_cached_last",
    "log_gap",
    "log_age",
    "spread",
    "agreement",
    "cloud_deviation",
    "srm_deviation",
    "surprise",
    "log_count",
)
"""The staleness signals φ, in this order (P = 10); `device_agent.staleness` says what each is."""

DEVICE_TENSORS: Final[Mapping[str, str]] = {
    "item_vectors": "(N, d) item vectors v_i of the shared space",
    "item_bias": "(N,) item biases b_i of the shared space",
    "popularity": "(N,) interactions of each item in the training period",
    "srm.item_in": "(N, h) the SRM's input embeddings; of a DIN, what an item adds to a state",
    "srm.item_out": "(N, h) output embeddings",
    "srm.bias_out": "(N,) output biases",
    "phi.mean": "(P,) standardisation of the signals",
    "phi.scale": "(P,)",
    "calibrator.gate.weight": "(d, 2d + h + P) gate over [e, m, SRM state, standardised phi]",
    "calibrator.gate.bias": "(d,)",
    "calibrator.mlp.0.weight": "(H, 2d + h + P) hidden layer over the same",
    "calibrator.mlp.0.bias": "(H,)",
    "calibrator.mlp.2.weight": "(d, H)",
    "calibrator.mlp.2.bias": "(d,)",
    "calibrator.tau": "(1,) interactions over which a stale embedding is let go of, in TAU_RANGE",
    "staleness.0.weight": "(R, P) logit of staleness over standardised phi: linear, tanh, linear",
    "staleness.0.bias": "(R,)",
    "staleness.2.weight": "(1, R)",
    "staleness.2.bias": "(1,)",
    "worth.0.weight": "(R, P) expected gain of a refresh over standardised phi: linear, tanh, linear",
    "worth.0.bias": "(R,)",
    "worth.2.weight": "(1, R)",
    "worth.2.bias": "(1,)",
    "fusion.alpha": "(2,) weight of the cloud's z-scores at staleness 0 and at staleness 1; the rest is the SRM's",
    "fusion.trends": "(2,) β of `streams.neighbours` at staleness 0 and at staleness 1, as without an embedding",
}
"""What every device part has, whatever its SRM; `device_tensors` adds what that has."""

_SASREC_BLOCK: Final[Mapping[str, str]] = {
    "attention_norm.weight": "(h,) LayerNorm before the attention",
    "attention_norm.bias": "(h,)",
    "query.weight": "(h, h) one head of causal attention",
    "query.bias": "(h,)",
    "key.weight": "(h, h)",
    "key.bias": "(h,)",
    "value.weight": "(h, h)",
    "value.bias": "(h,)",
    "feed_norm.weight": "(h,) LayerNorm before the feed-forward part",
    "feed_norm.bias": "(h,)",
    "feed.0.weight": "(h, h) linear, ReLU, linear",
    "feed.0.bias": "(h,)",
    "feed.2.weight": "(h, h)",
    "feed.2.bias": "(h,)",
}
SASREC_BLOCKS: Final = 2
DIN_PARTS: Final = 2
"""Of a DIN's activation unit, which is a sum of so many products (`cloud_worker.training.srm.din`)."""
_INPUT_NORM: Final[Mapping[str, str]] = {
    "srm.norm.weight": "(h,) LayerNorm over the input embedding",
    "srm.norm.bias": "(h,)",
}
SRM_TENSORS: Final[Mapping[str, Mapping[str, str]]] = {
    "gru4rec": {
        **_INPUT_NORM,
        "srm.gru.weight_ih": "(3h, h) GRU, gates in torch's order r, z, n",
        "srm.gru.weight_hh": "(3h, h)",
        "srm.gru.bias_ih": "(3h,)",
        "srm.gru.bias_hh": "(3h,)",
    },
    "sasrec": {
        **_INPUT_NORM,
        "srm.positions": "(W, h) vectors of the places in a window, its oldest interaction first",
        **{
            f"srm.blocks.{nth}.{name}": meaning
            for nth in range(SASREC_BLOCKS)
            for name, meaning in _SASREC_BLOCK.items()
        },
        "srm.last_norm.weight": "(h,) LayerNorm over the output",
        "srm.last_norm.bias": "(h,)",
    },
    "din": {
        "srm.decay": "(h,) share of the state that is left after an interaction, in [0, 1]",
        # A device reads the one above and the two tables. Those below made them: with them training can go on.
        "srm.decay_logit": f"({DIN_PARTS},) its logit, of each part",
        "srm.items": f"(N, h / {DIN_PARTS}) item embeddings",
        "srm.norm.weight": f"(h / {DIN_PARTS},) LayerNorm over them",
        "srm.norm.bias": f"(h / {DIN_PARTS},)",
        "srm.taken.weight": f"({DIN_PARTS}, h / {DIN_PARTS}) activation unit: the factor of an item that was taken",
        "srm.taken.bias": f"({DIN_PARTS},)",
        "srm.candidate.weight": f"({DIN_PARTS}, h / {DIN_PARTS}) the factor of an item that is scored",
        "srm.candidate.bias": f"({DIN_PARTS},)",
    },
}
"""Which tensors each SRM has of its own; the manifest's ``srm`` says which of them it is."""

CLOUD_TENSORS: Final[Mapping[str, str]] = {
    "projector.0.weight": "(H, T) text vector of a profile to the shared space: linear, GELU, linear",
    "projector.0.bias": "(H,)",
    "projector.2.weight": "(d, H)",
    "projector.2.bias": "(d,)",
    "sequence.table": "(N, d) item vectors at the input of the sequence network",
    "sequence.bias": "(N,)",
    "sequence.gaps": "(16, d) vectors of the time gap before an interaction",
    "sequence.norm.weight": "(d,) LayerNorm over the input",
    "sequence.norm.bias": "(d,)",
    "sequence.gru.weight_ih": "(3s, d) GRU, gates in torch's order r, z, n",
    "sequence.gru.weight_hh": "(3s, s)",
    "sequence.gru.bias_ih": "(3s,)",
    "sequence.gru.bias_hh": "(3s,)",
    "sequence.out.weight": "(d, s) state to the shared space",
    "sequence.out.bias": "(d,)",
}


class Period(msgspec.Struct, frozen=True):
    """A half-open stretch of event time and how many interactions lie in it."""

    start_ms: int
    end_ms: int
    interactions: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle is."""

    format: int
    bundle_id: str
    created: str
    """ISO 8601, UTC."""
    driftline_version: str
    dataset: str
    dataset_hash: str
    seed: int
    train: Period
    valid: Period
    test: Period
    n_items: int
    d: int
    """Dimension of the shared space."""
    srm_dim: int
    encoder: str
    """Model id of the text encoder: the cloud refuses to run with another."""
    text_dim: int
    profile_items: int
    """Titles in a profile text."""
    window: int
    """Interactions that a device keeps and sends."""
    recency_decay: float
    """Weight ratio of one interaction to the next newer one, in m."""
    exclude_seen: bool
    """The dataset has no repeats: what a user took is not recommended again."""
    blend: dict[str, float]
    """How the parts of the cloud model are mixed: the fields of `cloud_worker.blend.Blend`."""
    live: dict[str, int | float]
    """How the live index is asked: the fields of `cloud_worker.live.index.LiveOptions`."""
    quick: bool
    """Trained in a hurry, for a first demo: fewer epochs, fewer moments, no controls."""
    retrained: bool
    """Both networks went on over the validation period."""
    metrics: dict[str, float]
    """What training measured on the validation period."""
    files: dict[str, str]
    """SHA-256 of every other file."""
    srm: str = "gru4rec"
    """Which network the device's small model is: one of `SRM_TENSORS`."""


class Items(msgspec.Struct, frozen=True):
    """The catalogue in index order."""

    ids: list[str]
    titles: list[str]
    categories: list[str]


@dataclass(frozen=True)
class Bundle:
    """A loaded, verified bundle. ``cloud`` and ``live`` are empty where only the device's part was asked for."""

    path: Path
    manifest: Manifest
    items: Items
    device: Mapping[str, npt.NDArray[np.float32]]
    cloud: Mapping[str, npt.NDArray[np.float32]]
    live: Mapping[str, npt.NDArray[Any]]

    @property
    def id(self) -> str:
        """The bundle id: sixteen hexadecimal digits."""
        return self.manifest.bundle_id


def device_tensors(srm: str) -> Mapping[str, str]:
    """Return the name, shape and meaning of each tensor of a device part with this SRM."""
    return {**DEVICE_TENSORS, **SRM_TENSORS[srm]}


def save_bundle(
    path: Path,
    manifest: Mapping[str, Any],
    items: Items,
    device: Mapping[str, npt.NDArray[np.floating]],
    cloud: Mapping[str, npt.NDArray[np.floating]],
    live: Mapping[str, npt.NDArray[Any]],
    beside: Callable[[Path, str], None] = lambda _folder, _bundle_id: None,
) -> Manifest:
    """Write a bundle directory, whole or not at all; a bundle that is there is replaced.

    Parameters
    ----------
    manifest
        Every field of `Manifest` but format, bundle_id, files.
    live
        `cloud_worker.live.index.LiveIndex.state`: arrays of any type.
    beside
        Told the folder and the bundle's id before anybody sees them: writes what is to lie beside.

    Raises
    ------
    BundleError
        A tensor is missing, has the wrong shape, or is not finite; or a folder that is no bundle is in the way.
    """
    refuse_to_replace(path)
    blobs = {
        ITEMS: msgspec.msgpack.encode(items),
        DEVICE: save_tensors({k: np.ascontiguousarray(v, dtype=np.float32) for k, v in sorted(device.items())}),
        CLOUD: save_tensors({k: np.ascontiguousarray(v, dtype=np.float32) for k, v in sorted(cloud.items())}),
        LIVE: save_tensors({k: np.ascontiguousarray(v) for k, v in sorted(live.items())}),
    }
    files = {name: hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()}
    full = Manifest(format=FORMAT, bundle_id="", files=files, **manifest)
    full = msgspec.structs.replace(full, bundle_id=_bundle_id(full))
    _check(full, items, device, cloud, str(path))
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for name, blob in blobs.items():
        (scratch / name).write_bytes(blob)
    (scratch / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(full), indent=2))
    beside(scratch, full.bundle_id)
    before = path.with_name(f".{path.name}.{os.getpid()}.before")
    if path.exists():
        path.rename(before)
    scratch.rename(path)
    shutil.rmtree(before, ignore_errors=True)
    return full


def refuse_to_replace(path: Path) -> None:
    """Refuse a folder that holds something else than a bundle: it would be deleted. Makes the folder above.

    Raises
    ------
    BundleError
        It is a file, or a folder with other things and no manifest in it; or the folder above cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise BundleError(
            f"the folder {path.parent} cannot be made: {exc.strerror}", remedy="name another folder for the bundle"
        ) from exc
    if path.is_dir() and ((path / MANIFEST).is_file() or not any(path.iterdir())):
        return
    if path.exists():
        raise BundleError(
            f"{path} is there and is no bundle; a bundle would take its place",
            remedy="name a folder that does not exist, or an older bundle",
        )


def load_manifest(path: Path) -> Manifest:
    """Read a bundle's manifest; the files that it names are not verified.

    Raises
    ------
    BundleError
        It is missing, or of another format.
    """
    try:
        blob = (path / MANIFEST).read_bytes()
        of = msgspec.json.decode(blob, type=_OfFormat).format
        if of != FORMAT:
            raise BundleError(
                f"bundle {path}: format {of}, this version reads {FORMAT}",
                remedy="train it anew with `driftline train`, or name another (--bundle, DRIFTLINE_BUNDLE)",
            )
        return msgspec.json.decode(blob, type=Manifest)
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    except msgspec.MsgspecError as exc:
        raise BundleError(f"bundle {path}: its manifest is not one of format {FORMAT}: {exc}") from exc


class _OfFormat(msgspec.Struct):
    """What a manifest of any format has."""

    format: int


def _unreadable(path: Path, exc: OSError) -> BundleError:
    return BundleError(
        f"bundle {path}: {exc.filename} cannot be read ({exc.strerror})",
        remedy="make one with `driftline train`, or name another (--bundle, DRIFTLINE_BUNDLE)",
    )


def load_bundle(path: Path, *, part: str = "all") -> Bundle:
    """Read a bundle and verify every byte of it.

    Parameters
    ----------
    part
        ``"device"`` leaves the cloud's tensors out of memory; ``"all"`` reads both.

    Raises
    ------
    BundleError
        It is missing, of another format, or a byte of it changed.
    """
    manifest = load_manifest(path)
    try:
        blobs = {name: (path / name).read_bytes() for name in manifest.files}
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    for name, blob in blobs.items():
        if (found := hashlib.sha256(blob).hexdigest()) != manifest.files[name]:
            raise BundleError(
                f"bundle {path}: {name} was changed after it was written "
                f"(SHA-256 {found[:12]}…, the manifest says {manifest.files[name][:12]}…)",
                remedy="copy the bundle again, or train it anew",
            )
    if set(manifest.files) != {ITEMS, DEVICE, CLOUD, LIVE} or manifest.bundle_id != _bundle_id(manifest):
        raise BundleError(f"bundle {path}: its manifest was changed after it was written")
    try:
        items = msgspec.msgpack.decode(blobs[ITEMS], type=Items)
        device = load_tensors(blobs[DEVICE])
        cloud = load_tensors(blobs[CLOUD])
        live = load_tensors(blobs[LIVE])
    except (msgspec.MsgspecError, SafetensorError) as exc:
        raise BundleError(f"bundle {path}: {exc}") from exc
    _check(manifest, items, device, cloud, str(path))
    whole = part == "all"
    return Bundle(path, manifest, items, device, cloud if whole else {}, live if whole else {})


def _bundle_id(manifest: Manifest) -> str:
    """What two bundles share that behave alike; when they were made, and what was measured, is left out."""
    alike = msgspec.structs.replace(manifest, bundle_id="", created="", driftline_version="", metrics={})
    return hashlib.sha256(msgspec.json.encode(alike, order="deterministic")).hexdigest()[:16]


def _check(
    manifest: Manifest,
    items: Items,
    device: Mapping[str, npt.NDArray[np.floating]],
    cloud: Mapping[str, npt.NDArray[np.floating]],
    where: str,
) -> None:
    """Names, shapes and finiteness of everything."""
    n, d, h = manifest.n_items, manifest.d, manifest.srm_dim
    if not (len(items.ids) == len(items.titles) == len(items.categories) == n > 0):
        raise BundleError(f"bundle {where}: the manifest says {n} items, the catalogue has {len(items.ids)}")
    if len(set(items.ids)) != n:
        raise BundleError(f"bundle {where}: an item id stands twice in the catalogue")
    if manifest.srm not in SRM_TENSORS:
        raise BundleError(
            f"bundle {where}: its SRM is {manifest.srm!r}, this version knows {', '.join(SRM_TENSORS)}",
            remedy="use the version of Driftline that trained it, or train it anew",
        )
    wanted_of_device = device_tensors(manifest.srm)
    sizes = {
        "N": n,
        "d": d,
        "h": h,
        "3h": 3 * h,
        f"h / {DIN_PARTS}": -1 if h % DIN_PARTS else h // DIN_PARTS,
        "P": len(PHI),
        "2d + h + P": 2 * d + h + len(PHI),
        "T": manifest.text_dim,
        "W": manifest.window,
    }
    if strange := sorted(name for name in device if name.startswith("srm.") and name not in wanted_of_device):
        raise BundleError(f"bundle {where}: tensor {strange[0]} is no part of the SRM it names, {manifest.srm}")
    for declared, given in ((wanted_of_device, device), (CLOUD_TENSORS, cloud)):
        if missing := sorted(set(declared) - set(given)):
            raise BundleError(f"bundle {where}: tensor {missing[0]} is missing")
        known = dict(sizes)  # a size that no setting names (H) is what the part's first tensor with it says
        for name, meaning in declared.items():
            wanted = [each.strip() for each in meaning[1 : meaning.index(")")].split(",") if each.strip()]
            shape = given[name].shape
            fits = len(shape) == len(wanted) and all(
                size == (int(symbol) if symbol.isdigit() else known.setdefault(symbol, size))
                for size, symbol in zip(shape, wanted, strict=True)
            )
            if not fits:
                raise BundleError(f"bundle {where}: tensor {name} has shape {shape}, wants ({', '.join(wanted)})")
            if not np.isfinite(given[name]).all():
                raise BundleError(f"bundle {where}: tensor {name} holds NaN or infinity")
    least, most = TAU_RANGE
    if not np.float32(least) <= (tau := device["calibrator.tau"][0]) <= most:
        raise BundleError(f"bundle {where}: calibrator.tau is {tau:g}, not from {least:g} to {most:g}")
