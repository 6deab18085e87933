"""What several of these tests look at: small histories, the made-up dataset, and a bundle trained on it once."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from cloud_worker.training.data import Histories, make_histories
from streams.bundle import Bundle, load_bundle
from streams.datasets import Prepared, Split
from tests.cloud_worker.evaluation_data import made_up_data, train_made_up


@pytest.fixture
def histories() -> Histories:
    """12 users who take 400 of 30 items at random, a minute apart; the last 80 in the validation period."""
    rng = np.random.default_rng(0)
    users = rng.integers(12, size=400)
    return make_histories(users, rng.integers(30, size=400), np.arange(400) * 60_000, 30, valid_start_ms=320 * 60_000)


@pytest.fixture(scope="session")
def data() -> tuple[Prepared, Split]:
    """The made-up dataset and its periods."""
    return made_up_data()


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return train_made_up(tmp_path_factory.mktemp("trained") / "b")


@pytest.fixture(scope="module")
def bundle(_trained: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle trained on it, a copy for each file: some write beside it."""
    return load_bundle(shutil.copytree(_trained.path, tmp_path_factory.mktemp("bundle") / "b"))
