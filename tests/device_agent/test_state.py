"""A record comes back as it was written, and one that does not belong here is refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from device_agent.state import FROM_INTERACTIONS, RECORD_VERSION, StateLayout, digest
from streams.errors import BundleError, StoreError
from tests.device_agent.core_helpers import make_core, make_wave, small_bundle

BUNDLE = small_bundle()


def test_packed_records_come_back_the_same_and_can_be_written_to():
    core = make_core("always", "every-n:n=3")
    records = core.step(core.layout.new(7), make_wave(np.arange(7), 5)).records
    back = core.layout.unpack([core.layout.pack(row) for row in records])
    assert back.tobytes() == records.tobytes()
    back["count"] += 1
    assert (back["count"] == 2).all()
    assert core.layout.unpack([]).shape == (0,)


def test_numbers_lie_aligned_so_that_views_need_no_copy():
    dtype = StateLayout(BUNDLE.manifest, 3).dtype
    assert dtype.itemsize % 8 == 0

    def check(dtype, start):
        for name in dtype.names:
            field, offset = dtype.fields[name][:2]
            base = field.base
            if base.names:
                assert base.itemsize % 8 == 0
                check(base, start + offset)
            else:
                assert (start + offset) % base.itemsize == 0, name

    check(dtype, 0)


def test_record_of_another_bundle_is_refused():
    other = StateLayout(small_bundle(seed=1).manifest, 1)
    layout = StateLayout(BUNDLE.manifest, 1)
    with pytest.raises(BundleError, match=layout.bundle_name):
        layout.unpack([layout.pack(layout.new(1)[0]), other.pack(other.new(1)[0])])


def test_record_of_a_bundle_of_another_shape_is_refused_as_that():
    other = StateLayout(small_bundle(n_items=90).manifest, 1)
    with pytest.raises(BundleError):
        StateLayout(BUNDLE.manifest, 1).unpack([other.pack(other.new(1)[0])])


def test_record_of_another_version_is_refused():
    layout = StateLayout(BUNDLE.manifest, 1)
    record = layout.new(1)
    record["version"] += 1
    with pytest.raises(StoreError, match=f"version {RECORD_VERSION + 1}, this worker reads {RECORD_VERSION}"):
        layout.unpack([layout.pack(record[0])])


def test_record_with_other_arms_is_refused():
    other = StateLayout(BUNDLE.manifest, 2)
    with pytest.raises(StoreError, match="2 arms"):
        StateLayout(BUNDLE.manifest, 1).unpack([other.pack(other.new(1)[0])])


@pytest.mark.parametrize("cut", [0, 3, 20, -1])
def test_truncated_record_is_refused_even_when_the_sum_of_sizes_fits(cut):
    layout = StateLayout(BUNDLE.manifest, 1)
    whole = layout.pack(layout.new(1)[0])
    with pytest.raises(StoreError, match="bytes"):
        layout.unpack([whole[:cut], whole + whole[cut:]])


def test_record_with_other_candidates_is_refused():
    layout, other = (StateLayout(BUNDLE.manifest, 1, candidates=c) for c in (10, 20))
    with pytest.raises(StoreError, match="bytes"):
        layout.unpack([other.pack(other.new(1)[0])])


def test_digest_sees_every_field_that_follows_from_interactions_and_no_other():
    layout = StateLayout(BUNDLE.manifest, 1)
    before = digest(layout.new(1))
    for name in layout.dtype.names:
        record = layout.new(1)
        if not record[name].nbytes or name == "arm":
            continue
        record[name] = 7
        assert (digest(record) != before) == (name in FROM_INTERACTIONS), name
    record = layout.new(1)
    record["arm"]["as_of"] = 3
    assert digest(record) == before


def test_devices_with_the_same_interactions_have_the_same_digest():
    first, second, third = digest(StateLayout(BUNDLE.manifest, 1).new(3))
    assert first == second == third


def test_counters_are_the_fields_that_they_stand_for():
    layout = StateLayout(BUNDLE.manifest, 2)
    records = layout.new(3)
    layout.counters(records)[1] = [1, 2, 3, 4]
    for value, name in enumerate(("count", "served", "history_len", "hash_count"), 1):
        assert records[name].tolist() == [0, value, 0]


def test_copies_do_not_share_memory():
    layout = StateLayout(BUNDLE.manifest, 2)
    records = layout.new(5)
    rows = np.array([1, 3])
    copied, taken = layout.copy(records), layout.take(records, rows)
    copied["count"] = 9
    taken["count"] = 8
    assert not records["count"].any()
    layout.put(records, rows, taken)
    assert records["count"].tolist() == [0, 8, 0, 8, 0]
    assert layout.copy(records[::2]).tobytes() == records[::2].tobytes()
