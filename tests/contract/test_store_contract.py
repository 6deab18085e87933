"""One suite for every device store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_agent.lmdb_store import LmdbStore
from device_agent.memory import MemoryStore
from device_agent.store import Position, Store
from streams.boot import boot_id

MiB = 1 << 20
KEYS = st.binary(min_size=1, max_size=40).filter(lambda key: b"\x00" not in key)


@pytest.fixture(params=["lmdb", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """A maker of fresh, empty stores."""
    made: list[Store] = []

    def fresh() -> Store:
        if request.param == "lmdb":
            made.append(LmdbStore(tmp_path / str(len(made)), map_size=64 * MiB, boot=boot_id()))
        else:
            made.append(MemoryStore())
        return made[-1]

    yield fresh
    for store in made:
        store.close()


def test_a_new_store_is_empty_and_at_the_beginning(make: Callable[[], Store]) -> None:
    store = make()
    assert store.position() == Position()
    assert store.changelog_offset() == 0
    assert store.read([b"a", b"b"]) == [None, None]
    assert list(store.items()) == []


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(writes=st.lists(st.dictionaries(KEYS, st.binary(max_size=200), max_size=8), max_size=6))
def test_it_reads_back_the_last_write_of_each_device(
    make: Callable[[], Store], writes: list[dict[bytes, bytes]]
) -> None:
    store, expected = make(), {}
    for number, records in enumerate(writes, start=1):
        store.write(records.items(), Position(interactions=number, embeddings=2 * number, fingerprint="f"), 10 * number)
        expected |= records
        assert store.position() == Position(interactions=number, embeddings=2 * number, fingerprint="f")
        assert store.changelog_offset() == 10 * number
    assert dict(store.items()) == expected
    keys = [*expected, b"absent"]
    assert store.read(keys) == [*expected.values(), None]
    assert [key for key, _ in store.items()] == sorted(expected)


def test_an_empty_write_moves_the_position(make: Callable[[], Store]) -> None:
    store = make()
    store.write([], Position(interactions=7), 9)
    assert (store.position().interactions, store.changelog_offset()) == (7, 9)


def test_cleared_it_is_as_new(make: Callable[[], Store]) -> None:
    store = make()
    store.write([(b"a", b"1")], Position(interactions=7), 9)
    store.clear()
    assert (store.position(), store.changelog_offset(), list(store.items())) == (Position(), 0, [])
    store.write([(b"b", b"2")], Position(interactions=1), 1)
    assert list(store.items()) == [(b"b", b"2")]
