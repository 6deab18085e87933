"""What several of these tests look at: the made-up dataset, and a bundle trained on it once."""

from __future__ import annotations

import shutil

import pytest

from streams.bundle import Bundle, load_bundle
from streams.datasets import Prepared, Split
from tests.cloud_worker.evaluation_data import made_up_data, train_made_up


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
