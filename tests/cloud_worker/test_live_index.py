"""The live index: what others did lately says what comes next, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_worker.live.index import LiveIndex, LiveOptions

N = 12
DAY_MS = 86_400_000
AFTERWARDS = 1_000 * DAY_MS


@dataclass(frozen=True)
class Stream:
    """Interactions in the order in which they happened."""

    keys: list[int]
    items: list[int]

    @property
    def arrays(self):
        times = np.arange(len(self.keys), dtype=np.int64) * 3_600_000 + 1
        return np.array(self.keys, np.uint64), np.array(self.items, np.int64), times

    @property
    def now_ms(self) -> int:
        return len(self.keys) * 3_600_000 + 1


events = st.lists(st.tuples(st.integers(1, 6), st.integers(0, N - 1)), max_size=60)
streams = events.map(lambda each: Stream([key for key, _ in each], [item for _, item in each]))
formulas = st.builds(
    LiveOptions,
    last=st.integers(1, 8),
    decay=st.floats(0.1, 1.0),
    idf_power=st.floats(0.0, 2.0),
    similarity_power=st.floats(0.0, 2.0),
    reach=st.floats(0.5, 20.0),
    backward=st.floats(0.0, 1.0),
    half_life_days=st.sampled_from([0.0, 0.5, 30.0]),
    popularity_power=st.floats(0.0, 1.0),
    ring=st.integers(1, 12),
    takers=st.just(64),
    users=st.just(64),
)
histories = st.lists(st.integers(0, N - 1), max_size=6).map(lambda each: np.array(each, np.int64))


def fed(options: LiveOptions, stream: Stream) -> LiveIndex:
    index = LiveIndex(N, options)
    index.observe(*stream.arrays)
    return index


def ask(index: LiveIndex, history, key: int, now_ms: int):
    return index.scores([np.asarray(history)], [key], np.array([now_ms]))[0]


@given(formulas, streams, histories, st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_what_was_saved_answers_as_before_and_goes_on_alike(options, stream, history, key):
    index = fed(options, stream)
    state = index.state()
    again = LiveIndex.from_state(N, options, state)
    assert len(again) == len(index)
    np.testing.assert_allclose(
        ask(again, history, key, stream.now_ms), ask(index, history, key, stream.now_ms), rtol=1e-5, atol=1e-6
    )
    more = (np.array([3, 77], np.uint64), np.array([1, 2]), np.array([stream.now_ms, stream.now_ms + 1]))
    index.observe(*more)
    again.observe(*more)
    np.testing.assert_allclose(
        ask(again, history, key, stream.now_ms), ask(index, history, key, stream.now_ms), rtol=1e-5, atol=1e-6
    )


def test_who_takes_much_is_still_found_by_what_he_took_long_ago_after_a_restart():
    """The item rings reach further back than a ring of his."""
    options = LiveOptions(ring=4, takers=8, users=10)
    index = fed(options, Stream([1] * 6, [0, 1, 2, 3, 4, 5]))
    again = LiveIndex.from_state(N, options, index.state())
    now_ms = 10**12
    assert ask(again, [0, 3], 2, now_ms)[4] == ask(index, [0, 3], 2, now_ms)[4] > 0
    of_old_item_alone = ask(index, [0], 2, now_ms)
    np.testing.assert_array_equal(ask(again, [0], 2, now_ms), of_old_item_alone)


def test_a_user_who_was_forgotten_names_nobody_else():
    """His place is given away; what items remember of him must not lead to who has it now."""
    options = LiveOptions(ring=4, takers=8, users=2)
    index = fed(options, Stream([1, 2], [0, 1]))
    before = ask(index, [0], 9, 10**12)
    assert not np.any(before), "one item: nothing beside it"
    later = (np.array([3, 3], np.uint64), np.array([4, 5]), np.array([10**6, 10**6 + 1]))
    index.observe(*later)  # somebody had to go
    remembered = {key for key in (1, 2) if len(index.taken_before(key, 10**12))}
    assert len(remembered) == 1
    gone_item = 0 if 1 not in remembered else 1
    assert not np.any(ask(index, [gone_item], 9, 10**12)), "item of the forgotten one leads to the newcomer"
    again = LiveIndex.from_state(N, options, index.state())
    assert not np.any(ask(again, [gone_item], 9, 10**12))


@given(formulas, streams, histories, st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_scores_are_finite_and_only_for_what_a_neighbour_took(options, stream, history, key):
    index = fed(options, stream)
    scores = ask(index, history, key, stream.now_ms)
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    asked = set(history[-options.last :].tolist())
    allowed: set[int] = set()
    for other in set(stream.keys) - {key}:
        ring = [item for who, item in zip(stream.keys, stream.items, strict=True) if who == other][-options.ring :]
        if asked & set(ring):
            allowed |= set(ring)
    assert set(np.flatnonzero(scores).tolist()) <= allowed


@given(formulas, streams, histories)
@settings(max_examples=100, deadline=None)
def test_nobody_is_his_own_neighbour(options, stream, history):
    """What one does changes nothing about what the others say to him, but for how rare items are."""
    plain = msgspec.structs.replace(options, idf_power=0.0, popularity_power=0.0)
    mine = Stream([1 if key == 1 else key for key in stream.keys], stream.items)
    with_me = fed(plain, mine)
    others = LiveIndex(N, plain)
    keys, items, times = mine.arrays
    others.observe(keys[keys != 1], items[keys != 1], times[keys != 1])
    np.testing.assert_allclose(
        ask(with_me, history, 1, mine.now_ms), ask(others, history, 1, mine.now_ms), rtol=1e-5, atol=1e-6
    )


def test_alone_in_the_world_there_is_no_answer():
    index = fed(LiveOptions(), Stream([1, 1, 1], [0, 1, 2]))
    assert not ask(index, [0], 1, AFTERWARDS).any()
    assert ask(index, [0], 2, AFTERWARDS).any()


def test_what_followed_counts_more_than_what_came_before_and_near_more_than_far():
    index = fed(LiveOptions(popularity_power=0.0), Stream([1] * 7, [0, 1, 2, 3, 4, 5, 6]))
    scores = ask(index, [3], 2, AFTERWARDS)
    assert np.argsort(-scores)[:3].tolist() == [4, 5, 6]
    assert scores[4] > scores[5] > scores[6] > scores[2] > scores[1] > scores[0] > 0
    assert scores[3] == 0


def test_the_newest_item_of_a_history_speaks_loudest():
    index = fed(LiveOptions(), Stream([1, 1, 2, 2], [0, 10, 1, 11]))
    scores = ask(index, [0, 1], 9, AFTERWARDS)
    assert scores[11] > scores[10] > 0


def test_what_happened_long_ago_counts_less_where_the_formula_says_so():
    for half_life, fades in ((0.0, False), (1.0, True)):
        index = LiveIndex(N, LiveOptions(half_life_days=half_life, count_half_life_days=0.0))
        for key, items, day in ((1, [0, 10], 0), (2, [0, 11], 9)):
            index.observe(np.full(2, key, np.uint64), np.array(items), np.full(2, day * DAY_MS + 1))
        scores = ask(index, [0], 9, 10 * DAY_MS)
        assert bool(scores[11] > 100 * scores[10]) is fades


def test_a_ring_forgets_its_oldest_items():
    index = fed(LiveOptions(ring=3), Stream([1] * 5, [0, 1, 2, 3, 4]))
    assert not ask(index, [0], 2, AFTERWARDS).any()
    assert set(np.flatnonzero(ask(index, [2], 2, AFTERWARDS))) == {3, 4}


def test_ten_times_more_users_than_are_kept_take_no_more_memory_and_the_oldest_go():
    options = LiveOptions(users=2_000, ring=8, takers=16)
    index = LiveIndex(N, options)

    def bytes_held() -> int:
        return sum(each.nbytes for each in vars(index).values() if isinstance(each, np.ndarray))

    full = 0
    for first in range(0, 20_000, 1_000):
        keys = np.repeat(np.arange(first, first + 1_000, dtype=np.uint64), 3)
        index.observe(keys, np.tile([0, 1, 2], 1_000), np.arange(3_000, dtype=np.int64) + 3 * first + 1)
        assert len(index) <= options.users
        if first == 2_000:
            full = bytes_held()
    assert bytes_held() == full
    late = 10**9
    known = np.array([len(index.taken_before(key, late)) == 3 for key in range(20_000)])
    assert known[-1_800:].all()
    assert not known[:18_000].any()
    assert ask(index, [0], 5, late).any()
    assert len(index._slots) == len(index), "what tells users apart is bounded too"


def test_one_who_is_active_again_is_not_forgotten():
    options = LiveOptions(users=64, ring=4, takers=8)
    index = LiveIndex(N, options)
    for step in range(500):
        index.observe(np.array([1, 100 + step], np.uint64), np.array([3, 4]), np.array([step, step]) + 1)
    assert len(index.taken_before(1, 10**9)) == 4
    assert len(index.taken_before(100, 10**9)) == 0


def test_what_a_user_took_is_told_up_to_a_moment():
    index = fed(LiveOptions(ring=4), Stream([1, 2, 1, 1, 1, 1], [0, 9, 1, 2, 3, 4]))
    times = index._times[0]
    assert sorted(index.taken_before(1, int(times.max()) + 1).tolist()) == [1, 2, 3, 4]
    assert sorted(index.taken_before(1, int(times.max())).tolist()) == [1, 2, 3]
    assert index.taken_before(77, 10**9).tolist() == []
    assert index.items_taken == 6


@pytest.mark.parametrize("damage", ["items", "lengths", "counts", "catalogue", "users", "taken", "takers", "nobody"])
def test_a_state_that_fits_nothing_is_refused(damage):
    options = LiveOptions(users=4)
    state = fed(options, Stream([1, 2, 3], [0, 1, 2])).state()
    n_items = N
    if damage == "items":
        state["items"] = state["items"][:-1]
    elif damage == "lengths":
        state["lengths"] = state["lengths"] + 1
    elif damage == "counts":
        state["counts"] = state["counts"][:-1]
    elif damage == "catalogue":
        n_items = 2
    elif damage == "taken":
        state["taken"] = state["taken"][:-1]
    elif damage == "takers":
        state["takers"] = state["takers"][:-1]
    elif damage == "nobody":
        state["takers"] = state["takers"] + 7
    else:
        options = LiveOptions(users=2)
    with pytest.raises(ValueError, match=r"fit together|catalogue|at most|do not fit|is none of"):
        LiveIndex.from_state(n_items, options, state)


@given(streams, st.integers(0, 60), st.lists(st.integers(0, N - 1), min_size=1, max_size=6))
@settings(deadline=None, max_examples=50)
def test_what_happened_after_the_moment_of_a_question_does_not_answer_it(stream, known, history):
    """The index may be ahead of a device: its reader does not wait for the devices."""
    options = LiveOptions(idf_power=0.0, popularity_power=0.0, users=100, ring=80, takers=80)
    keys, items, times = stream.arrays
    known = min(known, len(keys))
    now_ms = int(times[known - 1]) if known else 0
    ahead, in_time = LiveIndex(N, options), LiveIndex(N, options)
    ahead.observe(keys, items, times)
    in_time.observe(keys[:known], items[:known], times[:known])
    np.testing.assert_allclose(ask(ahead, history, 99, now_ms), ask(in_time, history, 99, now_ms), rtol=1e-5, atol=1e-6)


@given(formulas, streams, st.integers(0, 61), st.integers(0, 70))
@settings(deadline=None, max_examples=150)
def test_what_the_rings_hold_from_before_a_moment_is_told_user_by_user(options, stream, known, most):
    """The ring counts what came later too: it pushes out the oldest."""
    keys, items, times = stream.arrays
    before_ms = int(times[known]) if known < len(times) else AFTERWARDS
    wanted = []
    for key in set(stream.keys):
        at = np.flatnonzero(keys == key)[-options.ring :]
        at = at[times[at] < before_ms]
        if len(at):
            wanted.append((int(times[at[-1]]), items[at].tolist()))
    wanted.sort(reverse=True)
    fits = np.cumsum([len(each) for _, each in wanted]) <= most
    wanted = [each for (_, each), kept in zip(wanted, fits, strict=True) if kept]

    index = fed(options, stream)
    for each in (index, LiveIndex.from_state(N, options, index.state())):
        lengths, told = each.sequences(before_ms, most)
        assert [part.tolist() for part in np.split(told, np.cumsum(lengths)[:-1])] == (wanted or [[]])
        assert lengths.tolist() == [len(part) for part in wanted]
    assert index.newest_ms == (times.max() if len(times) else 0)


def test_who_was_forgotten_is_told_of_no_more_and_rows_do_not_matter():
    options = LiveOptions(ring=4, takers=8, users=2)
    index = fed(options, Stream([1, 1, 2, 2], [0, 1, 2, 3]))
    index.observe(np.array([3, 3], np.uint64), np.array([4, 5]), np.full(2, DAY_MS))  # somebody had to go
    lengths, items = index.sequences(AFTERWARDS, 100)
    assert (lengths.tolist(), items.tolist()) == ([2, 2], [4, 5, 2, 3])
    one, other = LiveIndex(N, LiveOptions()), LiveIndex(N, LiveOptions())
    for keys, into in (([8, 9], one), ([9, 8], other)):
        into.observe(np.array(keys, np.uint64), np.array(keys), np.full(2, 5))
    assert one.sequences(10, 100)[1].tolist() == other.sequences(10, 100)[1].tolist()
