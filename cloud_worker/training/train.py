"""Training a bundle, from a prepared dataset to a verified directory.

1. histories up to the test period; nothing later is read;
2. on the training period: the SRM and the cloud's sequence network, while another thread encodes texts and asks the
   live index about the past, and then another process trains the SRM of step 4 and the second one; the projector;
3. on the validation period: the live formula, the blend, τ, α, β, the heads over the signals, what everything is worth;
   with the blend the calibrator is distilled on the training period, once for each τ;
4. both networks go on over the validation period, and the calibrator follows them; the projector stays;
5. save.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
from cloud_worker.training import blending, evaluate, live, projector, text
from cloud_worker.training import calibrator as calibration
from cloud_worker.training.background import Background
from cloud_worker.training.bench import Bench, make_bench
from cloud_worker.training.bundles import driftline_version
from cloud_worker.training.checkpoints import Checkpoints
from cloud_worker.training.controls import Controls, save_controls
from cloud_worker.training.data import Histories, histories_of_events
from cloud_worker.training.fusion import GRID, best_alpha
from cloud_worker.training.judging import Judged, judge
from cloud_worker.training.networks import Answers, Networks, fitted, sequence_embeddings
from cloud_worker.training.one_network import go_on, train_network
from cloud_worker.training.options import OnProgress, Progress, TrainOptions, silent
from cloud_worker.training.run import Run, torch_device
from cloud_worker.training.snapshots import Pairs, Snapshots, pairs_of
from cloud_worker.training.srm_trainings import second_to_the_end, srm_to_the_end, train_second, train_srm
from cloud_worker.training.trends import Told
from streams.bundle import Items, Manifest, Period, refuse_to_replace, save_bundle
from streams.datasets import Prepared, Split
from streams.errors import TrainingError
from streams.events import event_hash

Floats = npt.NDArray[np.float32]


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
    BundleError
        A folder that is no bundle is in the way.
    """
    started = time.monotonic()
    refuse_to_replace(out)
    device = torch_device(options.device)
    histories = _histories(prepared, split, options)
    titles, categories = prepared.items["title"].to_list(), prepared.items["categories"].to_list()
    checkpoints = Checkpoints(out, (prepared.manifest.hash, split, options, encoder.model_id, driftline_version()))
    run = Run(histories, options, prepared.exclude_seen, device, checkpoints, on_progress)
    with Background(run, encoder, titles, categories) as background:
        stage = _first_stage(run, background, split.valid)
        bundle = _second_stage(run, background, stage) if options.retrain else stage
        controls = _controls(run, background, stage, bundle) if options.controls else None
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
            "srm": options.srm_kind,
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
            "retrained": options.retrain,
            "metrics": metrics,
        },
        Items(prepared.items["item_id"].to_list(), titles, categories),
        {
            "item_vectors": table.cpu().numpy(),
            "item_bias": bias.cpu().numpy(),
            "popularity": histories.popularity(valid=False).astype(np.float32),
            **bundle.networks.srm.tensors(),
            "phi.mean": bundle.bench.phi_mean,
            "phi.scale": bundle.bench.phi_scale,
            **bundle.repair.tensors(),
            **stage.judged.staleness.tensors("staleness"),
            **stage.judged.worth.tensors("worth"),
            "fusion.alpha": np.array(stage.judged.alphas, np.float32),
            "fusion.trends": np.array(stage.judged.trends, np.float32),
        },
        bundle.networks.projector.tensors() | bundle.networks.sequence.tensors(),
        _seed_of_live(histories, stage.live),
        lambda folder, bundle_id: None if controls is None else save_controls(folder, bundle_id, controls),
    )
    checkpoints.remove()
    return manifest


@dataclass(frozen=True)
class _Stage:
    """What came out of a stage.

    Attributes
    ----------
    repair
        The calibrator that was chosen, following the stage's networks.
    """

    networks: Networks
    answers: Answers
    bench: Bench
    repair: calibration.Calibrator
    live: LiveOptions
    blend: Blend
    judged: Judged
    metrics: dict[str, float]


def _first_stage(run: Run, background: Background, valid: Period) -> _Stage:
    """Everything on the training period; choices and measures on the validation period."""
    options, histories, snapshots = run.options, run.histories, background.snapshots
    small = train_srm(run)
    background.finish_srms()
    item_text = background.item_text.result()
    big = train_network(
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

    at = np.flatnonzero(snapshots.judged)
    every = evaluate.Moments.without_states(
        histories, snapshots.users[at], snapshots.positions[at], exclude_seen=run.exclude_seen
    )
    run.on_progress(Progress("choosing the blend", 0, 1))
    blend = blending.best_blend(answers.take(at), every, space)
    run.on_progress(Progress("choosing the blend", 1, 1, f"live {blend.live:.2f}, text {blend.text:.2f}"))
    embeddings = fitted(answers, space, blend, lambda done, total: run.on_progress(Progress("fitting", done, total)))

    pairs = pairs_of(snapshots, options.calibrator.largest_gap, judged=False)
    bench = _bench(run, networks, snapshots, embeddings, pairs)
    repairs = _calibrators(run, bench, pairs)
    told = Told(
        histories,
        valid.start_ms,
        valid.end_ms,
        ring=formula.ring,
        on_done=lambda done, total: run.on_progress(Progress("neighbour tables", done, total)),
    )
    judged = judge(run, bench, repairs, answers.take(at), blend, space, told)
    metrics = judged.metrics
    metrics |= {f"live.{index}": value for index, value in enumerate(live_values)}
    metrics |= {"snapshots": float(len(snapshots)), "encoded": float(snapshots.encoded.sum())}
    return _Stage(networks, answers, bench, judged.repair, formula, blend, judged, metrics)


def _bench(run: Run, networks: Networks, snapshots: Snapshots, embeddings: Floats, pairs: Pairs) -> Bench:
    """The bench of a stage; φ is standardised over `pairs` of the training period, and its snapshots just refreshed.

    Each stage standardises by its own networks, over the same moments: the scores of networks that have gone on spread
    wider, and for what was chosen before φ has to mean what it meant.
    """
    train = np.flatnonzero(~snapshots.valid)
    return make_bench(
        networks,
        run.histories,
        snapshots,
        embeddings,
        exclude_seen=run.exclude_seen,
        decay=run.options.recency_decay,
        pairs=pairs + Pairs(train, train),
    )


def _calibrators(run: Run, bench: Bench, pairs: Pairs) -> list[calibration.Calibrator]:
    """One for each τ: with the same weights at the beginning, and the same batches."""
    options, data, made = run.options, bench.data(pairs), []
    for tau in options.calibrator.taus:
        run.seed_torch("calibrator")
        repair = calibration.Calibrator(options.d, options.srm.dim, options.calibrator.hidden, tau).to(run.device)
        steps, generator = options.calibrator.steps, run.generator("calibrator")
        _distil(run, f"calibrator, τ {tau:g}", repair, bench, data, steps, generator)
        made.append(repair)
    return made


def _second_stage(run: Run, background: Background, first: _Stage) -> _Stage:
    """The same networks after some epochs over both periods; what was chosen stays."""
    options, histories, snapshots = run.options, run.histories, first.bench.snapshots
    networks = copy.deepcopy(first.networks)
    go_on(run, "cloud to the end", networks.sequence, options.sequence)
    background.srms.result()
    srm_to_the_end(run, networks.srm)
    sequence = sequence_embeddings(networks.sequence, histories, snapshots.users, snapshots.positions, options.window)
    answers = replace(first.answers, sequence=sequence)
    embeddings = fitted(
        answers,
        networks.space(),
        first.blend,
        lambda done, total: run.on_progress(Progress("fitting again", done, total)),
    )
    of_train, of_valid = (pairs_of(snapshots, options.calibrator.largest_gap, judged=each) for each in (False, True))
    bench = _bench(run, networks, snapshots, embeddings, of_train)
    repair, data = copy.deepcopy(first.repair), bench.data(of_train + of_valid)
    generator = run.generator("calibrator to the end")
    _distil(run, "calibrator again", repair, bench, data, options.calibrator.final_steps, generator)
    return replace(first, networks=networks, answers=answers, bench=bench, repair=repair)


def _controls(run: Run, background: Background, first: _Stage, last: _Stage) -> Controls:
    """Trained as the bundle is: on the training period, α on the validation period, then on to the end."""
    options, snapshots = run.options, first.bench.snapshots
    background.srms.result()
    second = train_second(run)
    run.seed_torch("distilled head")
    head = calibration.Stranger(options.d, options.srm.dim, 2 * options.d).to(run.device)
    generator = run.generator("distilled head")
    train, at = np.flatnonzero(~snapshots.valid), np.flatnonzero(snapshots.judged)
    data = first.bench.data(Pairs(train, train))
    _distil(run, "distilled head", head, first.bench, data, options.calibrator.steps, generator)
    moments = first.bench.moments(at)
    guessed = calibration.apply(head, first.bench.data(Pairs(at, at)))
    head_alpha = best_alpha(evaluate.ranks_for_alphas(first.bench.catalogue, moments, guessed, GRID))
    with torch.no_grad():
        other = replace(
            first.bench.catalogue, vectors=second.table().cpu().numpy(), bias=second.bias.detach().cpu().numpy()
        )
    states = second.running_states(run.histories, moments.users, moments.positions)
    second_alpha = best_alpha(evaluate.ranks_for_alphas(other, moments, states, GRID))
    if options.retrain:
        second_to_the_end(run, second)
        every = np.arange(len(snapshots))
        data = last.bench.data(Pairs(every, every))
        _distil(run, "head again", head, last.bench, data, options.calibrator.final_steps, generator)
    return Controls(second, second_alpha, head, head_alpha)


def _histories(prepared: Prepared, split: Split, options: TrainOptions) -> Histories:
    """Everything before the test period, or a `TrainingError` that says what is too little."""
    name = prepared.manifest.name
    for what, period in (("training", split.train), ("validation", split.valid), ("test", split.test)):
        if not period.interactions:
            raise TrainingError(
                f"dataset {name}: no event lies in the {what} period", remedy="choose other fractions with --split"
            )
    events = prepared.events.filter(pl.col("event_time_ms") < split.test.start_ms)
    histories = histories_of_events(events, prepared.items["item_id"].to_list(), split.valid.start_ms)
    trainable = int((histories.trained >= 2).sum())
    if trainable < options.least_devices:
        raise TrainingError(
            f"dataset {name}: {trainable} devices have two or more interactions in the training period, "
            f"{options.least_devices} are wanted",
            remedy="use more data, or a larger training fraction with --split",
        )
    return histories


def _projectors(
    run: Run,
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
    run: Run,
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
    run: Run,
    stage: str,
    repair: calibration.Repair,
    bench: Bench,
    data: calibration.CalibrationData,
    steps: int,
    generator: np.random.Generator,
) -> None:
    """In place."""
    calibration.fit(
        repair,
        data,
        bench.catalogue.vectors,
        bench.catalogue.bias,
        run.options.calibrator,
        steps,
        generator,
        lambda step, loss: run.say(stage, step, steps, loss),
    )


def _seed_of_live(histories: Histories, options: LiveOptions) -> dict[str, npt.NDArray[Any]]:
    """What the live index knows when the test period begins."""
    users, items, times = live.stream(histories)
    keys = np.array([event_hash(str(user)) for user in histories.users], np.uint64)
    index = LiveIndex(histories.n_items, options)
    index.observe(keys[users], items, times)
    return index.state()
