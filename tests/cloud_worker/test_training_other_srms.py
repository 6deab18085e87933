"""A bundle with another SRM than the GRU, from its training to what a device and `driftline evaluate` make of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cloud_worker.evaluation.test_period import load_test_period
from cloud_worker.training.bundles import bundle_path
from cloud_worker.training.controls import load_controls
from cloud_worker.training.options import in_a_hurry, with_srm
from cloud_worker.training.srm import KINDS, srm_from_tensors
from cloud_worker.training.train import train_bundle
from device_agent.agent import DeviceCore, Wave
from infra.evaluation.recorded import record
from infra.evaluation.runtime import parity
from streams.bundle import load_bundle
from streams.experiment.arms import parse_arm
from tests.cloud_worker.evaluation_data import OPTIONS, HashEncoder

WINDOW = 10
"""Histories are longer, so windows fill."""
SMALL = dataclasses.replace(OPTIONS, window=WINDOW, srm=dataclasses.replace(OPTIONS.srm, learning_rate=2e-2))
"""DIN does not come to an end in the five epochs of the other tests at their rate."""


@pytest.fixture(scope="module", params=["sasrec", "din"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def bundle(kind, data, tmp_path_factory):
    path = bundle_path(tmp_path_factory.mktemp("home"), "made-up", 0, data[1], srm=kind)
    options = with_srm(SMALL, kind)
    train_bundle(*data, HashEncoder(), path, options)
    return load_bundle(path)


@pytest.fixture(scope="module")
def period(bundle, data):
    return load_test_period(bundle, data[0], HashEncoder(), moments=120, seed=0, gaps=(0, 1, 2, 4))


def test_the_bundle_says_what_it_is_and_its_srm_has_learned(kind, bundle):
    assert bundle.manifest.srm == kind
    assert bundle.path.name.endswith(f"-{kind}"), "it lies beside the one with a GRU"
    assert kind != "sasrec" or bundle.device["srm.positions"].shape == (WINDOW, OPTIONS.srm.dim)
    metrics = bundle.manifest.metrics
    assert metrics["srm.ndcg@10"] > metrics["popularity.ndcg@10"] + 0.15


def test_the_second_seed_is_of_the_same_kind(kind, bundle):
    controls = load_controls(bundle.path, bundle.id)
    assert isinstance(controls.second, KINDS[kind])
    assert not np.allclose(controls.second.tensors()["srm.item_in"], bundle.device["srm.item_in"])


def test_equal_seeds_give_equal_bundles(kind, data, bundle, tmp_path):
    options = with_srm(SMALL, kind)
    assert train_bundle(*data, HashEncoder(), tmp_path / "again", options).bundle_id == bundle.id
    quick = train_bundle(*data, HashEncoder(), tmp_path / "quick", in_a_hurry(options))
    assert (quick.srm, quick.quick) == (kind, True)


def test_a_device_arrives_at_the_state_that_the_test_period_is_judged_with(bundle, period):
    core, histories, snapshots = DeviceCore(bundle, [parse_arm("never")]), period.histories, period.bench.snapshots
    for user in np.unique(snapshots.users)[:5]:
        records, rows = core.layout.new(1), np.flatnonzero(snapshots.users == user)
        wanted = dict(zip(snapshots.positions[rows].tolist(), period.bench.hidden[rows], strict=True))
        for nth, item in enumerate(histories.of(user).tolist()):
            if nth in wanted:
                assert np.abs(records["srm_hidden"][0] - wanted.pop(nth)).max() < 1e-4
            at = np.array([nth])
            one = Wave(np.array([item], np.int32), at, (at + 1).astype(np.uint64), at, np.ones(1, np.bool_), 0)
            records = core.step(records, one).records
        assert not wanted


@pytest.mark.parametrize("gap", [0, 2])
def test_torch_onnx_and_numpy_agree_on_recorded_moments(bundle, period, gap):
    _, pairs = period.pairs(gap)
    found = [each for each in parity(record(period, pairs, 20)) if each.item_vectors == "float32"]
    assert {(each.one, each.other) for each in found if each.quantity == "SRM state after"} == {
        ("numpy", "ONNX"),
        ("numpy", "torch"),
        ("ONNX", "torch"),
    }
    assert max(each.error for each in found) < 1e-4


def test_the_networks_of_the_test_period_are_those_of_the_bundle(kind, bundle, period):
    assert isinstance(period.networks.srm, KINDS[kind])
    assert isinstance(srm_from_tensors(bundle.device), KINDS[kind])
