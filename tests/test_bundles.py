"""The bundle that other tests use is a valid one."""

from __future__ import annotations

import numpy as np

from tests.bundles import make_bundle


def test_made_bundle_is_valid_and_repeatable(tmp_path):
    first = make_bundle(tmp_path / "a", n_items=30)
    again = make_bundle(tmp_path / "b", n_items=30)
    other = make_bundle(tmp_path / "c", n_items=30, seed=1)
    assert first.id == again.id != other.id
    assert first.device["item_vectors"].shape == (30, 128)
    assert np.isfinite(first.cloud["projector.0.weight"]).all()
