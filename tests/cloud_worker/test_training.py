"""A whole training run on a tiny made-up dataset with structure: what a bundle promises."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from cloud_worker.training import judging
from cloud_worker.training import train as training
from cloud_worker.training.bundles import bundle_path, find_bundle, fits
from cloud_worker.training.controls import load_controls
from cloud_worker.training.options import (
    CalibratorOptions,
    FitOptions,
    HeadOptions,
    MomentOptions,
    Progress,
    ProjectorOptions,
    TrainOptions,
    in_a_hurry,
)
from cloud_worker.training.snapshots import Pairs, pairs_of
from cloud_worker.training.train import train_bundle
from streams.bundle import load_bundle
from streams.datasets import Prepared, Split, global_time_split
from streams.datasets.base import EVENT_SCHEMA
from streams.errors import BundleError, EncoderError, TrainingError
from tests.cloud_worker.evaluation_data import HashEncoder, prepared_of

N_ITEMS = 40
TINY = TrainOptions(
    d=16,
    hidden=24,
    srm=FitOptions(16, 8, 2, 0.1, 16, learning_rate=1e-2, positions=256),
    sequence=FitOptions(16, 8, 2, 0.1, 16, learning_rate=1e-2, positions=256),
    projector=ProjectorOptions(hidden=32, stand_in_positions=10_000, epochs=3, batch=128, learning_rate=5e-3),
    moments=MomentOptions(train=250, valid=100, encoded_train=120, encoded_valid=60),
    calibrator=CalibratorOptions(hidden=16, steps=30, final_steps=40, taus=(4.0, 1.0)),
    heads=HeadOptions(hidden=4, epochs=5),
)


class BrokenEncoder(HashEncoder):
    def encode(self, texts):
        raise EncoderError("the endpoint does not answer")


def made_up(seed: int = 0, users: int = 60, length: int = 20) -> Prepared:
    """Users walk along a ring of items, two steps at a time or one: the next item follows from the last ones."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        at, start = int(rng.integers(N_ITEMS)), float(rng.uniform(0, 80))
        for step in range(length):
            at = (at + (1 if rng.random() < 0.9 else 7)) % N_ITEMS
            rows.append((f"u{user}", f"i{at}", int((start + step) * 3_600_000), "view", None))
    events = pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row").sort("event_time_ms", maintain_order=True)
    return prepared_of(events, f"hash-{seed}", n_items=N_ITEMS, repeats=True)


@pytest.fixture(scope="module")
def data() -> tuple[Prepared, Split]:
    prepared = made_up()
    return prepared, global_time_split(prepared.events)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def trained(data, home):
    prepared, split = data
    seen: list[Progress] = []
    path = bundle_path(home, "made-up", 0, split)
    manifest = train_bundle(prepared, split, HashEncoder(), path, TINY, seen.append)
    return manifest, path, seen


def test_bundle_loads_and_remembers_what_it_was_made_of(trained, data):
    manifest, path, _ = trained
    bundle = load_bundle(path)
    assert bundle.manifest == manifest
    assert (manifest.dataset, manifest.encoder, manifest.text_dim, manifest.n_items) == ("made-up", "hash-16", 16, 40)
    assert (manifest.train, manifest.valid, manifest.test) == (data[1].train, data[1].valid, data[1].test)
    assert bundle.items.ids == data[0].items["item_id"].to_list()
    assert bundle.device["popularity"].sum() == data[1].train.interactions


def test_models_learn_what_the_data_hold(trained):
    metrics = trained[0].metrics
    assert metrics["srm.ndcg@10"] > metrics["popularity.ndcg@10"] + 0.2
    assert metrics["cloud_fresh.ndcg@10"] > metrics["popularity.ndcg@10"] + 0.1
    assert 0 < metrics["alpha.fresh"] < 1
    assert metrics["cloud_sequence.ndcg@10"] > metrics["popularity.ndcg@10"] + 0.2
    assert {"staleness.auc", "staleness.ece", "seconds"} <= set(metrics)


def test_every_stage_is_told_and_ends(trained):
    last = {each.stage: each for each in trained[2]}
    assert {
        "SRM",
        "item texts",
        "profile texts",
        "live index",
        "cloud network",
        "projector",
        "calibrator, τ 4",
        "calibrator, τ 1",
        "SRM to the end",
        "cloud to the end",
        "second SRM",
        "saving",
    } <= set(last)
    assert TINY.srm.epochs // 2 <= last["SRM"].done <= last["SRM"].total == TINY.srm.epochs
    assert last["saving"].done == last["saving"].total


def test_same_seed_gives_the_same_bundle_and_another_seed_another(trained, data, tmp_path):
    again = train_bundle(*data, HashEncoder(), tmp_path / "a", TINY)
    other = train_bundle(*data, HashEncoder(), tmp_path / "b", dataclasses.replace(TINY, seed=1))
    assert again.bundle_id == trained[0].bundle_id
    assert other.bundle_id != trained[0].bundle_id


def test_nothing_of_the_test_period_reaches_the_bundle(trained, data, tmp_path):
    prepared, split = data
    rng = np.random.default_rng(5)
    later = pl.col("event_time_ms") >= split.test.start_ms
    shuffled = pl.Series([f"i{i}" for i in rng.integers(N_ITEMS, size=len(prepared.events))])
    changed = prepared.events.with_columns(
        item_id=pl.when(later).then(shuffled).otherwise("item_id"),
        device_id=pl.when(later).then(pl.lit("somebody")).otherwise("device_id"),
    )
    assert not changed.equals(prepared.events)
    manifest = train_bundle(dataclasses.replace(prepared, events=changed), split, HashEncoder(), tmp_path / "x", TINY)
    assert manifest.bundle_id == trained[0].bundle_id
    without_time = lambda metrics: {k: v for k, v in metrics.items() if k != "seconds"}  # noqa: E731
    assert without_time(manifest.metrics) == without_time(trained[0].metrics)


def test_going_on_over_the_validation_period_leaves_what_was_chosen_alone(trained, data, tmp_path):
    chosen = load_bundle(trained[1])
    train_bundle(*data, HashEncoder(), tmp_path / "x", dataclasses.replace(TINY, retrain=False))
    stopped = load_bundle(tmp_path / "x")
    changed = {n for n in chosen.device if not np.array_equal(chosen.device[n], stopped.device[n])}
    assert {"srm.item_out", "item_vectors", "calibrator.gate.weight", "phi.mean", "phi.scale"} <= changed
    of_choice = {"calibrator.tau", "fusion.alpha", "fusion.trends", "staleness.0.weight", "worth.0.weight"}
    assert not changed & {*of_choice, "popularity"}
    assert chosen.manifest.blend == stopped.manifest.blend
    assert chosen.manifest.live == stopped.manifest.live


def test_signals_are_standardised_by_the_networks_that_are_served(data, tmp_path, monkeypatch):
    """Networks that have gone on spread their scores wider, which must not look like staleness to the heads."""
    seen = {}
    distil = training._distil

    def watched(run, stage, repair, bench, *rest):
        seen[stage] = bench
        distil(run, stage, repair, bench, *rest)

    monkeypatch.setattr(training, "_distil", watched)
    train_bundle(*data, HashEncoder(), tmp_path / "x", TINY)
    first, last = seen["calibrator, τ 4"], seen["calibrator again"]
    train = np.flatnonzero(~last.snapshots.valid)
    pairs = pairs_of(last.snapshots, 96, judged=False) + Pairs(train, train)
    for bench in (first, last):
        phi = bench.data(pairs).phi
        assert np.abs(phi.mean(axis=0)).max() < 1e-3
        assert phi.std(axis=0).max() < 1.01
    assert np.array_equal(load_bundle(tmp_path / "x").device["phi.mean"], last.phi_mean)
    assert np.abs(first.phi_mean - last.phi_mean).max() > 0.01


@pytest.mark.parametrize(("spoilt", "kept"), [((0, 2), 6.0), ((1, 2), 0.5), ((), 0.5)])
def test_the_calibrator_that_ranks_best_on_the_validation_period_is_kept(spoilt, kept, data, tmp_path, monkeypatch):
    """Where two of three are spoilt, the other; where none does anything, the first."""
    made = training._calibrators

    def some_are_spoilt(*args):
        repairs = made(*args)
        with torch.no_grad():
            for place, each in enumerate(repairs):
                if place in spoilt:
                    each.mlp[2].bias.normal_(0, 100)
                elif not spoilt:
                    each.gate.bias.fill_(1e9)
        return repairs

    options = dataclasses.replace(TINY, calibrator=dataclasses.replace(TINY.calibrator, taus=(0.5, 6.0, 3.0)))
    monkeypatch.setattr(training, "_calibrators", some_are_spoilt)
    monkeypatch.setattr(judging, "STALE_GRID", (0.8,))  # or the SRM, good on these data, serves alone
    manifest = train_bundle(*data, HashEncoder(), tmp_path / "x", options)
    assert manifest.metrics["calibrator.tau"] == kept
    assert load_bundle(tmp_path / "x").device["calibrator.tau"] == [kept]


def test_an_interrupted_training_goes_on_and_ends_with_the_same_bundle(trained, data, tmp_path):
    class Stopped(Exception):
        pass

    def stop_late(progress):
        if progress.stage == "SRM to the end":
            raise Stopped

    with pytest.raises(Stopped):
        train_bundle(*data, HashEncoder(), tmp_path / "x", TINY, stop_late)
    assert not (tmp_path / "x").exists()
    stages: list[str] = []
    manifest = train_bundle(*data, HashEncoder(), tmp_path / "x", TINY, lambda p: stages.append(p.stage))
    assert not {"SRM", "cloud network"} & set(stages)
    assert manifest.bundle_id == trained[0].bundle_id
    assert [each.name for each in tmp_path.iterdir()] == ["x"]


def test_controls_lie_beside_the_bundle(trained, data, tmp_path):
    controls = load_controls(trained[1], trained[0].bundle_id)
    assert controls is not None
    own = load_bundle(trained[1]).device["srm.item_out"]
    assert not np.allclose(controls.second.tensors()["srm.item_out"], own)
    assert 0 < controls.head_alpha < 1
    with pytest.raises(BundleError, match="belongs to bundle"):
        load_controls(trained[1], "0" * 16)
    hurried = train_bundle(*data, HashEncoder(), tmp_path / "x", in_a_hurry(TINY))
    assert load_controls(tmp_path / "x", hurried.bundle_id) is None
    assert hurried.quick


def test_the_live_seed_holds_everybody_up_to_the_test_period(trained, data):
    bundle = load_bundle(trained[1])
    before = data[1].train.interactions + data[1].valid.interactions
    assert bundle.live["lengths"].sum() == before
    assert len(bundle.live["items"]) == before  # nobody's ring is full here


def test_a_bundle_is_found_for_its_data_only(trained, data, home):
    manifest, path, _ = trained
    split = data[1]
    assert find_bundle(home, "made-up", "hash-0") == path
    assert find_bundle(home, "made-up", "hash-0", split) == path
    assert find_bundle(home, "made-up", "another-hash") is None
    assert find_bundle(home, "made", "hash-0") is None
    assert find_bundle(home, "made-up", "hash-0", encoder="hash-16") == path
    assert find_bundle(home, "made-up", "hash-0", encoder="another-encoder") is None
    assert not fits(manifest, "hash-0", split, seed=1)
    assert not fits(manifest, "hash-0", dataclasses.replace(split, test=split.valid))


def test_catalogue_larger_than_the_full_softmax_trains_too(data, tmp_path):
    options = dataclasses.replace(
        TINY,
        srm=dataclasses.replace(TINY.srm, full_softmax_items=10, negatives=10),
        sequence=dataclasses.replace(TINY.sequence, full_softmax_items=10, negatives=10),
        controls=False,
    )
    manifest = train_bundle(*data, HashEncoder(), tmp_path / "x", options)
    assert manifest.metrics["srm.ndcg@10"] > manifest.metrics["popularity.ndcg@10"] + 0.15


def test_an_encoder_that_fails_ends_training_with_its_error(data, tmp_path):
    with pytest.raises(EncoderError, match="does not answer"):
        train_bundle(*data, BrokenEncoder(), tmp_path / "x", TINY)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("each", [1, 2])
def test_a_validation_period_that_nothing_can_be_judged_in_gives_a_bundle_all_the_same(each, tmp_path):
    """Later on everybody is new: with one interaction there is no moment to judge, with two no embedding gets old."""
    prepared = made_up()
    split = global_time_split(prepared.events)
    trained = prepared.events.filter(pl.col("event_time_ms") < split.valid.start_ms)
    periods = ((split.valid, "v"), (split.test, "t"))
    rows = [
        (f"{name}{user}", f"i{(user + step) % N_ITEMS}", period.start_ms + 1_000 * (user + step), "view", None)
        for period, name in periods
        for user in range(30)
        for step in range(each)
    ]
    later = pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")
    events = pl.concat([trained, later]).sort("event_time_ms", maintain_order=True)
    again = prepared_of(events, f"new-{each}", n_items=N_ITEMS, repeats=True)
    manifest = train_bundle(again, split, HashEncoder(), tmp_path / "b", dataclasses.replace(TINY, controls=True))
    assert manifest.metrics["moments"] == 30 * (each - 1)
    assert manifest.metrics["staleness.pairs"] == 0
    bundle = load_bundle(tmp_path / "b")
    assert all(np.isfinite(tensor).all() for tensor in bundle.device.values())


def test_too_few_devices_are_refused_with_a_remedy(tmp_path):
    prepared = made_up(users=4)
    with pytest.raises(TrainingError, match="devices have two or more") as caught:
        train_bundle(prepared, global_time_split(prepared.events), HashEncoder(), tmp_path / "x", TINY)
    assert "--split" in caught.value.remedy


def test_a_period_without_events_is_refused(data, tmp_path):
    prepared, split = data
    empty = dataclasses.replace(
        split, valid=type(split.valid)(split.valid.start_ms, split.valid.start_ms, interactions=0)
    )
    with pytest.raises(TrainingError, match="validation period"):
        train_bundle(prepared, empty, HashEncoder(), tmp_path / "x", TINY)


def test_a_device_torch_does_not_know_is_refused(data, tmp_path):
    with pytest.raises(TrainingError, match="none of auto, cpu, cuda"):
        train_bundle(*data, HashEncoder(), tmp_path / "x", dataclasses.replace(TINY, device="tpu"))
