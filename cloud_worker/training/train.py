"""Training a bundle, from a prepared dataset to a verified directory.

1. histories up to the test period; nothing later is read;
2. the SRM, then the item side of the shared space, while another thread encodes items and snapshots;
3. the projector;
4. the calibrator, on pairs of snapshots of the training period;
5. on the validation period: α, the staleness head, and what everything is worth;
6. save, with the SRM that went on over the validation period.
"""

from __future__ import annotations

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from cloud_worker.encoder import Encoder
from cloud_worker.training import calibrator as calibration
from cloud_worker.training import cloud_model, evaluate, signals, srm, staleness, text
from cloud_worker.training.bundles import driftline_version
from cloud_worker.training.data import Histories, Ints, make_histories
from cloud_worker.training.fusion import GRID, best_alpha
from cloud_worker.training.metrics import auc, expected_calibration_error, summary
from cloud_worker.training.options import OnProgress, Progress, TrainOptions, silent
from cloud_worker.training.snapshots import Pairs, Snapshots, choose, pairs_of
from streams.bundle import Items, Manifest, save_bundle
from streams.datasets import Prepared, Split
from streams.errors import TrainingError

Floats = npt.NDArray[np.float32]
GAP: Final = 16
"""Interactions at which the metrics look at a stale embedding."""
ALPHA_MOMENTS: Final = 3_000


def train_bundle(
    prepared: Prepared,
    split: Split,
    encoder: Encoder,
    out: Path,
    options: TrainOptions = TrainOptions(),  # noqa: B008 - frozen
    on_progress: OnProgress = silent,
) -> Manifest:
    """Train every model of a bundle and save it.

    Parameters
    ----------
    prepared, split
        The data and its periods; what lies in the test period is not looked at, but for the catalogue.
    encoder
        Of item and profile texts; the bundle remembers its model id.
    out
        The bundle's directory; one that is there is replaced once the new one is whole.

    Returns
    -------
    Manifest
        With what was measured on the validation period in ``metrics``.

    Raises
    ------
    TrainingError
        The data are too few, the loss is not finite, or the torch device is not there.
    """
    started = time.monotonic()
    device = _torch_device(options.device)
    histories = _histories(prepared, split, options)
    titles, categories = prepared.items["title"].to_list(), prepared.items["categories"].to_list()
    torch.manual_seed(options.seed)
    streams = np.random.default_rng(options.seed).spawn(5)
    run = _Run(histories, options, prepared.exclude_seen, device, on_progress)

    snapshots = _snapshots(run, titles, categories, streams[0])
    threads = torch.get_num_threads()
    stop = threading.Event()
    items = text.item_texts(titles, categories)
    profile_texts = text.profile_texts(histories, snapshots, titles, categories, options.profile_items)
    with ThreadPoolExecutor(1, "encoding") as pool:
        encode = partial(_encode, run, encoder, threads=max(1, threads - 1), stop=stop)
        item_vectors = pool.submit(encode, items, "item texts")
        profile_vectors = pool.submit(encode, profile_texts, "profile texts")
        try:
            # Our steps are too small for two threads: they would wait for each other, and on a machine with other
            # work to do a training took five times as long. The second core belongs to the encoder.
            torch.set_num_threads(1)
            model = _train_srm(run, streams[1])
            final = copy.deepcopy(model)
            if options.retrain and options.srm.final_epochs:
                with torch.random.fork_rng():  # the other models must not depend on it
                    _train_on(run, final, streams[1])
            space = _train_items(run, item_vectors.result(), streams[2])
            profiles = profile_vectors.result()
            _train_projector(run, space, snapshots, profiles, streams[2])
            bench = _bench(run, model, space, snapshots, profiles)
            repair = _train_calibrator(run, bench, streams[3])
            alpha, metrics = _measure(run, bench, repair, streams[4])
            weight, bias, head_metrics = _staleness(run, bench, alpha)
        finally:
            stop.set()
            torch.set_num_threads(threads)
    metrics |= head_metrics | {"alpha": alpha, "snapshots": float(len(snapshots))}
    metrics["seconds"] = time.monotonic() - started
    on_progress(Progress("saving", 1, 1))
    return save_bundle(
        out,
        {
            "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "driftline_version": driftline_version(),
            "dataset": prepared.manifest.name,
            "dataset_hash": prepared.manifest.hash,
            "seed": options.seed,
            "train": split.train,
            "valid": split.valid,
            "test": split.test,
            "n_items": histories.n_items,
            "d": options.d,
            "srm_dim": options.srm.dim,
            "encoder": encoder.model_id,
            "text_dim": encoder.dim,
            "profile_items": options.profile_items,
            "window": options.window,
            "recency_decay": options.recency_decay,
            "exclude_seen": prepared.exclude_seen,
            "metrics": metrics,
        },
        Items(prepared.items["item_id"].to_list(), titles, categories),
        {
            "item_vectors": bench.catalogue.vectors,
            "item_bias": bench.catalogue.bias,
            "popularity": histories.popularity(valid=False).astype(np.float32),
            **final.tensors(),
            "phi.mean": bench.phi_mean,
            "phi.scale": bench.phi_scale,
            **repair.tensors(),
            "staleness.weight": weight.astype(np.float32),
            "staleness.bias": np.array([bias], np.float32),
            "fusion.alpha": np.array([alpha], np.float32),
        },
        space.cloud_tensors(),
    )


@dataclass(frozen=True)
class _Run:
    """What every stage needs."""

    histories: Histories
    options: TrainOptions
    exclude_seen: bool
    device: torch.device
    on_progress: OnProgress

    def say(self, stage: str, done: int, total: int, loss: float) -> None:
        if not np.isfinite(loss):
            raise TrainingError(
                f"{stage}: the loss became {loss} at step {done} of {total}",
                remedy="train with another --seed; if it happens again, report it with the dataset's name",
            )
        self.on_progress(Progress(stage, done, total, f"loss {loss:.3f}"))


@dataclass(frozen=True)
class _Bench:
    """The trained item sides, embeddings at the snapshots, and what follows from both."""

    catalogue: evaluate.Catalogue
    unit: Floats
    snapshots: Snapshots
    embeddings: Floats
    hidden: Floats
    phi_mean: Floats
    phi_scale: Floats

    def moments(self, run: _Run, rows: Ints) -> evaluate.Moments:
        """Serving at snapshots."""
        s = self.snapshots
        return evaluate.Moments(run.histories, s.users[rows], s.positions[rows], self.hidden[rows], run.exclude_seen)

    def data(self, run: _Run, pairs: Pairs) -> calibration.CalibrationData:
        """Serving at the fresh snapshots with the stale embeddings; a pair of one snapshot has gap 0."""
        users, begin = self.snapshots.users[pairs.fresh], self.snapshots.positions[pairs.stale]
        end, stale = self.snapshots.positions[pairs.fresh], self.embeddings[pairs.stale]
        means = signals.recent_means(run.histories, users, begin, end, self.unit, run.options.recency_decay)
        phi = signals.signals(run.histories, users, begin, end, stale, means, self.unit)
        targets = run.histories.items[run.histories.starts[users] + end]
        standard = ((phi - self.phi_mean) / self.phi_scale).astype(np.float32)
        return calibration.CalibrationData(stale, means, standard, end - begin, self.embeddings[pairs.fresh], targets)


def _torch_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("torch finds no CUDA device", remedy="use --device cpu")
    if name not in {"cpu", "cuda"}:
        raise TrainingError(f"device {name!r} is none of auto, cpu, cuda")
    return torch.device(name)


def _histories(prepared: Prepared, split: Split, options: TrainOptions) -> Histories:
    """Everything before the test period, or a `TrainingError` that says what is too little."""
    name = prepared.manifest.name
    for what, period in (("training", split.train), ("validation", split.valid), ("test", split.test)):
        if not period.interactions:
            raise TrainingError(
                f"dataset {name}: no event lies in the {what} period", remedy="choose other fractions with --split"
            )
    events = prepared.events.filter(pl.col("event_time_ms") < split.test.start_ms)
    index = {item: row for row, item in enumerate(prepared.items["item_id"].to_list())}
    items = np.array([index[item] for item in events["item_id"]], np.int64)
    users = events["device_id"].to_numpy()
    times = events["event_time_ms"].to_numpy()
    histories = make_histories(users, items, times, len(index), split.valid.start_ms)
    trainable = int((histories.trained >= 2).sum())
    if trainable < options.least_devices:
        raise TrainingError(
            f"dataset {name}: {trainable} devices have two or more interactions in the training period, "
            f"{options.least_devices} are wanted",
            remedy="use more data, or a larger training fraction with --split",
        )
    return histories


def _snapshots(run: _Run, titles: list[str], categories: list[str], generator: np.random.Generator) -> Snapshots:
    """As many snapshots as the characters of their profiles allow, judged by the mean length of an item's text."""
    options = run.options
    popularity = run.histories.popularity(valid=False)
    lengths = np.array([len(each) for each in text.item_texts(titles, categories)])
    mean_items = min(options.profile_items, float(np.mean(run.histories.lengths)))
    per_profile = mean_items * float((lengths * popularity).sum() / max(int(popularity.sum()), 1)) + 40
    wanted = options.snapshots.train + options.snapshots.valid
    scale = min(1.0, options.snapshots.characters / (per_profile * wanted))
    return choose(run.histories, options.snapshots, scale, generator)


def _encode(
    run: _Run, encoder: Encoder, texts: list[str], stage: str, *, threads: int, stop: threading.Event
) -> Floats:
    """(n, T) vectors of texts, in a thread of its own that ends soon after `stop`."""
    torch.set_num_threads(threads)  # counts for this thread only

    def on_done(done: int, total: int) -> None:
        if stop.is_set():
            raise TrainingError("training was stopped")
        run.on_progress(Progress(stage, done, total))

    return text.encode_all(encoder, texts, on_done)


def _train_srm(run: _Run, generator: np.random.Generator) -> srm.Gru4Rec:
    options = run.options.srm
    model = srm.Gru4Rec(run.histories.n_items, options.dim, options.dropout).to(run.device)

    def after_epoch(epoch: int, loss: float) -> bool:
        run.say("SRM", epoch, options.epochs, loss)
        return False

    srm.fit(
        model,
        run.histories,
        options,
        lengths=run.histories.trained,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        exclude_seen=run.exclude_seen,
        generator=generator,
        after_epoch=after_epoch,
    )
    return model


def _train_on(run: _Run, model: srm.Gru4Rec, generator: np.random.Generator) -> None:
    """Warm start over both periods, in place: what is served next follows the validation period."""
    options = run.options.srm

    def after_epoch(epoch: int, loss: float) -> bool:
        run.say("SRM to the end", epoch, options.final_epochs, loss)
        return False

    srm.fit(
        model,
        run.histories,
        options,
        lengths=run.histories.lengths,
        epochs=options.final_epochs,
        learning_rate=options.final_learning_rate,
        exclude_seen=run.exclude_seen,
        generator=generator,
        after_epoch=after_epoch,
    )


def _train_items(run: _Run, item_text: Floats, generator: np.random.Generator) -> cloud_model.CloudModel:
    histories, options = run.histories, run.options.cloud
    popularity = histories.popularity(valid=False)
    space = cloud_model.CloudModel(item_text, popularity, run.options.d, options.hidden).to(run.device)
    cloud_model.train_on_stand_ins(
        space,
        histories,
        options,
        last=run.options.profile_items,
        exclude_seen=run.exclude_seen,
        generator=generator,
        after=lambda done, total, loss: run.say("item vectors", done, total, loss),
    )
    return space


def _train_projector(
    run: _Run, space: cloud_model.CloudModel, snapshots: Snapshots, profiles: Floats, generator: np.random.Generator
) -> None:
    """In place."""
    histories, options = run.histories, run.options.cloud
    train = ~snapshots.valid
    users, positions, real = snapshots.users[train], snapshots.positions[train], profiles[train]
    item_text = space.text.cpu().numpy()
    stand_in = text.stand_ins(
        histories, users, positions, item_text, last=run.options.profile_items, decay=options.text_decay
    )
    cloud_model.fold_in_real_profiles(space, real, stand_in, options.ridge)
    cloud_model.train_on_profiles(
        space,
        histories,
        users,
        positions,
        real,
        options,
        exclude_seen=run.exclude_seen,
        generator=generator,
        after=lambda done, total, loss: run.say("projector", done, total, loss),
    )
    space.rescale(real)


def _bench(
    run: _Run, model: srm.Gru4Rec, space: cloud_model.CloudModel, snapshots: Snapshots, profiles: Floats
) -> _Bench:
    with torch.no_grad():
        vectors, bias = space.vectors().cpu().numpy(), space.bias.detach().cpu().numpy().copy()
    tensors = model.tensors()
    catalogue = evaluate.Catalogue(vectors, bias, tensors["srm.item_out"].copy(), tensors["srm.bias_out"].copy())
    embeddings = space.embed(profiles)
    unit = signals.unit_vectors(vectors)
    hidden = srm.running_states(model, run.histories, snapshots.users, snapshots.positions)
    zero, one = np.zeros(5, np.float32), np.ones(5, np.float32)
    bench = _Bench(catalogue, unit, snapshots, embeddings, hidden, zero, one)
    train = np.flatnonzero(~snapshots.valid)
    pairs = pairs_of(snapshots, run.options.calibrator.largest_gap, valid=False)
    raw = bench.data(run, Pairs(np.concatenate([pairs.stale, train]), np.concatenate([pairs.fresh, train]))).phi
    mean, scale = raw.mean(axis=0).astype(np.float32), np.maximum(raw.std(axis=0), 1e-2).astype(np.float32)
    return _Bench(catalogue, unit, snapshots, embeddings, hidden, mean, scale)


def _train_calibrator(run: _Run, bench: _Bench, generator: np.random.Generator) -> calibration.Calibrator:
    options = run.options.calibrator
    model = calibration.Calibrator(run.options.d, options.hidden).to(run.device)
    pairs = pairs_of(bench.snapshots, options.largest_gap, valid=False)
    calibration.fit(
        model,
        bench.data(run, pairs),
        bench.catalogue.vectors,
        bench.catalogue.bias,
        options,
        generator,
        lambda epoch, loss: run.say("calibrator", epoch, options.epochs, loss),
    )
    return model


def _measure(
    run: _Run, bench: _Bench, repair: calibration.Calibrator, generator: np.random.Generator
) -> tuple[float, dict[str, float]]:
    """α, and what every model is worth on the validation period."""
    at = np.flatnonzero(bench.snapshots.valid)
    pairs = pairs_of(bench.snapshots, run.options.calibrator.largest_gap, valid=True)
    mixed = Pairs(np.concatenate([pairs.stale, at]), np.concatenate([pairs.fresh, at]))
    if len(mixed) > ALPHA_MOMENTS:
        mixed = mixed.take(np.sort(generator.choice(len(mixed), ALPHA_MOMENTS, replace=False)))
    run.on_progress(Progress("choosing α", 0, 1))
    repaired = repair.apply_to(bench.data(run, mixed))
    alpha = best_alpha(evaluate.ranks_for_alphas(bench.catalogue, bench.moments(run, mixed.fresh), repaired, GRID))

    found: dict[str, float] = {}
    every = bench.moments(run, at)
    popularity = run.histories.popularity(valid=False).astype(np.float32)
    found |= summary("popularity", evaluate.constant_ranks(popularity, every))
    found |= summary("srm", evaluate.ranks(bench.catalogue, every, None, 0.0))
    found |= summary("cloud_fresh", evaluate.ranks(bench.catalogue, every, bench.embeddings[at], 1.0))
    found |= summary("fused_fresh", evaluate.ranks(bench.catalogue, every, bench.embeddings[at], alpha))
    distance = bench.snapshots.positions[pairs.fresh] - bench.snapshots.positions[pairs.stale]
    stale = pairs.take(distance == GAP)
    late = bench.moments(run, stale.fresh)
    found |= summary(f"srm@gap{GAP}", evaluate.ranks(bench.catalogue, late, None, 0.0))
    for name, embeddings in (
        ("fresh", bench.embeddings[stale.fresh]),
        ("stale", bench.embeddings[stale.stale]),
        ("calibrated", repair.apply_to(bench.data(run, stale))),
    ):
        found |= summary(f"fused_{name}@gap{GAP}", evaluate.ranks(bench.catalogue, late, embeddings, alpha))
    found |= {"moments": float(len(every)), f"moments@gap{GAP}": float(len(late))}
    run.on_progress(Progress("choosing α", 1, 1, f"α {alpha:.2f}"))
    return alpha, found


def _staleness(run: _Run, bench: _Bench, alpha: float) -> tuple[npt.NDArray[np.float64], float, dict[str, float]]:
    """The head, fitted on the pairs of the validation period; AUC and ECE across two halves of its users.

    Pairs of the training period would not do: there the SRM has seen the next item, so freshness matters less.
    """
    pairs = pairs_of(bench.snapshots, run.options.calibrator.largest_gap, valid=True)
    if not len(pairs):
        return np.zeros(5), 0.0, {}
    data, moments = bench.data(run, pairs), bench.moments(run, pairs.fresh)
    old = evaluate.ranks(bench.catalogue, moments, data.stale, alpha)
    new = evaluate.ranks(bench.catalogue, moments, data.fresh, alpha)
    better = new < old
    half = np.unique(moments.users, return_inverse=True)[1] % 2 == 0
    predicted = np.zeros(len(pairs))
    for fold in (half, ~half):
        if fold.any() and (~fold).any():
            predicted[fold] = staleness.predict(data.phi[fold], *staleness.fit(data.phi[~fold], better[~fold]))
    weight, bias = staleness.fit(data.phi, better)
    measured = {
        "staleness.auc": auc(predicted, better),
        "staleness.ece": expected_calibration_error(predicted, better),
        "staleness.share": float(better.mean()),
        "staleness.pairs": float(len(pairs)),
    }
    return weight, bias, measured
