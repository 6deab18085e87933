"""The live index on disk: whole, its own, or not at all."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from cloud_worker.live import checkpoint
from cloud_worker.live.index import LiveIndex, LiveOptions
from streams.errors import StoreError

N = 50
OPTIONS = LiveOptions(ring=6, users=100)
POSITIONS = {0: 17, 3: 0}


@pytest.fixture
def index():
    made = LiveIndex(N, OPTIONS)
    rng = np.random.default_rng(0)
    made.observe(rng.integers(0, 20, 300).astype(np.uint64), rng.integers(0, N, 300), np.arange(300) + 1)
    return made


def ask(index):
    return index.scores([np.array([1, 2, 3])], [5], np.array([1000]))


def test_what_was_written_is_read(index, tmp_path):
    path = tmp_path / "live" / "w"
    checkpoint.write(path, index, "bundle", "topic", POSITIONS)
    again, positions = checkpoint.read(path, N, OPTIONS, "bundle", "topic")
    assert positions == POSITIONS
    np.testing.assert_allclose(ask(again), ask(index), rtol=1e-5)
    assert [each.name for each in path.parent.iterdir()] == ["w"]


def test_there_may_be_none(tmp_path):
    assert checkpoint.read(tmp_path / "w", N, OPTIONS, "bundle", "topic") is None


@pytest.mark.parametrize(
    ("options", "bundle", "topic"),
    [
        (LiveOptions(ring=6, users=100, decay=0.5), "bundle", "topic"),
        (OPTIONS, "another", "topic"),
        (OPTIONS, "bundle", "another"),
    ],
)
def test_one_of_another_bundle_topic_or_formula_is_not_used(index, tmp_path, options, bundle, topic):
    checkpoint.write(tmp_path / "w", index, "bundle", "topic", POSITIONS)
    assert checkpoint.read(tmp_path / "w", N, options, bundle, topic) is None


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "text", "folder", "catalogue"])
def test_a_damaged_one_is_a_store_error(index, tmp_path, damage):
    path = tmp_path / "w"
    checkpoint.write(path, index, "bundle", "topic", POSITIONS)
    raw = path.read_bytes()
    n_items = N
    if damage == "cut":
        path.write_bytes(raw[: len(raw) // 2])
    elif damage == "header":
        path.write_bytes(b"\xff" * 8 + raw[8:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("no index")
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        n_items = N - 1
    with pytest.raises(StoreError, match="cannot be read"):
        checkpoint.read(path, n_items, OPTIONS, "bundle", "topic")


def test_a_disk_without_room_leaves_the_one_before(index, tmp_path):
    path = tmp_path / "w"
    checkpoint.write(path, index, "bundle", "topic", POSITIONS)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(StoreError, match="cannot be saved"):
            checkpoint.write(path, index, "bundle", "topic", {0: 99})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["w"]


def test_a_place_where_nothing_can_be_written_is_a_store_error(index, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be saved"):
        checkpoint.write(tmp_path / "file" / "w", index, "bundle", "topic", POSITIONS)
