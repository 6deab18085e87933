"""Training a bundle, from a prepared dataset to a verified directory.

1. histories up to the test period; nothing later is read;
2. on the training period: the SRM and the cloud's sequence network, while another thread encodes texts and asks the
   live index about the past; the projector;
3. on the validation period: the live formula, the blend, α, the staleness head, and what everything is worth; the
   calibrator is distilled on the training period before;
4. both networks go on over the validation period; projector and calibrator follow them;
5. save.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from cloud_worker.blend import Blend
from cloud_worker.encoder import Encoder
from cloud_worker.live.index import LiveIndex, LiveOptions
from cloud_worker.sequence import SequenceModel
from cloud_worker.training import blending, evaluate, live, next_item, projector, reliability, srm, text
from cloud_worker.training import calibrator as calibration
from cloud_worker.training.bench import Bench, make_bench
from cloud_worker.training.bundles import driftline_version
from cloud_worker.training.checkpoints import Checkpoints
from cloud_worker.training.controls import Controls, save_controls
from cloud_worker.training.data import Histories, Ints, make_histories
from cloud_worker.training.fusion import GRID, best_alpha
from cloud_worker.training.metrics import auc, expected_calibration_error, summary
from cloud_worker.training.networks import Answers, Networks, fitted, sequence_embeddings
from cloud_worker.training.options import FitOptions, OnProgress, Progress, TrainOptions, silent
from cloud_worker.training.snapshots import Pairs, Snapshots, choose, pairs_of
from streams.bundle import Items, Manifest, save_bundle
from streams.datasets import Prepared, Split
from streams.errors import TrainingError
from streams.events import event_hash
from streams.experiment.ranking_metrics import ndcg_at

Floats = npt.NDArray[np.float32]
GAP: Final = 16
"""Interactions at which the metrics look at a stale embedding."""
MOST_PAIRS: Final = 4_000
"""Pairs of the validation period that α and the head are chosen on."""
LIVE_TRIALS: Final = 700
"""Moments that the live formulas are compared on."""
WATCHED: Final = 700
"""Moments of the validation period that early stopping looks at."""
PATIENCE: Final = 3

Model = TypeVar("Model", srm.Gru4Rec, SequenceModel)


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
    checkpoints = Checkpoints(out, (prepared.manifest.hash, split, options, encoder.model_id, driftline_version()))
    run = _Run(histories, options, prepared.exclude_seen, device, checkpoints, on_progress)
    with _Background(run, encoder, titles, categories) as background:
        stage = _first_stage(run, background)
        bundle = _second_stage(run, stage) if options.retrain else stage
        controls = _controls(run, stage, bundle) if options.controls else None
    metrics = stage.metrics | {"seconds": time.monotonic() - started}
    on_progress(Progress("saving", 1, 1))
    table, bias = bundle.networks.space()
    manifest = save_bundle(
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
            "blend": msgspec.to_builtins(stage.blend),
            "live": msgspec.to_builtins(stage.live),
            "quick": options.quick,
            "metrics": metrics,
        },
        Items(prepared.items["item_id"].to_list(), titles, categories),
        {
            "item_vectors": table.cpu().numpy(),
            "item_bias": bias.cpu().numpy(),
            "popularity": histories.popularity(valid=False).astype(np.float32),
            **bundle.networks.srm.tensors(),
            "phi.mean": stage.bench.phi_mean,
            "phi.scale": stage.bench.phi_scale,
            **bundle.repair.tensors(),
            **stage.head.tensors(),
            "fusion.alpha": np.array(stage.alphas, np.float32),
        },
        bundle.networks.projector.tensors() | bundle.networks.sequence.tensors(),
        _seed_of_live(histories, stage.live),
    )
    if controls is not None:
        save_controls(out, manifest.bundle_id, controls)
    checkpoints.remove()
    return manifest


@dataclass(frozen=True)
class _Run:
    """What every step needs."""

    histories: Histories
    options: TrainOptions
    exclude_seen: bool
    device: torch.device
    checkpoints: Checkpoints
    on_progress: OnProgress

    def say(self, stage: str, done: int, total: int, loss: float, note: str = "") -> None:
        if not np.isfinite(loss):
            raise TrainingError(
                f"{stage}: the loss became {loss} at step {done} of {total}",
                remedy="train with another --seed; if it happens again, report it with the dataset's name",
            )
        self.on_progress(Progress(stage, done, total, f"loss {loss:.3f}{note}"))

    def generator(self, step: str) -> np.random.Generator:
        """Randomness of one step, that does not depend on which steps were taken before."""
        return np.random.default_rng([self.options.seed, event_hash(step)])

    def seed_torch(self, step: str) -> None:
        """The same for torch, which has one generator for everybody: only the training's own thread draws from it."""
        torch.manual_seed(event_hash(f"{self.options.seed}/{step}") % 2**63)


@dataclass(frozen=True)
class _Stage:
    """What came out of a stage."""

    networks: Networks
    answers: Answers
    bench: Bench
    repair: calibration.Calibrator
    live: LiveOptions
    blend: Blend
    alphas: tuple[float, float]
    head: reliability.StalenessHead
    metrics: dict[str, float]


class _Background:
    """The thread beside the training: texts are encoded there and the live index is asked.

    Our training steps are too small for two threads: they would wait for each other, and on a machine with other work
    a training took five times as long. So they have one core, and this thread the others.
    """

    def __init__(self, run: _Run, encoder: Encoder, titles: list[str], categories: list[str]) -> None:
        self.run, self.snapshots = run, _snapshots(run, titles, categories)
        self._stop, self._threads = threading.Event(), torch.get_num_threads()
        self._pool = ThreadPoolExecutor(1, "encoding")
        threads = max(1, self._threads - 1)
        encode = partial(_encode, run, encoder, threads=threads, stop=self._stop)
        encoded = self.snapshots.take(self.snapshots.encoded)
        profiles = text.profile_texts(run.histories, encoded, titles, categories, run.options.profile_items)
        self.item_text: Future[Floats] = self._pool.submit(encode, text.item_texts(titles, categories), "item texts")
        self.live: Future[tuple[LiveOptions, live.SparseScores, list[float]]] = self._pool.submit(self._live)
        self.profiles: Future[Floats] = self._pool.submit(encode, profiles, "profile texts")

    def __enter__(self) -> _Background:
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads)

    def _live(self) -> tuple[LiveOptions, live.SparseScores, list[float]]:
        """Choose the formula on some moments of the validation period, and ask it about all snapshots."""
        run, snapshots = self.run, self.snapshots

        def on_done(done: int, total: int) -> None:
            if self._stop.is_set():
                raise TrainingError("training was stopped")
            run.on_progress(Progress("live index", done, total))

        rows = np.flatnonzero(snapshots.valid)
        if len(rows) > LIVE_TRIALS:
            rows = np.sort(run.generator("live").choice(rows, LIVE_TRIALS, replace=False))
        users, positions = snapshots.users[rows], snapshots.positions[rows]
        trials = live.scores_at(run.histories, users, positions, live.CHOICES, exclude_seen=run.exclude_seen)
        hidden = np.zeros((len(rows), 0), np.float32)
        moments = evaluate.Moments(run.histories, users, positions, hidden, run.exclude_seen)
        best, values = blending.best_live(trials, moments)
        chosen = live.CHOICES[best]
        (everywhere,) = live.scores_at(
            run.histories,
            snapshots.users,
            snapshots.positions,
            [chosen],
            exclude_seen=run.exclude_seen,
            on_done=on_done,
        )
        return chosen, everywhere, values


def _first_stage(run: _Run, background: _Background) -> _Stage:
    """Everything on the training period; choices and measures on the validation period."""
    options, histories, snapshots = run.options, run.histories, background.snapshots
    small = _fit(run, "SRM", lambda: srm.Gru4Rec(histories.n_items, options.srm.dim, options.srm.dropout), options.srm)
    item_text = background.item_text.result()
    big = _fit(
        run,
        "cloud network",
        lambda: SequenceModel(item_text, options.d, options.hidden, options.sequence.dropout),
        options.sequence,
    )
    space = (big.table().detach(), big.bias.detach())

    stand_ins = text.stand_ins(
        histories,
        snapshots.users,
        snapshots.positions,
        item_text,
        last=options.profile_items,
        decay=options.projector.text_decay,
    )
    profiles = background.profiles.result()
    stand_in_projector, real_projector = _projectors(run, space, item_text, snapshots, stand_ins, profiles)
    networks = Networks(small, big, real_projector, stand_in_projector)
    formula, live_scores, live_values = background.live.result()
    answers = _answers(run, networks, snapshots, stand_ins, profiles, live_scores)

    hidden = srm.running_states(small, histories, snapshots.users, snapshots.positions)
    at = np.flatnonzero(snapshots.valid)
    every = evaluate.Moments(histories, snapshots.users[at], snapshots.positions[at], hidden[at], run.exclude_seen)
    run.on_progress(Progress("choosing the blend", 0, 1))
    blend = blending.best_blend(answers.take(at), every, space)
    run.on_progress(Progress("choosing the blend", 1, 1, f"live {blend.live:.2f}, text {blend.text:.2f}"))
    embeddings = fitted(answers, space, blend, lambda done, total: run.on_progress(Progress("fitting", done, total)))

    pairs = pairs_of(snapshots, options.calibrator.largest_gap, valid=False)
    train = np.flatnonzero(~snapshots.valid)
    with_fresh = Pairs(np.concatenate([pairs.stale, train]), np.concatenate([pairs.fresh, train]))
    bench = make_bench(
        networks,
        histories,
        snapshots,
        embeddings,
        exclude_seen=run.exclude_seen,
        decay=options.recency_decay,
        pairs=with_fresh,
    )
    generator = run.generator("calibrator")
    run.seed_torch("calibrator")
    repair = calibration.Calibrator(options.d, options.srm.dim, options.calibrator.hidden).to(run.device)
    _distil(run, "calibrator", repair, bench, pairs, options.calibrator.epochs, generator)
    alphas, head, metrics = _judge(run, bench, repair, answers.take(at), blend, space)
    metrics |= {f"live.{index}": value for index, value in enumerate(live_values)}
    metrics |= {"snapshots": float(len(snapshots)), "encoded": float(snapshots.encoded.sum())}
    return _Stage(networks, answers, bench, repair, formula, blend, alphas, head, metrics)


def _second_stage(run: _Run, first: _Stage) -> _Stage:
    """The same networks after some epochs over both periods; what was chosen stays."""
    options, histories, snapshots = run.options, run.histories, first.bench.snapshots
    networks = copy.deepcopy(first.networks)
    _fit_on(run, "SRM to the end", networks.srm, options.srm)
    _fit_on(run, "cloud to the end", networks.sequence, options.sequence)
    sequence = sequence_embeddings(networks.sequence, histories, snapshots.users, snapshots.positions, options.window)
    answers = replace(first.answers, sequence=sequence)
    embeddings = fitted(
        answers,
        networks.space(),
        first.blend,
        lambda done, total: run.on_progress(Progress("fitting again", done, total)),
    )
    bench = make_bench(
        networks,
        histories,
        snapshots,
        embeddings,
        exclude_seen=run.exclude_seen,
        decay=options.recency_decay,
        standard=(first.bench.phi_mean, first.bench.phi_scale),
    )
    every = [pairs_of(snapshots, options.calibrator.largest_gap, valid=valid) for valid in (False, True)]
    pairs = Pairs(np.concatenate([p.stale for p in every]), np.concatenate([p.fresh for p in every]))
    repair = copy.deepcopy(first.repair)
    generator = run.generator("calibrator to the end")
    _distil(run, "calibrator again", repair, bench, pairs, options.calibrator.final_epochs, generator)
    return replace(first, networks=networks, answers=answers, bench=bench, repair=repair)


def _controls(run: _Run, first: _Stage, last: _Stage) -> Controls:
    """Trained as the bundle is: on the training period, α on the validation period, then on to the end."""
    options, snapshots = run.options, first.bench.snapshots
    second = _fit(
        run,
        "second SRM",
        lambda: srm.Gru4Rec(run.histories.n_items, options.srm.dim, options.srm.dropout),
        options.srm,
    )
    run.seed_torch("distilled head")
    head = calibration.Stranger(options.d, options.srm.dim, 2 * options.d).to(run.device)
    generator = run.generator("distilled head")
    train, at = np.flatnonzero(~snapshots.valid), np.flatnonzero(snapshots.valid)
    _distil(run, "distilled head", head, first.bench, Pairs(train, train), 2 * options.calibrator.epochs, generator)
    moments = first.bench.moments(at)
    guessed = calibration.apply(head, first.bench.data(Pairs(at, at)))
    head_alpha = best_alpha(evaluate.ranks_for_alphas(first.bench.catalogue, moments, guessed, GRID))
    with torch.no_grad():
        other = replace(
            first.bench.catalogue, vectors=second.table().cpu().numpy(), bias=second.bias.detach().cpu().numpy()
        )
    states = srm.running_states(second, run.histories, moments.users, moments.positions)
    second_alpha = best_alpha(evaluate.ranks_for_alphas(other, moments, states, GRID))
    if options.retrain:
        _fit_on(run, "second to the end", second, options.srm)
        every = np.arange(len(snapshots))
        _distil(run, "head again", head, last.bench, Pairs(every, every), options.calibrator.final_epochs, generator)
    return Controls(second, second_alpha, head, head_alpha)


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


def _snapshots(run: _Run, titles: list[str], categories: list[str]) -> Snapshots:
    """As many encoded ones as the characters of their profiles allow, judged by the mean length of an item's text."""
    popularity = run.histories.popularity(valid=False)
    lengths = np.array([len(each) for each in text.item_texts(titles, categories)])
    mean_items = min(run.options.profile_items, float(np.mean(run.histories.lengths)))
    per_profile = mean_items * float((lengths * popularity).sum() / max(int(popularity.sum()), 1)) + 40
    return choose(run.histories, run.options.moments, per_profile, run.generator("snapshots"))


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


def _epochs(run: _Run, wanted: int, lengths: Ints) -> int:
    """No more than the data need: of large datasets fewer epochs see as many interactions."""
    positions = max(1, int(lengths.sum()))
    return max(2, min(wanted, run.options.most_positions // positions)) if wanted else 0


def _fit(run: _Run, stage: str, build: Callable[[], Model], options: FitOptions) -> Model:
    """Train a network on the training period; the epoch that was best on the validation period is kept."""
    generator = run.generator(stage)
    run.seed_torch(stage)
    model = build().to(run.device)
    if run.checkpoints.load(stage, model):
        model.eval()
        return model
    epochs = _epochs(run, options.epochs, run.histories.trained)
    watch = _watch(run, model, run.generator("watched"))
    best: dict[str, Any] = {"worth": -1.0}

    def after_epoch(epoch: int, loss: float) -> bool:
        note = ""
        if 2 * epoch >= epochs and watch is not None:
            worth = watch()
            note = f", NDCG@10 {worth:.4f}"
            if worth > best["worth"]:
                best.update(worth=worth, epoch=epoch, state=copy.deepcopy(model.state_dict()))
        run.say(stage, epoch, epochs, loss, note)
        return "state" in best and epoch - best["epoch"] >= PATIENCE

    next_item.fit(
        model,
        run.histories,
        options,
        lengths=run.histories.trained,
        epochs=epochs,
        learning_rate=options.learning_rate,
        exclude_seen=run.exclude_seen,
        generator=generator,
        after_epoch=after_epoch,
    )
    if "state" in best:
        model.load_state_dict(best["state"])
    run.checkpoints.save(stage, model)
    model.eval()
    return model


def _watch(run: _Run, model: srm.Gru4Rec | SequenceModel, generator: np.random.Generator) -> Callable[[], float] | None:
    """NDCG@10 on some moments of the validation period; None where there are none."""
    histories = run.histories
    users = np.repeat(np.arange(histories.n_users), histories.lengths)
    positions = np.arange(len(users)) - histories.starts[users]
    rows = np.flatnonzero((positions >= histories.trained[users]) & (positions > 0))
    if not len(rows):
        return None
    rows = np.sort(generator.choice(rows, min(WATCHED, len(rows)), replace=False))
    u, p = users[rows], positions[rows]

    def watch() -> float:
        if isinstance(model, SequenceModel):
            states = sequence_embeddings(model, histories, u, p, run.options.window)
        else:
            states = srm.running_states(model, histories, u, p)
        with torch.no_grad():
            table, bias = model.table().cpu().numpy(), model.bias.detach().cpu().numpy()
        catalogue = evaluate.Catalogue(table, bias, table, bias)
        ranks = evaluate.ranks(catalogue, evaluate.Moments(histories, u, p, states, run.exclude_seen), None, 0.0)
        return float(ndcg_at(ranks).mean())

    return watch


def _fit_on(run: _Run, stage: str, model: srm.Gru4Rec | SequenceModel, options: FitOptions) -> None:
    """Warm start over both periods, in place: what is served next follows the validation period."""
    if run.checkpoints.load(stage, model):
        return
    run.seed_torch(stage)
    epochs = _epochs(run, options.final_epochs, run.histories.lengths)

    def after_epoch(epoch: int, loss: float) -> bool:
        run.say(stage, epoch, epochs, loss)
        return False

    next_item.fit(
        model,
        run.histories,
        options,
        lengths=run.histories.lengths,
        epochs=epochs,
        learning_rate=options.final_learning_rate,
        exclude_seen=run.exclude_seen,
        generator=run.generator(stage),
        after_epoch=after_epoch,
    )


def _projectors(
    run: _Run,
    space: tuple[Tensor, Tensor],
    item_text: Floats,
    snapshots: Snapshots,
    stand_ins: Floats,
    profiles: Floats,
) -> tuple[projector.Projector, projector.Projector]:
    """From stand-ins, and from real profiles (those of the encoded snapshots, in their order)."""
    options, histories = run.options, run.histories
    generator = run.generator("projector")
    run.seed_torch("projector")
    from_stand_ins = projector.Projector(item_text.shape[1], options.projector.hidden, options.d).to(run.device)
    projector.train_on_stand_ins(
        from_stand_ins,
        space,
        item_text,
        histories,
        options.projector,
        last=options.profile_items,
        exclude_seen=run.exclude_seen,
        generator=generator,
        after=lambda done, total, loss: run.say("projector", done, total, loss),
    )
    real = copy.deepcopy(from_stand_ins)
    train = ~snapshots.valid & snapshots.encoded
    of_train = ~snapshots.valid[snapshots.encoded]
    projector.fold_in_real_profiles(real, profiles[of_train], stand_ins[train], options.projector.ridge)
    projector.train_on_profiles(
        real,
        space,
        histories,
        snapshots.users[train],
        snapshots.positions[train],
        profiles[of_train],
        options.projector,
        exclude_seen=run.exclude_seen,
        generator=generator,
        after=lambda done, total, loss: run.say("real profiles", done, total, loss),
    )
    return from_stand_ins, real


def _answers(
    run: _Run,
    networks: Networks,
    snapshots: Snapshots,
    stand_ins: Floats,
    profiles: Floats,
    live_scores: live.SparseScores,
) -> Answers:
    from_text = networks.stand_in_projector.embed(stand_ins)
    from_text[snapshots.encoded] = networks.projector.embed(profiles)
    sequence = sequence_embeddings(
        networks.sequence, run.histories, snapshots.users, snapshots.positions, run.options.window
    )
    return Answers(sequence, from_text, live_scores)


def _distil(
    run: _Run,
    stage: str,
    repair: calibration.Repair,
    bench: Bench,
    pairs: Pairs,
    epochs: int,
    generator: np.random.Generator,
) -> None:
    """In place."""
    calibration.fit(
        repair,
        bench.data(pairs),
        bench.catalogue.vectors,
        bench.catalogue.bias,
        run.options.calibrator,
        epochs,
        generator,
        lambda epoch, loss: run.say(stage, epoch, epochs, loss),
    )


def _judge(
    run: _Run,
    bench: Bench,
    repair: calibration.Calibrator,
    answers: Answers,
    blend: Blend,
    space: tuple[Tensor, Tensor],
) -> tuple[tuple[float, float], reliability.StalenessHead, dict[str, float]]:
    """α, the staleness head, and what every model is worth on the validation period.

    Parameters
    ----------
    answers
        Of the validation period's snapshots.
    """
    at = np.flatnonzero(bench.snapshots.valid)
    every = bench.moments(at)
    pairs = pairs_of(bench.snapshots, run.options.calibrator.largest_gap, valid=True)
    if len(pairs) > MOST_PAIRS:
        pairs = pairs.take(np.sort(run.generator("pairs").choice(len(pairs), MOST_PAIRS, replace=False)))
    data, moments = bench.data(pairs), bench.moments(pairs.fresh)
    run.on_progress(Progress("choosing α", 0, 1))
    repaired = calibration.apply(repair, data)
    late = data.gap >= 4
    fresh_alpha = best_alpha(evaluate.ranks_for_alphas(bench.catalogue, every, bench.embeddings[at], GRID))
    stale_alpha = best_alpha(evaluate.ranks_for_alphas(bench.catalogue, moments.take(late), repaired[late], GRID))
    run.on_progress(Progress("choosing α", 1, 1, f"α {fresh_alpha:.2f} fresh, {stale_alpha:.2f} stale"))

    found: dict[str, float] = {}
    popularity = run.histories.popularity(valid=False).astype(np.float32)
    found |= summary("popularity", evaluate.constant_ranks(popularity, every))
    found |= summary("srm", evaluate.ranks(bench.catalogue, every, None, 0.0))
    found |= summary("cloud_sequence", evaluate.ranks(bench.catalogue, every, answers.sequence, 1.0))
    found |= summary("cloud_text", evaluate.ranks(bench.catalogue, every, answers.text, 1.0))
    found |= summary("cloud_live", blending.live_ranks(answers.live, every))
    found |= summary("cloud_teacher", blending.teacher_ranks(answers, every, space, blend))
    found |= summary("cloud_fresh", evaluate.ranks(bench.catalogue, every, bench.embeddings[at], 1.0))
    found |= summary("fused_fresh", evaluate.ranks(bench.catalogue, every, bench.embeddings[at], fresh_alpha))

    fresh_ranks = evaluate.ranks(bench.catalogue, moments, data.fresh, fresh_alpha)
    repaired_ranks = evaluate.ranks(bench.catalogue, moments, repaired, stale_alpha)
    pays = reliability.pays(repaired_ranks, fresh_ranks)
    phi = np.concatenate([data.phi, bench.data(Pairs(at, at)).phi])
    labels = np.concatenate([pays, np.zeros(len(at), np.bool_)])
    users = np.concatenate([moments.users, every.users])
    fitted_head = reliability.fit(phi, labels, users, run.options.reliability, run.options.seed)
    predicted = fitted_head.predicted[: len(pairs)]

    far = data.gap == GAP
    late_moments = moments.take(far)
    alpha = fresh_alpha + (stale_alpha - fresh_alpha) * predicted[far]
    found |= summary(f"srm@gap{GAP}", evaluate.ranks(bench.catalogue, late_moments, None, 0.0))
    found |= summary(f"fused_fresh@gap{GAP}", fresh_ranks[far])
    found |= summary(
        f"fused_stale@gap{GAP}", evaluate.ranks(bench.catalogue, late_moments, data.stale[far], fresh_alpha)
    )
    found |= summary(f"fused_calibrated@gap{GAP}", evaluate.ranks(bench.catalogue, late_moments, repaired[far], alpha))
    found |= {
        "moments": float(len(every)),
        f"moments@gap{GAP}": float(far.sum()),
        "alpha.fresh": fresh_alpha,
        "alpha.stale": stale_alpha,
        "blend.live": blend.live,
        "blend.text": blend.text,
        "staleness.auc": auc(predicted, pays),
        "staleness.ece": expected_calibration_error(predicted, pays),
        "staleness.share": float(pays.mean()) if len(pays) else 0.0,
        "staleness.pairs": float(len(pairs)),
    }
    return (fresh_alpha, stale_alpha), fitted_head.head, found


def _seed_of_live(histories: Histories, options: LiveOptions) -> dict[str, npt.NDArray[Any]]:
    """What the live index knows when the test period begins."""
    _, items, times = live.stream(histories)
    users = np.repeat(np.arange(histories.n_users), histories.lengths)[np.argsort(histories.order)]
    keys = np.array([event_hash(str(user)) for user in histories.users], np.uint64)
    index = LiveIndex(histories.n_items, options)
    index.observe(keys[users], items, times)
    return index.state()
