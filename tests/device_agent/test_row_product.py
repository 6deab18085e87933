"""A row's product, and the signals made of it, have the same bits whatever other rows are in the wave."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.row_product import RowProduct
from device_agent.signals import SignalWriter
from device_agent.staleness import StalenessModel
from streams.bundle import PHI
from tests.bundles import make_bundle


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from([1, 8, 64, 100, 128, 256]),
    st.sampled_from([1, 17, 131, 192, 194, 385]),
    st.integers(1, 200),
    st.integers(0, 100),
    st.integers(0, 2**32 - 1),
)
def test_a_row_of_a_product_has_the_same_bits_in_any_wave(k, n, size, start, seed):
    rng = np.random.default_rng(seed)
    weight, bias, x = rng.normal(0, 1, (k, n)), rng.normal(0, 1, n), rng.normal(0, 1, (300, k)).astype(np.float32)
    product = RowProduct(weight, bias)
    whole = product(x)
    assert whole.shape == (300, n)
    assert np.abs(whole - (x @ weight + bias)).max() < 1e-3
    assert product(x[start : start + size]).tobytes() == whole[start : start + size].tobytes()
    one = np.zeros(1, [("before", "i8"), ("x", "f4", (k,)), ("after", "u1", (3,))])  # as it lies in a device record
    one["x"] = x[start]
    assert product(one["x"]).tobytes() == whole[start].tobytes()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", n_items=300)


def test_signals_and_staleness_have_the_same_bits_in_any_wave(bundle):
    """At the real widths, where products are cut into blocks."""
    rng, rows, arms, d, h = np.random.default_rng(0), 150, 3, bundle.manifest.d, bundle.manifest.srm_dim
    writer, head = SignalWriter(bundle), StalenessModel(bundle.device)
    given_rows = {
        "embedding": rng.normal(0, 1, (rows, arms, d)).astype(np.float32),
        "inverse_norm": rng.uniform(0.1, 1, (rows, arms)).astype(np.float32),
        "mean": rng.normal(0, 0.1, (rows, arms, d)).astype(np.float32),
        "norm": rng.integers(0, 3, (rows, arms)).astype(np.float32),
        "gap": rng.integers(0, 50, (rows, arms)),
        "last_item": rng.integers(-1, 300, rows).astype(np.int32),
        "hidden": rng.uniform(-1, 1, (rows, h)).astype(np.float32),
        "count": rng.integers(1, 500, rows),
    }

    def made(at):
        part = {name: each[at] for name, each in given_rows.items()}
        phi = np.zeros((len(part["count"]), arms, len(PHI)), np.float32)
        for arm in range(arms):
            writer.write_embedded(phi[:, arm], part["embedding"][:, arm])
        writer.write(phi, **part)
        return phi, head(phi, part["gap"])

    whole = made(slice(None))
    assert np.isfinite(whole[0]).all()
    for start, size in ((0, 1), (3, 2), (7, 31), (49, 1), (20, 130), (149, 1)):
        at = slice(start, start + size)
        for part, every in zip(made(at), whole, strict=True):
            assert part.tobytes() == every[at].tobytes()
