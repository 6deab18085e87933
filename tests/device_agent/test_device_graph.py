"""The ONNX graph computes what the numpy reference computes, for any wave, and its int8 tables nearly so."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.learning import Learning
from device_agent.serving import NumpyServing, Pairs, make_serving, told
from device_agent.signals import SignalWriter, write_age
from device_agent.state import StateLayout
from device_agent.step import Wave
from streams.bundle import PHI, SRM_TENSORS, TAU_RANGE
from streams.errors import BundleError, SettingsError
from streams.neighbours import NEAR, NeighbourTable
from tests.device_agent.core_helpers import small_bundle

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from device_agent.device_graph import SERVED, WHOLE, build_graph, write_graph  # noqa: E402 - after the skip
from device_agent.onnx_serving import open_session  # noqa: E402

N, D, H, C, K = 40, 16, 8, 12, 5
TOLERANCE = 1e-4
RANKINGS = ("candidates", "catalogue")


@cache
def strong_bundle(exclude_seen, candidates_are_few=False, srm="gru4rec"):
    """Weights three times as large as `make_bundle`'s: they use the curved parts. Gathers, or may go dense."""
    bundle = small_bundle(exclude_seen=exclude_seen, n_items=400 if candidates_are_few else N, srm=srm)
    strong = ("calibrator.gate", "calibrator.mlp", "srm.gru", "staleness")
    tensors = {name: each * (3 if name.startswith(strong) else 1) for name, each in bundle.device.items()}
    tensors["phi.scale"] = np.linspace(0.5, 2, len(PHI)).astype(np.float32)
    return replace(bundle, device=tensors)


@cache
def numpy_serving(exclude_seen, ranking, item_vectors, few, srm="gru4rec"):
    bundle = strong_bundle(exclude_seen, few, srm)
    return NumpyServing(bundle, ranking=ranking, list_length=K, item_vectors=item_vectors)


@cache
def onnx_serving(exclude_seen, ranking, item_vectors, few):
    return make_serving(
        strong_bundle(exclude_seen, few),
        "onnx",
        ranking=ranking,
        list_length=K,
        candidates=C,
        item_vectors=item_vectors,
        trends=True,
    )


@cache
def whole_graph(exclude_seen, ranking, item_vectors, few, srm="gru4rec", trends=False):
    model = build_graph(
        strong_bundle(exclude_seen, few, srm),
        ranking=ranking,
        candidates=C,
        list_length=K,
        item_vectors=item_vectors,
        trends=trends,
    )
    onnx.checker.check_model(model, full_check=True)
    return open_session(model.SerializeToString(), fold=item_vectors != "int8")


class Devices:
    """Random records before an interaction, and what is then taken: as many rows as devices times arms."""

    def __init__(self, bundle, rows, seed, share_embedded, share_unknown, share_zero, arms=1) -> None:
        rng = np.random.default_rng(seed)
        manifest = bundle.manifest
        n = manifest.n_items
        self.bundle, self.layout, self.arms = bundle, StateLayout(manifest, arms, candidates=C), arms
        self.writer = SignalWriter(bundle)
        self.records = self.layout.new(rows)
        arm, shape = self.records["arm"], (rows, arms)
        self.has = has = rng.random(shape) < share_embedded
        e = rng.normal(0, 1, (*shape, D)) * (rng.random(shape) >= share_zero)[..., None]
        arm["embedding"] = np.where(has[..., None], e, 0)
        length = np.linalg.norm(arm["embedding"].astype(np.float32), axis=2)
        arm["inverse_norm"] = np.divide(1, length, out=np.zeros(shape), where=length > 0)
        taken = rng.random(shape) < 0.8
        mean = rng.normal(0, 1, (*shape, D))
        mean *= rng.uniform(0.1, 1, (*shape, 1)) / np.linalg.norm(mean, axis=2, keepdims=True)
        arm["recent_mean"] = mean * taken[..., None]
        arm["recent_norm"] = rng.uniform(1, 5, shape) * taken
        arm["phi"] = rng.normal(0, 1, (*shape, len(PHI)))
        for row, which in np.ndindex(shape):
            kept = rng.permutation(n)[: rng.integers(0, C + 1)]
            arm["candidates"][row, which, : len(kept)] = kept
        self.records["srm_hidden"] = rng.uniform(-1, 1, (rows, H)) * (rng.random(rows) >= share_zero)[:, None]
        self.records["last_item"] = rng.integers(-1, n, rows)
        if manifest.exclude_seen:
            seen = rng.random((rows, n)) < rng.choice([0, 0.2, 0.95])
            self.records["seen"] = np.packbits(seen, axis=1, bitorder="little")
        self.items = rng.integers(0, n, rows).astype(np.int32)
        self.items[rng.random(rows) < share_unknown] = -1
        self.gap = np.where(has, rng.integers(0, 40, shape), -1)
        self.records["count"] = rng.integers(40, 5000, rows)
        self.age_ms = rng.integers(0, 10**9, shape)
        for which in range(arms):
            self.writer.write_embedded(arm["phi"][:, which], arm["embedding"][:, which].astype(np.float32))
        write_age(arm["phi"], self.age_ms)
        arm["phi"][~has] = 0
        self.records["history_len"] = rng.integers(0, 3 * manifest.window, rows)
        self.records["history_items"] = rng.integers(0, n, (rows, manifest.window))

    def pairs(self, ranking):
        arm = self.records["arm"]
        return Pairs(
            self.repeated(self.items[:, None]),
            self.repeated(self.records["srm_hidden"]),
            arm["embedding"].reshape(-1, D),
            self.layout.recent(self.records).reshape(self.gap.size, -1),
            self.gap.reshape(-1, 1),
            arm["candidates"].reshape(-1, C) if ranking == "candidates" else self.repeated(self.records["seen"]),
            self.repeated(self.layout.last_items(self.records, NEAR)),
        )

    def repeated(self, of_devices):
        """(R, ...) a device's own fields, for each of its arms."""
        return np.repeat(of_devices, self.arms, axis=0)

    def table(self):
        """Of random neighbours; N is none."""
        n, rng = self.bundle.manifest.n_items, np.random.default_rng(len(self.records))
        items = np.stack([rng.choice(n + 1, 6, replace=False) for _ in range(n)]).astype(np.int32)
        weights = np.where(items < n, rng.uniform(0, 1, items.shape), 0)
        return NeighbourTable(0, items, weights.astype(np.float16))

    def feed(self, session, ranking):
        pairs = self.pairs(ranking)
        every = pairs._asdict() | {
            ranking if ranking == "candidates" else "seen": pairs.choice,
            "last_items": self.repeated(self.records["last_item"][:, None]),
            "age_ms": self.age_ms.reshape(-1, 1),
            "count": self.repeated(self.records["count"][:, None]),
            "history": self.repeated(self.records["history_items"]),
            "history_len": self.repeated(self.records["history_len"][:, None]),
            "told": told(pairs, self.table(), ranking),
        }
        return {each.name: every[each.name] for each in session.get_inputs()}

    def learned(self):
        """The records after the interaction, by the numpy modules that the agent uses."""
        learning, after = Learning(self.bundle, self.layout, self.writer), self.records.copy()
        rows = len(after)
        nothing = np.zeros(rows, np.int64)
        wave = Wave(self.items, nothing, nothing.astype(np.uint64), nothing, np.ones(rows, bool), 0)
        learning.learn(after, wave, wave.hashes, self.items >= 0)
        embedding = after["arm"]["embedding"].astype(np.float32)
        learning.signals(after, embedding, self.gap + 1, all_known=False)
        after["arm"]["phi"][~self.has] = 0
        return after


waves = given(
    rows=st.one_of(st.integers(1, 12), st.integers(1, 300)),
    seed=st.integers(0, 2**32 - 1),
    ranking=st.sampled_from(RANKINGS),
    exclude_seen=st.booleans(),
    few=st.booleans(),
    shares=st.tuples(*[st.sampled_from([0, 0.3, 1])] * 3),
    arms=st.sampled_from([1, 3]),
)


def distance(x, y):
    """The largest difference between finite numbers."""
    finite = np.isfinite(y)
    return np.abs(x[finite] - y[finite]).max(initial=0)


def assert_same_lists(pairs, scores, ours, theirs, slack):
    """Ranks and lists may differ only where scores lie within `slack` of each other."""
    assert np.array_equal(ours.ranked, theirs.ranked)
    for row, (mine, reference) in enumerate(zip(ours.rank[:, 0], theirs.rank[:, 0], strict=True)):
        assert (mine == 0) == (reference == 0)
        if reference:
            listed = np.arange(scores.shape[1])
            if pairs.choice.dtype == np.int32:
                listed = pairs.choice[row]
            target = scores[row][listed == pairs.items[row, 0]][0]
            near = np.count_nonzero(np.abs(scores[row] - target) <= slack)
            assert abs(int(mine) - int(reference)) < max(near, 1)
    scored = np.full((len(scores), scores.shape[1] + 1), -np.inf, np.float32)
    scored[:, :-1] = scores
    for mine, reference, row in zip(ours.top, theirs.top, range(len(scores)), strict=True):
        where = np.full(int(max(mine.max(), reference.max(), 0)) + 2, -1)
        if pairs.choice.dtype == np.int32:
            chosen = pairs.choice[row]
            known = (chosen >= 0) & (chosen < len(where) - 1)
            where[chosen[known]] = np.flatnonzero(known)
        else:
            where[: min(len(where) - 1, scores.shape[1])] = np.arange(min(len(where) - 1, scores.shape[1]))
        assert np.array_equal(mine < 0, reference < 0)
        kept = mine >= 0
        got, want = scored[row][where[mine[kept]]], scored[row][where[reference[kept]]]
        assert np.abs(got - want).max(initial=0) <= slack
        assert len(set(mine[kept].tolist())) == np.count_nonzero(kept)


@settings(deadline=None, max_examples=150)
@pytest.mark.parametrize("srm", SRM_TENSORS)
@waves
def test_the_whole_graph_is_the_numpy_step(srm, rows, seed, ranking, exclude_seen, few, shares, arms):
    devices = Devices(strong_bundle(exclude_seen, few, srm), rows, seed, *shares, arms)
    reference, session = (make(exclude_seen, ranking, "float32", few, srm) for make in (numpy_serving, whole_graph))
    got = dict(zip(WHOLE, session.run(WHOLE, devices.feed(session, ranking)), strict=True))
    pairs = devices.pairs(ranking)
    want, scores = reference(pairs), reference.scores(pairs)
    has = devices.has.reshape(-1)
    assert np.abs(got["staleness"] - want.staleness).max() < TOLERANCE
    assert np.abs(got["calibrated"] - reference.calibrated(pairs))[has].max(initial=0) < TOLERANCE
    assert np.array_equal(np.isinf(got["scores"]), np.isinf(scores))
    assert distance(got["scores"], scores) < TOLERANCE
    assert_same_lists(pairs, scores, type(want)(*(got[name] for name in SERVED)), want, TOLERANCE)
    after = devices.learned()
    assert np.abs(got["hidden_after"] - devices.repeated(after["srm_hidden"])).max() < TOLERANCE
    recent = devices.layout.recent(after).reshape(len(has), -1)
    assert np.abs(got["recent_after"] - recent)[has].max(initial=0) < TOLERANCE


@settings(deadline=None, max_examples=100)
@waves
def test_both_runtimes_serve_the_same(rows, seed, ranking, exclude_seen, few, shares, arms):
    devices = Devices(strong_bundle(exclude_seen, few), rows, seed, *shares, arms)
    pairs = devices.pairs(ranking)
    ours, theirs = (make(exclude_seen, ranking, "float32", few) for make in (onnx_serving, numpy_serving))
    got, want = ours(pairs), theirs(pairs)
    assert [(each.shape, each.dtype) for each in got] == [(each.shape, each.dtype) for each in want]
    assert np.abs(got.staleness - want.staleness).max() < TOLERANCE
    assert_same_lists(pairs, theirs.scores(pairs), got, want, TOLERANCE)


@pytest.mark.parametrize("tau", [*TAU_RANGE, 0.5, 30.0])
def test_stale_embeddings_are_let_go_of_alike(tau):
    """Over all that τ may be, also far beyond the gap at which nothing of the embedding is left."""
    bundle = strong_bundle(exclude_seen=True)
    bundle = replace(bundle, device={**bundle.device, "calibrator.tau": np.array([tau], np.float32)})
    devices = Devices(bundle, 200, seed=0, share_embedded=1, share_unknown=0, share_zero=0)
    devices.gap = np.random.default_rng(1).choice([0, 1, 2, 30, 299, 300, 301, 10_001, 10**6], devices.gap.shape)
    graph = build_graph(bundle, ranking="catalogue", candidates=C, list_length=K, item_vectors="float32", trends=False)
    session = open_session(graph.SerializeToString(), fold=True)
    (got,) = session.run(["calibrated"], devices.feed(session, "catalogue"))
    reference = NumpyServing(bundle, ranking="catalogue", list_length=K, item_vectors="float32")
    assert np.abs(got - reference.calibrated(devices.pairs("catalogue"))).max() < TOLERANCE


@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("item_vectors", ["float32", "int8"])
@waves
def test_a_neighbour_table_is_added_alike(item_vectors, rows, seed, ranking, exclude_seen, few, shares, arms):
    devices = Devices(strong_bundle(exclude_seen, few), rows, seed, *shares, arms)
    pairs, table = devices.pairs(ranking), devices.table()
    ours, theirs = (make(exclude_seen, ranking, item_vectors, few) for make in (onnx_serving, numpy_serving))
    scores = theirs.scores(pairs, table)
    assert_same_lists(pairs, scores, ours(pairs, table), theirs(pairs, table), TOLERANCE)
    session = whole_graph(exclude_seen, ranking, item_vectors, few, trends=True)
    got = session.run(["scores"], devices.feed(session, ranking))[0]
    assert np.array_equal(np.isinf(got), np.isinf(scores))
    assert distance(got, scores) < TOLERANCE


INT8_ERROR = 0.05
"""Of a fused score, whose standard deviation over the catalogue is about 1: half a step of 1/127 of the row's largest
number, added up over 24 columns with random signs, stays below."""


@settings(deadline=None, max_examples=60)
@waves
def test_int8_tables_move_scores_a_little(rows, seed, ranking, exclude_seen, few, shares, arms):
    devices = Devices(strong_bundle(exclude_seen, few), rows, seed, *shares, arms)
    pairs = devices.pairs(ranking)
    exact = numpy_serving(exclude_seen, ranking, "float32", few).scores(pairs)
    rounded = numpy_serving(exclude_seen, ranking, "int8", few).scores(pairs)
    session = whole_graph(exclude_seen, ranking, "int8", few)
    got = dict(zip(WHOLE, session.run(WHOLE, devices.feed(session, ranking)), strict=True))
    finite = np.isfinite(exact)
    assert np.array_equal(np.isfinite(got["scores"]), finite)
    assert distance(got["scores"], rounded) < TOLERANCE
    assert distance(got["scores"], exact) < INT8_ERROR


def test_int8_tables_take_a_quarter_of_the_memory():
    bundle = small_bundle(n_items=400)
    sizes = {
        kind: sum(
            onnx.numpy_helper.to_array(each).nbytes
            for each in build_graph(
                bundle, ranking="candidates", candidates=C, item_vectors=kind, outputs=SERVED
            ).graph.initializer
            if 400 in each.dims
        )
        for kind in ("float32", "int8")
    }
    assert sizes["int8"] < sizes["float32"] * (D + H + 12) / (4 * (D + H + 2)) * 1.01


@pytest.mark.parametrize("ranking", RANKINGS)
def test_a_row_of_the_served_graph_does_not_depend_on_its_wave(ranking):
    """Up to rounding: that is why no record is written from it."""
    devices = Devices(strong_bundle(True), 64, 5, 0.8, 0.1, 0.1)
    pairs, serving = devices.pairs(ranking), onnx_serving(True, ranking, "float32", False)
    whole = serving(pairs)
    for row in range(0, 64, 7):
        one = serving(pairs.take(slice(row, row + 1)))
        assert np.abs(one.staleness - whole.staleness[row]).max() < TOLERANCE
        assert abs(int(one.rank[0, 0]) - int(whole.rank[row, 0])) <= 1
        assert one.ranked[0, 0] == whole.ranked[row, 0]


def test_an_answer_is_not_overwritten_by_the_next_one():
    devices = Devices(strong_bundle(True), 2, 1, 1, 0, 0)
    pairs, serving = devices.pairs("candidates"), onnx_serving(True, "candidates", "float32", False)
    first = serving(pairs.take(slice(0, 1)))
    kept = [each.copy() for each in first]
    serving(pairs.take(slice(1, 2)))
    assert all(np.array_equal(*each) for each in zip(first, kept, strict=True))


def test_a_written_graph_runs_without_the_bundle(tmp_path):
    bundle = strong_bundle(True)
    write_graph(bundle, tmp_path / "device.onnx", ranking="candidates", candidates=C, list_length=K)
    session = open_session((tmp_path / "device.onnx").read_bytes())
    assert [each.name for each in session.get_outputs()] == list(WHOLE)
    assert session.get_modelmeta().custom_metadata_map["bundle_id"] == bundle.id
    devices = Devices(bundle, 3, 0, 1, 0, 0)
    assert np.isfinite(session.run(["calibrated"], devices.feed(session, "candidates"))[0]).all()


@pytest.mark.parametrize("staleness", [0.0, 1.0])
@pytest.mark.parametrize("ranking", RANKINGS)
def test_the_staleness_of_an_embedding_says_how_much_it_weighs(ranking, staleness):
    """Alpha 0 at staleness 0 and 1 at staleness 1, so that either the SRM or the cloud ranks alone."""
    bundle = strong_bundle(False)
    certain = {
        "fusion.alpha": np.array([0, 1], np.float32),
        "staleness.2.weight": np.zeros_like(bundle.device["staleness.2.weight"]),
        "staleness.2.bias": np.array([200 * staleness - 100], np.float32),
    }
    bundle = replace(bundle, device={**bundle.device, **certain})
    devices = Devices(bundle, 20, 0, 1, 0, 0)
    pairs, t = devices.pairs(ranking), bundle.device
    e = NumpyServing(bundle, ranking=ranking).calibrated(pairs)
    cloud, srm = e @ t["item_vectors"].T + t["item_bias"], pairs.hidden @ t["srm.item_out"].T + t["srm.bias_out"]
    assert (pairs.gap == 0).any()
    alone = np.where((pairs.gap > 0) & (staleness > 0), cloud, srm)  # at gap 0 s is 0, whatever the head says
    for runtime in ("numpy", "onnx"):
        served = make_serving(bundle, runtime, ranking=ranking, list_length=1, candidates=C)(pairs)
        for row, scores in enumerate(alone):
            listed = pairs.choice[row][pairs.choice[row] >= 0] if ranking == "candidates" else np.arange(N)
            if len(listed):
                assert scores[listed].max() - scores[served.top[row, 0]] < 1e-4


def test_a_bundle_whose_scores_would_overflow_is_refused():
    bundle = small_bundle()
    weights = {"calibrator.mlp.2.weight": bundle.device["calibrator.mlp.2.weight"] * np.float32(1e30)}
    with pytest.raises(BundleError, match=r"calibrator.*overflow"):
        build_graph(replace(bundle, device={**bundle.device, **weights}), ranking="catalogue")


def test_without_onnx_runtime_auto_is_numpy_and_onnx_an_error(monkeypatch):
    import importlib

    real = importlib.import_module

    def missing(name):
        if name == "device_agent.onnx_serving":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert isinstance(make_serving(small_bundle(), "auto"), NumpyServing)
    with pytest.raises(SettingsError, match="onnxruntime cannot be imported"):
        make_serving(small_bundle(), "onnx")
