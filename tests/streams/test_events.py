import contextlib
import math
from typing import get_type_hints

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.errors import RecordError, UndecodableRecord, UnknownSchema
from streams.events import (
    SCHEMA_VERSION,
    Codec,
    Interaction,
    cloudevent_headers,
    device_key,
    embedding_key,
    event_hash,
    pack_items,
    pack_times,
    pack_vector,
    unpack_items,
    unpack_times,
    unpack_vector,
)

STRUCTS = list(SCHEMA_VERSION)
PLAIN = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
BY_TYPE = {
    str: PLAIN,
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    bytes: st.binary(max_size=40),
    list[str]: st.lists(PLAIN, max_size=5),
}


def records(struct):
    fields = {name: BY_TYPE[kind] for name, kind in get_type_hints(struct).items() if name != "v"}
    return st.builds(struct, v=st.just(SCHEMA_VERSION[struct]), **fields)


ANY_RECORD = st.sampled_from(STRUCTS).flatmap(lambda struct: records(struct).map(lambda record: (struct, record)))


@given(ANY_RECORD)
def test_what_is_written_is_read_back(pair):
    struct, record = pair
    codec = Codec(struct)
    assert codec.decode(codec.encode(record)) == record


@given(ANY_RECORD)
def test_the_version_is_the_first_element_of_an_array(pair):
    struct, record = pair
    fields = msgspec.msgpack.decode(Codec(struct).encode(record))
    assert fields[0] == SCHEMA_VERSION[struct]
    assert len(fields) == len(struct.__struct_fields__)


def test_an_older_record_with_fewer_fields_gets_the_defaults():
    raw = msgspec.msgpack.encode([1, "e", "d", "i", 5])
    assert Codec(Interaction).decode(raw) == Interaction(v=1, event_id="e", device_id="d", item_id="i", event_time_ms=5)


def test_a_reader_of_version_two_accepts_version_one(monkeypatch):
    class Later(Interaction, frozen=True, gc=False):
        colour: str = "none"

    monkeypatch.setitem(SCHEMA_VERSION, Later, 2)
    old = Codec(Interaction).encode(Interaction(1, "e", "d", "i", 5, "view", "s"))
    assert Codec(Later).decode(old).colour == "none"
    assert Codec(Later).decode(old).session_id == "s"
    new = Codec(Later).encode(Later(2, "e", "d", "i", 5, "view", "s", "red"))
    with pytest.raises(UnknownSchema):
        Codec(Interaction).decode(new)


@pytest.mark.parametrize("struct", STRUCTS)
@pytest.mark.parametrize("rest", [[], ["a", "b"], [{"quite": "another"}, 5, None]])
def test_a_newer_version_is_an_unknown_schema_whatever_its_fields_have_become(struct, rest):
    newer = SCHEMA_VERSION[struct] + 1
    with pytest.raises(UnknownSchema, match=f"schema version {newer}, this reader knows up to {newer - 1}") as told:
        Codec(struct).decode(msgspec.msgpack.encode([newer, *rest]))
    assert told.value.reason == "unknown-schema"
    assert told.value.remedy


@pytest.mark.parametrize("version", [0, -1, True, None, "1", 1.5])
def test_a_version_that_cannot_be_is_undecodable(version):
    with pytest.raises(UndecodableRecord):
        Codec(Interaction).decode(msgspec.msgpack.encode([version, "e", "d", "i", 5]))


@pytest.mark.parametrize("struct", STRUCTS)
@pytest.mark.parametrize(
    "raw", [None, b"", b"\xc1", b"not msgpack", b"{}", msgspec.msgpack.encode({"v": 1}), msgspec.msgpack.encode([1])]
)
def test_what_is_no_record_is_undecodable_with_a_sentence(struct, raw):
    with pytest.raises(UndecodableRecord, match=struct.__name__):
        Codec(struct).decode(raw)


@settings(max_examples=500)
@given(st.sampled_from(STRUCTS), st.binary(max_size=60))
def test_random_bytes_never_raise_anything_but_a_record_error(struct, raw):
    with contextlib.suppress(UndecodableRecord, UnknownSchema):
        Codec(struct).decode(raw)


@settings(max_examples=300)
@given(ANY_RECORD, st.data())
def test_a_damaged_record_never_raises_anything_but_a_record_error(pair, data):
    struct, record = pair
    raw = bytearray(Codec(struct).encode(record))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for damaged in (bytes(raw), bytes(raw[:cut]), bytes(raw) + b"\x00"):
        with contextlib.suppress(RecordError):
            Codec(struct).decode(damaged)


def test_deep_nesting_is_undecodable_and_no_crash():
    for raw in (b"\x91" * 100_000 + b"\x01", b"\x92\x02" + b"\x91" * 100_000 + b"\x01"):
        with pytest.raises(RecordError):
            Codec(Interaction).decode(raw)


@given(st.lists(st.floats(-60_000, 60_000), max_size=200))
def test_vectors_keep_half_precision(values):
    vector = np.array(values, dtype=np.float32)
    raw = pack_vector(vector)
    assert len(raw) == 2 * len(values)
    back = unpack_vector(raw)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, vector, rtol=2**-10, atol=2**-24)


@given(st.lists(st.integers(-(2**31), 2**31 - 1)), st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_items_and_times_keep_every_bit(items, times):
    assert unpack_items(pack_items(items)).tolist() == items
    assert unpack_times(pack_times(times)).tolist() == times


def test_the_embedding_key_holds_device_and_arm_and_no_two_share_one():
    assert embedding_key("d", "a") != embedding_key("d", "b") != embedding_key("db", "")
    assert device_key("é") == "é".encode()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_event_hashes_are_64_bit_and_stable(event_id):
    assert 0 <= event_hash(event_id) < 2**64
    assert event_hash(event_id) == event_hash(event_id)


def test_headers_are_cloudevents_with_a_trace_that_follows_from_the_event():
    made = cloudevent_headers(event_id="7", event_type="t", source="/s", time_ms=1_700_000_000_123)
    found = dict(made)
    assert found["ce_specversion"] == b"1.0"
    assert found["ce_time"] == b"2023-11-14T22:13:20.123Z"
    version, trace, parent, flags = found["traceparent"].decode().split("-")
    assert (version, len(trace), len(parent), flags) == ("00", 32, 16, "01")
    assert made == cloudevent_headers(event_id="7", event_type="t", source="/s", time_ms=1_700_000_000_123)
    given_one = cloudevent_headers(event_id="7", event_type="t", source="/s", time_ms=0, traceparent=b"00-x-y-01")
    assert dict(given_one)["traceparent"] == b"00-x-y-01"


def test_nan_and_infinity_travel_and_are_for_the_reader_to_judge():
    assert math.isnan(unpack_vector(pack_vector(np.array([math.nan])))[0])
