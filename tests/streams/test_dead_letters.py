from hypothesis import given
from hypothesis import strategies as st

from streams.dead_letters import MAX_ERROR_CHARS, dead_letter
from streams.errors import RecordError, UndecodableRecord, UnknownSchema
from streams.topics import Topics

OPTIONAL = st.none() | st.binary(max_size=50)
HEADERS = st.lists(
    st.tuples(st.text(max_size=8).filter(lambda name: not name.startswith("dlq.")), st.binary(max_size=8)), max_size=4
)


@given(OPTIONAL, OPTIONAL, HEADERS, st.integers(0, 500), st.integers(0, 2**63 - 1))
def test_the_record_stays_whole_and_its_origin_and_reason_are_added(key, value, headers, partition, offset):
    letter = dead_letter("interactions.v1", partition, offset, key, value, headers, UndecodableRecord("not msgpack"))
    assert letter.topic == Topics.dead_letters("interactions.v1") == "interactions.v1.dlq"
    assert letter.partition == partition
    assert letter.key == key
    assert letter.value == value or (key is None and value is None and letter.value == b"")
    assert letter.headers[: len(headers)] == headers
    assert dict(letter.headers[len(headers) :]) == {
        "dlq.topic": b"interactions.v1",
        "dlq.partition": str(partition).encode(),
        "dlq.offset": str(offset).encode(),
        "dlq.reason": b"undecodable",
        "dlq.error": b"not msgpack",
    }


def test_the_reason_is_the_errors_own_word():
    def reason(error):
        return dict(dead_letter("t", 0, 0, b"k", b"v", None, error).headers)["dlq.reason"]

    assert reason(UnknownSchema("v9")) == b"unknown-schema"
    assert reason(RecordError("x", reason="unknown-item")) == b"unknown-item"


def test_a_second_journey_replaces_the_headers_of_the_first():
    once = dead_letter("t", 1, 2, b"k", b"v", [("mine", b"x")], UndecodableRecord("first"))
    twice = dead_letter("t", 5, 6, once.key, once.value, once.headers, UndecodableRecord("second"))
    assert [name for name, _ in twice.headers].count("dlq.error") == 1
    assert dict(twice.headers)["dlq.error"] == b"second"
    assert dict(twice.headers)["mine"] == b"x"


def test_headers_that_clients_cannot_send_are_made_sendable():
    error = UndecodableRecord("é" * 5000 + "\udcff")
    letter = dead_letter("t", 0, 0, b"k", b"v", [("nothing", None)], error)  # Kafka allows a null header value
    assert all(isinstance(name, str) and isinstance(content, bytes) for name, content in letter.headers)
    assert len(dict(letter.headers)["dlq.error"].decode()) <= MAX_ERROR_CHARS
    assert dead_letter("t", 0, 0, b"k", b"v", [], UndecodableRecord("\udcff")).headers[-1] == ("dlq.error", b"?")


def test_a_value_too_large_for_a_message_is_cut_and_says_how_long_it_was() -> None:
    from streams.dead_letters import MAX_VALUE_BYTES, TRUNCATED, dead_letter
    from streams.errors import UndecodableRecord

    letter = dead_letter("t", 0, 7, b"k", b"x" * (MAX_VALUE_BYTES + 1), [], UndecodableRecord("no"))
    assert letter.value == b"x" * MAX_VALUE_BYTES
    assert dict(letter.headers)[TRUNCATED] == str(MAX_VALUE_BYTES + 1).encode()
