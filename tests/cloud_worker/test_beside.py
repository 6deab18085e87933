"""What lies beside a bundle belongs to it, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cloud_worker.training.beside import read_beside, write_beside
from streams.errors import BundleError

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([0.5])}


def test_what_is_written_is_read_back_and_no_scratch_is_left(tmp_path):
    write_beside(tmp_path / "x.safetensors", "id", TENSORS)
    found = read_beside(tmp_path / "x.safetensors", "id", "", dict)
    assert found is not None
    assert {name: each.tolist() for name, each in found.items()} == {n: e.tolist() for n, e in TENSORS.items()}
    assert [each.name for each in tmp_path.iterdir()] == ["x.safetensors"]


def test_another_bundles_are_refused(tmp_path):
    write_beside(tmp_path / "x", "id", TENSORS)
    with pytest.raises(BundleError, match="belongs to bundle id, not to other"):
        read_beside(tmp_path / "x", "other", "", dict)


@pytest.mark.parametrize("place", [-1, -9, -20])
def test_a_changed_byte_is_noticed(tmp_path, place):
    write_beside(tmp_path / "x", "id", TENSORS)
    raw = bytearray((tmp_path / "x").read_bytes())
    raw[place] ^= 1
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(BundleError, match="cannot be read: it was changed"):
        read_beside(tmp_path / "x", "id", "train again", dict)


def test_a_cut_file_one_without_a_sum_and_numbers_that_are_none_are_refused(tmp_path):
    path = tmp_path / "x"
    write_beside(path, "id", TENSORS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(BundleError, match="cannot be read"):
        read_beside(path, "id", "", dict)
    path.write_bytes(whole)
    save_file(load_file(path), path, {"bundle": "id"})
    with pytest.raises(BundleError, match="it was changed"):
        read_beside(path, "id", "", dict)
    write_beside(path, "id", {"a": np.array([np.nan])})
    with pytest.raises(BundleError, match="not finite"):
        read_beside(path, "id", "", dict)


def test_a_bundle_without_the_file_has_none_and_what_nothing_can_be_built_of_is_an_error(tmp_path):
    assert read_beside(tmp_path / "x", "id", "", dict) is None
    write_beside(tmp_path / "x", "id", TENSORS)
    with pytest.raises(BundleError, match="x cannot be read: 'c'"):
        read_beside(tmp_path / "x", "id", "", lambda tensors: tensors["c"])
