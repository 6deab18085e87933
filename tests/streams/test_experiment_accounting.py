import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.experiment import accounting
from streams.experiment.accounting import Accounting, applied_exactly_once

IDS = [f"event-{number}" for number in range(100)]


def _all_served(book, arms=("a", "b"), ids=IDS):
    for arm in arms:
        for each in ids:
            book.add(arm, each)


def test_books_balance_when_every_event_has_one_recommendation_of_each_arm():
    book = Accounting(IDS, ["a", "b"])
    _all_served(book)
    assert [(each.arm, each.balanced) for each in book.result()] == [("a", True), ("b", True)]


def test_a_lost_a_repeated_and_an_unexpected_one_are_told_apart_and_by_arm():
    book = Accounting(IDS, ["a", "b"])
    _all_served(book, ids=[each for each in IDS if each != "event-7"])
    book.add("a", "event-7")
    book.add("b", "event-20")
    book.add("b", "event-20")
    book.add("b", "nobody-sent-me")
    a, b = book.result()
    assert a.balanced
    assert (b.lost, b.repeated, b.unexpected) == (1, 2, 1)
    assert (b.lost_rows, b.repeated_rows, b.unexpected_ids) == ([7], [20], ["nobody-sent-me"])


def test_nothing_served_means_everything_lost():
    assert [each.lost for each in Accounting(IDS, ["a", "b"]).result()] == [100, 100]


def test_an_arm_that_nobody_announced_is_unexpected():
    book = Accounting(IDS, ["a"])
    _all_served(book, ("a", "stranger"))
    a, stranger = book.result()
    assert a.balanced
    assert (stranger.arm, stranger.lost, stranger.unexpected) == ("stranger", 0, 100)


def test_an_event_that_was_sent_twice_is_one_event():
    book = Accounting([*IDS, *IDS], ["a"])
    _all_served(book, ("a",))
    assert book.expected == 100
    assert book.result()[0].balanced


def test_without_expectations_everything_is_unexpected():
    book = Accounting([], ["a"])
    book.add("a", "x")
    assert book.result()[0].unexpected == 1


def test_a_split_experiment_expects_each_event_of_its_own_arm_only():
    owner = [number % 2 for number in range(100)]
    book = Accounting(IDS, ["a", "b"], arm_of=owner)
    for number, each in enumerate(IDS):
        book.add("ab"[number % 2], each)
    assert all(each.balanced for each in book.result())
    book.add("b", "event-0")
    a, b = book.result()
    assert a.balanced
    assert b.unexpected == 1


@given(
    st.lists(st.tuples(st.sampled_from("abz"), st.integers(0, 12)), max_size=80),
    st.lists(st.integers(0, 9), unique=True, max_size=10),
    st.integers(0, 80),
    st.integers(1, 7),
)
def test_agrees_with_plain_counting_also_merged_from_two_readers_and_in_any_chunks(served, expected, cut, chunk):
    ids = [f"e{number}" for number in expected]
    books = Accounting(ids, ["a", "b"]), Accounting(ids, ["a", "b"])
    before = accounting._CHUNK
    accounting._CHUNK = chunk
    try:
        for number, (arm, event) in enumerate(served):
            books[number >= cut].add(arm, f"e{event}")
        books[0].merge(books[1])
        found = {each.arm: (each.lost, each.repeated, each.unexpected) for each in books[0].result()}
    finally:
        accounting._CHUNK = before
    for arm in "ab":
        events = [event for name, event in served if name == arm]
        lost = sum(event not in events for event in expected)
        repeated = sum(max(0, events.count(event) - 1) for event in expected)
        assert found[arm] == (lost, repeated, sum(event not in expected for event in events))
    strangers = sum(name == "z" for name, _ in served)
    assert found.get("z", (0, 0, 0)) == (0, 0, strangers)


def test_books_of_different_events_cannot_be_merged():
    with pytest.raises(ValueError, match="cannot be merged"):
        Accounting(["x"], ["a"]).merge(Accounting(["y"], ["a"]))


def test_states_that_counted_twice_or_missed_something_are_named():
    found = applied_exactly_once({"u": 5, "v": 7, "w": 2, "x": 1}, {"u": 5, "v": 5, "w": 3, "y": 4})
    assert (found.double_applied, found.lost_applied) == (2 + 1, 1 + 4)
    assert found.devices == ["v", "w", "x", "y"]
    assert not applied_exactly_once({"u": 5}, {"u": 5}).devices
