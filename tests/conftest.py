"""Fixtures that every package's tests share: a real Kafka, the shared data, names that do not collide."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from infra.broker import Broker, find_java, get_jars
from streams.errors import EnvironmentProblem

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses a broker, so that ``-m 'not kafka'`` leaves it out."""
    for item in items:
        if {"kafka", "make_broker"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("kafka")


def _cannot(reason: str) -> NoReturn:
    """Skip here, fail in CI: there, a test that does not run is a test that is lost."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def kafka_installed() -> None:
    """Java and Kafka's jars are on this machine, fetched now if need be."""
    try:
        find_java()
        get_jars()
    except EnvironmentProblem as problem:
        _cannot(f"no Kafka here: {problem}")


@pytest.fixture(scope="session")
def kafka(kafka_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One running broker for the whole session; use ``topic_prefix`` and leave it running."""
    with Broker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture
def make_broker(kafka_installed: None, tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Make brokers of one's own, not started, to stop and kill; each is ended with the test."""
    made: list[Broker] = []

    def make(name: str = "kafka", **arguments: object) -> Broker:
        broker = Broker(tmp_path / name, **arguments)  # type: ignore[arg-type]
        made.append(broker)
        return broker

    yield make
    for broker in made:
        broker.kill()


@pytest.fixture
def topic_prefix() -> str:
    """A prefix that no other test uses, for topics, groups and transactional ids on the shared broker."""
    return f"t-{secrets.token_hex(4)}."


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets beside the checkout, or the one that DRIFTLINE_DATA names."""
    given = os.environ.get("DRIFTLINE_DATA")
    place = Path(given) if given else ROOT.parent / "shared" / "data"
    if not place.is_dir():
        pytest.skip(f"{place} is not here; set DRIFTLINE_DATA to a folder with the datasets")
    return place


@pytest.fixture(scope="session")
def encoder_exports(exports_home: Path) -> Path:
    """The offline text encoder as an ONNX graph: a worker loads it in a second, sentence-transformers needs ten."""
    from cloud_worker.encoder import make_encoder
    from streams.settings import CloudSettings

    make_encoder(CloudSettings(encoder="onnx"), exports_home)
    return exports_home / "onnx"


@pytest.fixture(scope="session")
def exports_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which ONNX exports are made once for all tests: each costs half a minute on two cores."""
    return tmp_path_factory.mktemp("exports")
