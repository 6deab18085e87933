"""A table travels in records of trends.v1 and comes out as it went in; what is damaged or strange is refused."""

from __future__ import annotations

from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streams.trends
from streams.errors import RecordError
from streams.events import Codec, Trends, pack_items, pack_vector
from streams.neighbours import DECAY, NeighbourTable
from streams.trends import TableAssembly, records_of_table

BUNDLE = "b" * 16


def table(n: int = 30, kept: int = 4, as_of_ms: int = 100, seed: int = 0) -> NeighbourTable:
    rng = np.random.default_rng(seed)
    items = rng.integers(0, n + 1, (n, kept)).astype(np.int32)
    return NeighbourTable(as_of_ms, items, np.where(items < n, rng.random((n, kept)), 0).astype(np.float16))


def same(one: NeighbourTable, other: NeighbourTable) -> bool:
    equal = np.array_equal(one.items, other.items) and np.array_equal(one.weights, other.weights)
    return equal and one.as_of_ms == other.as_of_ms


@given(n=st.integers(1, 60), kept=st.integers(1, 9), part_bytes=st.integers(1, 400), shuffle=st.randoms())
def test_it_comes_out_as_it_went_in(n: int, kept: int, part_bytes: int, shuffle: Random) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams.trends, "PART_BYTES", part_bytes)
        made, codec = table(n, kept := min(kept, n)), Codec(Trends)
        records = records_of_table(made, BUNDLE, 5)
        assert all(len(each.items) <= max(part_bytes, 4 * kept) for each in records)
        shuffle.shuffle(records)
        assembly = TableAssembly(BUNDLE, n)
        found = [assembly.add(codec.decode(codec.encode(each))) for each in records]
        assert found[:-1] == [None] * (len(records) - 1)
        assert found[-1] is not None
        assert same(found[-1], made)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streams.trends, "PART_BYTES", 240)

    def make(as_of_ms: int) -> list[Trends]:
        return records_of_table(table(as_of_ms=as_of_ms, seed=as_of_ms), BUNDLE, 5)

    return make


def test_parts_of_two_tables_make_none(parts) -> None:
    """What a writer that was killed between two parts leaves, once the topic is compacted."""
    assembly = TableAssembly(BUNDLE, 30)
    old, new, next_one = parts(1), parts(2), parts(3)
    assert len(old) > 2
    assert [assembly.add(each) for each in [*new[:2], *old[2:]]] == [None] * len(old)
    found = [assembly.add(each) for each in next_one]
    assert found[-1] is not None
    assert same(found[-1], table(as_of_ms=3, seed=3))


def test_parts_of_an_older_table_between_those_of_a_newer_one_do_no_harm(parts) -> None:
    """A writer that lost its place is still at it when the next one writes."""
    assembly = TableAssembly(BUNDLE, 30)
    old, new = parts(1), parts(2)
    mixed = [each for both in zip(new, old, strict=True) for each in both]
    found = [table for table in map(assembly.add, mixed) if table is not None]
    assert [table.as_of_ms for table in found] == [2]


def test_a_topic_made_anew_begins_with_older_tables(parts) -> None:
    assembly = TableAssembly(BUNDLE, 30)
    found = [assembly.add(each) for each in [*parts(9), *parts(3)]]
    assert [each.as_of_ms for each in found if each is not None] == [9, 3]


def test_a_table_that_two_workers_sent_is_taken_once(parts) -> None:
    assembly = TableAssembly(BUNDLE, 30)
    twice = [each for each in parts(2) for _ in range(2)]
    assert len([each for each in map(assembly.add, [*twice, *parts(2)]) if each is not None]) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bundle_id": "c" * 16}, "other-bundle"),
        ({"part": 9}, "bad-table"),
        ({"part": -1}, "bad-table"),
        ({"parts": 0}, "bad-table"),
        ({"kept": 0}, "bad-table"),
        ({"kept": 1 << 63, "items": b"", "weights": b""}, "bad-table"),
        ({"parts": 1 << 63}, "bad-table"),
        ({"as_of_ms": -1}, "bad-table"),
        ({"items": b"\x00" * 5}, "bad-table"),
        ({"weights": b""}, "bad-table"),
        ({"items": pack_items([31] * 120)}, "bad-table"),
        ({"items": pack_items([-1] * 120)}, "bad-table"),
        ({"weights": pack_vector(np.full(120, np.nan))}, "bad-table"),
        ({"weights": pack_vector(np.full(120, np.inf))}, "bad-table"),
        ({"weights": pack_vector(np.full(120, -1.0))}, "bad-table"),
        ({"items": pack_items([1] * 80), "weights": pack_vector(np.ones(80))}, "bad-table"),
    ],
)
def test_what_cannot_be_served_with_is_refused(changes, reason) -> None:
    assembly = TableAssembly(BUNDLE, 30)
    (record,) = records_of_table(table(), BUNDLE, 5)
    with pytest.raises(RecordError) as caught:
        assembly.add(msgspec.structs.replace(record, **changes))
    assert caught.value.reason == reason
    assert assembly.add(record) is not None, "the good one after it is taken"


@given(
    n=st.integers(2, 20),
    kept=st.integers(1, 5),
    last=st.lists(st.lists(st.integers(-1, 1), min_size=3, max_size=3), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_sums_are_what_the_formula_says(n, kept, last, seed) -> None:
    made, asked = table(n, kept, seed=seed), np.array(last, np.int32)
    wanted = np.zeros((len(asked), n))
    for row, items in enumerate(asked):
        for k, item in enumerate(items):
            for neighbour, weight in zip(made.items[item], made.weights[item], strict=True):
                if item >= 0 and neighbour < n:
                    wanted[row, neighbour] += DECAY**k * float(weight)
    assert np.allclose(made.sums(asked), wanted, atol=1e-5)
    scaled = made.scaled(asked)
    differ = wanted.std(axis=1) > 1e-2  # what differs less is rounded away
    wanted_differ = wanted[differ]
    centred = wanted_differ - wanted_differ.mean(axis=1, keepdims=True)
    found = scaled[differ] - scaled[differ].mean(axis=1, keepdims=True)
    assert np.allclose(found, centred / wanted_differ.std(axis=1, keepdims=True), atol=1e-3)
    assert (scaled[wanted.std(axis=1) == 0] == 0).all(), "what says nothing has no say"


def test_a_device_without_a_history_is_told_nothing() -> None:
    assert not table().scaled(np.full((3, 10), -1, np.int32)).any()
    assert table().scaled(np.zeros((3, 0), np.int32)).shape == (3, 30)
