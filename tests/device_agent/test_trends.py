"""Which table an event is served with, and what it adds to the scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.agent import DeviceCore
from device_agent.serving import NumpyServing, make_serving
from device_agent.state import digest
from device_agent.step import Wave
from device_agent.trends import AHEAD, HELD, TrendsBoard
from streams.experiment.arms import parse_arm
from streams.neighbours import NeighbourTable
from tests.device_agent.core_helpers import small_bundle

N = 40


def table(as_of_ms: int, seed: int = 0, n: int = N, kept: int = 5) -> NeighbourTable:
    rng = np.random.default_rng(seed)
    items = np.array([rng.permutation(n + 1)[:kept] for _ in range(n)], np.int32)  # N: no neighbour
    weights = rng.uniform(0, 1, (n, kept)).astype(np.float16)
    return NeighbourTable(as_of_ms, items, np.where(items < n, weights, np.float16(0)))


@settings(max_examples=200)
@given(
    offered=st.lists(st.integers(0, 50), max_size=12),
    waves=st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=6), max_size=8),
    order=st.randoms(use_true_random=False),
)
def test_an_event_is_never_served_with_what_may_know_its_future(offered, waves, order):
    board = TrendsBoard()
    turns = [("offer", each) for each in offered] + [("serve", each) for each in waves]
    order.shuffle(turns)
    held: list[int] = []
    for what, value in turns:
        if what == "offer":
            board.offer(table(value))
            held = [*(each for each in held if each != value), value][-HELD:]
            continue
        times = np.array(value, np.int64)
        served = np.full(len(times), -2, np.int64)
        for share, rows in board.shares(times):
            at = slice(None) if rows is None else rows
            assert (served[at] == -2).all(), "each row once"
            served[at] = -1 if share is None else share.as_of_ms
        wanted = [max((each for each in held if each <= time), default=-1) for time in value]
        assert served.tolist() == wanted, "the newest of those held that is not after it"
        assert board.as_of_ms == max(wanted)


def test_tables_do_not_pile_up_whatever_the_events_say():
    board = TrendsBoard()
    board.shares(np.array([10**15]))  # a clock that is far ahead
    for day in range(300):
        board.offer(table(day))
    assert len(board._offered) == HELD


def test_one_event_far_ahead_takes_no_table_from_the_others():
    board = TrendsBoard()
    for day in (10, 20, 30):
        board.offer(table(day))
    assert board.shares(np.array([15]))[0].table.as_of_ms == 10
    board.shares(np.array([10**15]))
    assert board.shares(np.array([15]))[0].table.as_of_ms == 10
    assert board.as_of_ms == 10


def test_a_reader_is_told_to_wait_while_the_devices_are_far_behind():
    board = TrendsBoard()
    for day in range(1, AHEAD + 1):
        assert board.room
        board.offer(table(day * 10))
    assert not board.room
    assert board.shares(np.array([15]))[0].table.as_of_ms == 10
    assert board.room


def z(scores):
    return (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, keepdims=True)


@pytest.mark.parametrize("runtime", ["numpy", "onnx"])
@pytest.mark.parametrize("embedded", [False, True])
def test_it_adds_as_if_both_sides_were_standardised(runtime, embedded):
    """The list is that of z(served) + β z(t), by the definition of t, item by item."""
    pytest.importorskip("onnxruntime")
    bundle, near = small_bundle(exclude_seen=False), table(0, seed=3)
    serving = make_serving(bundle, runtime, list_length=N, trends=True)
    pairs = devices(bundle, rows=9, embedded=embedded)
    fresh, stale = bundle.device["fusion.trends"]
    beta = fresh + (stale - fresh) * serving(pairs, near).staleness
    assert (beta == stale).all() != embedded
    plain = NumpyServing(bundle).scores(pairs)
    tau = np.zeros((9, N))
    for row, last in enumerate(pairs.last):
        for k, item in enumerate(last):
            for neighbour, weight in zip(near.items[item], near.weights[item], strict=True):
                if item >= 0 and neighbour < N:
                    tau[row, neighbour] += 0.8**k * float(weight)
    spread = tau.std(axis=1, keepdims=True)
    assert (spread > 0).any()
    wanted = z(plain) + beta * np.divide(tau - tau.mean(axis=1, keepdims=True), spread, where=spread > 0, out=tau * 0)
    got = serving(pairs, near)
    listed = np.take_along_axis(wanted, got.top.astype(int), axis=1)
    assert (np.diff(listed, axis=1) < 1e-3).all()
    rank = (wanted >= wanted[np.arange(9), pairs.items[:, 0]][:, None]).sum(axis=1)
    assert np.abs(got.rank[:, 0] - rank).max() <= 1
    assert not np.array_equal(got.top, serving(pairs).top), "without a table nothing is added"


@pytest.mark.parametrize("ranking", ["catalogue", "candidates"])
def test_a_table_without_neighbours_changes_nothing(ranking):
    pytest.importorskip("onnxruntime")
    bundle = small_bundle(exclude_seen=True)
    empty = NeighbourTable(0, np.full((N, 4), N, np.int32), np.zeros((N, 4), np.float16))
    pairs = devices(bundle, rows=30, embedded=True, ranking=ranking)
    for runtime in ("numpy", "onnx"):
        serving = make_serving(bundle, runtime, ranking=ranking, candidates=12, trends=True)
        for one, other in zip(serving(pairs, empty), serving(pairs), strict=True):
            assert np.array_equal(one, other)


def devices(bundle, rows, *, embedded, ranking="catalogue"):
    pytest.importorskip("onnx")
    from tests.device_agent.test_device_graph import Devices

    made = Devices(bundle, rows, 1, 1.0 if embedded else 0.0, 0.0, 0.0).pairs(ranking)
    assert (made.last >= 0).any()
    return made


def wave(items, times, offsets, arms_active=None):
    n = len(items)
    return Wave(
        np.array(items, np.int32),
        np.array(times, np.int64),
        np.arange(1, n + 1, dtype=np.uint64) + np.array(offsets, np.uint64) * 100,
        np.array(offsets, np.int64),
        np.ones(n, bool),
        0,
        arms_active,
    )


@pytest.mark.parametrize("arms", [1, 3])
@pytest.mark.parametrize("runtime", ["numpy", "onnx"])
def test_a_wave_over_a_boundary_is_served_with_both_tables(arms, runtime):
    """As event by event; and what a record keeps does not depend on tables."""
    pytest.importorskip("onnxruntime")
    bundle = small_bundle(exclude_seen=True)
    specs = [replace(parse_arm("every-n:n=2"), name=f"a{number}") for number in range(arms)]

    def core(board):
        serving = make_serving(bundle, runtime, trends=True)
        return DeviceCore(bundle, specs, serving=serving, trends=board)

    def board():
        made = TrendsBoard()
        for each in (100, 200):
            made.offer(table(each, seed=each))
        return made

    together, without, alone = core(board()), core(None), [core(board()) for _ in range(4)]
    records = bare = together.layout.new(4)
    singles = [each.layout.new(1) for each in alone]
    rng = np.random.default_rng(0)
    for turn in range(6):
        items, times = rng.integers(0, N, 4), np.array([50, 150, 250, 199])
        result = together.step(records, wave(items, times, [turn] * 4))
        assert result.trends_as_of_ms.tolist() == [-1, 100, 200, 100]
        for row in range(4):
            one = alone[row].step(singles[row], wave(items[[row]], times[[row]], [turn]))
            singles[row] = one.records
            assert np.array_equal(one.top[0], result.top[row])
            assert np.array_equal(one.rank[0], result.rank[row])
            assert one.trends_as_of_ms[0] == result.trends_as_of_ms[row]
        plain = without.step(bare, wave(items, times, [turn] * 4))
        assert (plain.trends_as_of_ms == -1).all()
        records, bare = result.records, plain.records
    assert digest(records) == digest(bare)


def test_a_graph_without_a_place_for_tables_refuses_one():
    pytest.importorskip("onnxruntime")
    bundle = small_bundle(exclude_seen=False)
    with pytest.raises(ValueError, match="neighbour tables"):
        make_serving(bundle, "onnx")(devices(bundle, rows=2, embedded=True), table(0))


@pytest.mark.parametrize("arms", [1, 2])
def test_what_is_not_served_has_no_table(arms):
    bundle = small_bundle()
    board = TrendsBoard()
    board.offer(table(0))
    specs = [replace(parse_arm("never"), name=f"a{number}") for number in range(arms)]
    core = DeviceCore(bundle, specs, serving=NumpyServing(bundle), trends=board)
    backfill = replace(wave([1, 2], [5, 5], [0, 0]), serve=np.array([False, True]))
    result = core.step(core.layout.new(2), backfill)
    assert result.served.tolist() == [False, True]
    assert result.trends_as_of_ms[1] == 0
    nothing = replace(wave([1, 2], [6, 6], [1, 1]), serve=np.zeros(2, bool))
    assert (core.step(result.records, nothing).trends_as_of_ms == -1).all()
