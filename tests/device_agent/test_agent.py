"""What the device step promises, whatever the order, the batches, the cloud's delays and the bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.agent import APPLIED, FATES, FUTURE, NOT_FINITE, OLDER, REPEATED
from device_agent.state import FROM_INTERACTIONS, digest
from device_agent.waves import cut_waves
from streams.errors import SettingsError
from tests.device_agent.core_helpers import (
    PlainDevice,
    embed,
    make_core,
    make_wave,
    runtime,  # noqa: F401 - every promise is kept with either runtime
    small_bundle,
)

N, D, WINDOW = 40, 16, 6
E = np.random.default_rng(9).normal(0, 1, (20, D)).astype(np.float32)


def run_one(core, events, *, records=None, now_ms=0, first_offset=0):
    """Step one device through (item, time) events; the results, the last record."""
    records = core.layout.new(1) if records is None else records
    results = []
    for offset, (item, time_ms) in enumerate(events, first_offset):
        results.append(core.step(records, make_wave([item], time_ms, first_offset=offset, now_ms=now_ms)))
        records = results[-1].records
    return results, records


# -- waves of many are one by one ------------------------------------------------------------------------------------

EVENT = st.tuples(
    st.integers(0, 5),  # device
    st.one_of(st.integers(0, N - 1), st.just(-1)),  # item, or one the bundle does not know
    st.integers(0, 10**9),  # time: any order
    st.booleans(),  # serve
    st.integers(1, 60),  # hash: repeats happen
)
ANSWERS = st.dictionaries(st.integers(0, 50), st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(0, 3)))


def run_all(core, events, answers, one_by_one, split):
    """Run events in stretches between answers; the results by event position, the last records."""
    records = core.layout.new(6)
    found = {}
    start = 0
    for stop in [*sorted(at for at in answers if at < len(events)), len(events)]:
        stretch = range(start, stop)
        keys = [events[at][0] for at in stretch]
        waves = [np.array([i]) for i in range(len(keys))] if one_by_one else cut_waves(keys)
        for wave in waves:
            at = np.array(stretch)[wave]
            device, item, time_ms, serve, event_hash = (
                np.array(each) for each in zip(*(events[i] for i in at), strict=True)
            )
            active = np.stack([device % 2 == 0, device % 2 == 1], axis=1) if split else None
            result = core.step(
                records[device],
                make_wave(item, time_ms, serve=serve, hashes=event_hash, offsets=at, now_ms=5, arms_active=active),
            )
            records[device] = result.records
            for row, position in enumerate(at.tolist()):
                found[position] = [field[row] for field in result]
        if stop < len(events):
            device, arm, late = answers[stop]
            count = records["count"][device : device + 1]
            records[device : device + 1], _ = embed(
                core, records[device : device + 1], E[stop % 20], np.maximum(count - late, 0), arm=arm, now_ms=7
            )
        start = stop
    return found, records


@settings(deadline=None, max_examples=60)
@given(
    st.lists(EVENT, min_size=1, max_size=50),
    ANSWERS,
    st.sampled_from(["catalogue", "candidates"]),
    st.booleans(),
    st.booleans(),
)
def test_waves_of_many_are_one_by_one(events, answers, ranking, exclude_seen, split):
    core = make_core("every-n:n=3", "drift:rate=0.3", ranking=ranking, exclude_seen=exclude_seen)
    alone, after_alone = run_all(core, events, answers, True, split)
    together, after_together = run_all(core, events, answers, False, split)
    assert digest(after_alone) == digest(after_together)
    for name in FROM_INTERACTIONS:
        assert after_alone[name].tobytes() == after_together[name].tobytes(), name
    for name in after_alone["arm"].dtype.names:
        one, many = after_alone["arm"][name], after_together["arm"][name]
        if name in {"phi", "recent_mean", "recent_norm", "scratch"}:
            assert one.tobytes() == many.tobytes(), name
        assert np.allclose(one, many, atol=1e-6), name
    names = core.step(core.layout.new(1), make_wave([0], 0))._fields
    assert alone.keys() == together.keys()
    for position in alone:
        for name, one, many in zip(names, alone[position], together[position], strict=True):
            if name in {"records", "top"}:
                continue
            if name == "rank":
                assert np.abs(one - many).max() <= 1  # near ties may fall either way
                assert ((one == 0) == (many == 0)).all()
            else:
                assert np.allclose(one, many, atol=1e-6), (position, name)


@settings(deadline=None, max_examples=40)
@given(st.lists(EVENT, min_size=1, max_size=30), ANSWERS, st.booleans())
def test_nothing_that_is_given_is_changed(events, answers, split):
    core = make_core("every-n:n=2", "drift:rate=0.3")
    _, records = run_all(core, events, answers, False, split)
    before = records.tobytes()
    wave = make_wave(np.arange(6), 10**6, hashes=[1, 2, 3, 70, 71, 72], offsets=[0, 99, 99, 99, 99, 99])
    given_before = [np.copy(getattr(wave, name)) for name in ("items", "times_ms", "hashes", "offsets", "serve")]
    for each in (records, records.copy()):
        each.flags.writeable = False
        result = core.step(each, wave)
        embed(core, each, E[0], records["count"], arm=1)
        core.history(each[0])
        result.records["count"] = 0
        assert each.tobytes() == before
    for name, was in zip(("items", "times_ms", "hashes", "offsets", "serve"), given_before, strict=True):
        assert np.array_equal(getattr(wave, name), was)


# -- against the plain reference -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(-1, N - 1), st.integers(0, 10**8), st.booleans()), min_size=1, max_size=40),
    st.booleans(),
    st.sampled_from(["catalogue", "candidates"]),
)
def test_ranks_staleness_and_ages_are_those_of_the_plain_reference(events, exclude_seen, ranking):
    core = make_core("never", exclude_seen=exclude_seen, ranking=ranking)
    plain = PlainDevice(small_bundle(exclude_seen=exclude_seen))
    popular = np.argsort(-plain.t["popularity"], kind="stable")[:12].tolist()
    records, listed = core.layout.new(1), set(popular)
    for offset, (item, time_ms, answered) in enumerate(events):
        if answered:
            vector = E[offset % 20]
            listed = set(np.random.default_rng(offset).permutation(N)[:12].tolist())
            records, fate = embed(
                core, records, vector, plain.count, event_time_ms=time_ms // 2, candidates=[np.array(sorted(listed))]
            )
            if fate[0] == APPLIED:
                plain.embed(vector, time_ms // 2)
            listed = set(records["arm"]["candidates"][0, 0].tolist()) if plain.e is not None else set(popular)
        result = core.step(records, make_wave([item], time_ms, first_offset=offset))
        rank, ranked, scores = plain.rank(item, time_ms, None if ranking == "catalogue" else listed)
        assert result.ranked[0, 0] == ranked
        if rank == 0:
            assert result.rank[0, 0] == 0
        else:
            near = np.sum(np.abs(scores - scores[item]) < 1e-4) - 1
            assert abs(result.rank[0, 0] - rank) <= near
        if plain.e is None:
            assert (result.staleness[0, 0], result.reliability[0, 0]) == (1, 0)
            assert (result.gap[0, 0], result.age_ms[0, 0], result.as_of[0, 0]) == (-1, -1, -1)
        else:
            assert result.staleness[0, 0] == pytest.approx(plain.staleness(time_ms), abs=1e-5)
            assert result.gap[0, 0] == plain.count - plain.as_of
            assert result.age_ms[0, 0] == max(time_ms - plain.embedded_ms, 0)
            assert result.as_of[0, 0] == plain.as_of
        plain.learn(item)
        records = result.records
        assert np.allclose(records["srm_hidden"][0], plain.h, atol=1e-5)
        if plain.e is not None:
            assert np.allclose(records["arm"]["phi"][0, 0], plain.phi(time_ms), atol=1e-5)


# -- what a user relies on -------------------------------------------------------------------------------------------


def test_the_item_itself_is_not_known_when_it_is_ranked():
    core = make_core("never", exclude_seen=True)
    for item in range(N):
        result = core.step(core.layout.new(1), make_wave([item], 0))
        assert result.rank[0, 0] > 0  # it would be 0 if it had been seen first
        assert result.ranked[0, 0] == N


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, N - 1), min_size=1, max_size=60), st.sampled_from(["catalogue", "candidates"]))
def test_seen_items_are_never_served_again(items, ranking):
    core = make_core("always", ranking=ranking)
    records, seen = core.layout.new(1), set()
    for offset, item in enumerate(items):
        result = core.step(records, make_wave([item], offset, first_offset=offset))
        top = [each for each in result.top[0, 0].tolist() if each >= 0]
        assert not seen & set(top)
        assert len(set(top)) == len(top)
        assert (result.rank[0, 0] == 0) or item not in seen
        seen.add(item)
        records, _ = embed(core, result.records, E[offset % 20], offset + 1)


def test_repeats_can_be_served_where_the_dataset_has_them():
    core = make_core("never", exclude_seen=False)
    results, _ = run_one(core, [(3, 0), (3, 1)])
    assert results[1].rank[0, 0] > 0
    assert results[1].ranked[0, 0] == N


def test_offset_already_applied_changes_nothing():
    core = make_core("always")
    _, records = run_one(core, [(1, 5), (2, 6)])
    again = core.step(records, make_wave([7], 9, offsets=[1], hashes=[77]))
    assert again.already_applied[0]
    assert not again.duplicate[0]
    assert not again.served[0]
    assert not again.request.any()
    assert again.records.tobytes() == records.tobytes()


def test_repeated_event_changes_only_the_offset():
    core = make_core("always")
    _, records = run_one(core, [(1, 5), (2, 6)])
    again = core.step(records, make_wave([1], 5, offsets=[9], hashes=[1]))
    assert again.duplicate[0]
    assert not again.served[0]
    assert not again.request.any()
    assert again.top.tolist() == [[[-1] * 5]]
    assert again.records["applied"][0] == 9
    assert digest(again.records) == digest(records)


def test_repeated_event_is_known_for_32_events():
    core = make_core("never")
    _, records = run_one(core, [(each % N, each) for each in range(33)])
    assert core.step(records, make_wave([1], 5, offsets=[99], hashes=[2])).duplicate[0]
    assert not core.step(records, make_wave([1], 5, offsets=[99], hashes=[1])).duplicate[0]


def test_event_whose_hash_is_zero_is_no_repeat_on_a_new_device():
    core = make_core("never")
    result = core.step(core.layout.new(1), make_wave([1], 5, hashes=[0]))
    assert not result.duplicate[0]
    assert core.step(result.records, make_wave([1], 5, hashes=[0], offsets=[1])).duplicate[0]


def test_dropped_rows_leave_the_others_as_they_would_be_alone():
    core = make_core("every-n:n=2", "drift:threshold=0.1")
    start = core.step(core.layout.new(3), make_wave([1, 2, 3], 0)).records
    start, _ = embed(core, start, E[0], 1, arm=1)
    mixed = core.step(start, make_wave([4, 5, 6], 50, hashes=[1, 80, 81], offsets=[10, 1, 12]))
    assert mixed.duplicate.tolist() == [True, False, False]
    assert mixed.already_applied.tolist() == [False, True, False]
    assert mixed.served.tolist() == [False, False, True]
    alone = core.step(start[2:], make_wave([6], 50, hashes=[81], offsets=[12]))
    assert digest(mixed.records[2:]) == digest(alone.records)
    for name in ("rank", "ranked", "top", "gap", "age_ms", "as_of", "request", "reason"):
        assert np.array_equal(getattr(mixed, name)[2:], getattr(alone, name)), name
    assert mixed.records[1].tobytes() == start[1].tobytes()


def test_event_older_than_the_last_is_flagged_and_learned_without_turning_time_back():
    core = make_core("ttl:seconds=1")
    results, records = run_one(core, [(1, 10_000), (2, 4_000), (3, 10_000)])
    assert [bool(each.out_of_order[0]) for each in results] == [False, True, False]
    assert records["last_time_ms"][0] == 10_000
    assert records["count"][0] == 3
    records, _ = embed(core, records, E[0], 3, event_time_ms=10_000)
    late = core.step(records, make_wave([4], 2_000, first_offset=3))
    assert late.age_ms[0, 0] == 0  # never negative
    assert np.isfinite(late.records["arm"]["phi"]).all()


def test_item_that_the_bundle_does_not_know_is_counted_and_served_but_not_learned():
    core = make_core("every-n:n=2")
    _, before = run_one(core, [(1, 5)])
    result = core.step(before, make_wave([-1], 6, first_offset=1))
    assert result.unknown[0]
    assert result.served[0]
    assert result.rank[0, 0] == 0
    assert result.ranked[0, 0] == N - 1
    assert result.top[0, 0].min() >= 0
    after = result.records
    assert (after["count"][0], after["served"][0], after["history_len"][0]) == (2, 2, 1)
    for name in ("srm_hidden", "seen", "history_items", "last_item"):
        assert after[name].tobytes() == before[name].tobytes()


def test_backfill_only_learns():
    core = make_core("always")
    served, _ = run_one(core, [(1, 5)])
    result = core.step(core.layout.new(1), make_wave([1], 5, serve=False))
    assert not result.served[0]
    assert not result.request.any()
    assert result.records["served"][0] == 0
    assert result.records["count"][0] == 1
    for name in ("srm_hidden", "history_items", "seen"):
        assert result.records[name].tobytes() == served[0].records[name].tobytes()
    after = core.step(result.records, make_wave([2], 6, first_offset=1))
    assert after.served[0]
    assert after.request[0, 0]


def test_arms_that_a_device_does_not_run_stay_silent():
    core = make_core("always", "always", "drift:rate=0.5")
    active = np.array([[True, False, False], [False, True, False], [False, False, True]])
    result = core.step(core.layout.new(3), make_wave([1, 2, 3], 5, arms_active=active))
    assert result.served.all()
    assert np.array_equal(result.request, active)
    assert np.array_equal(result.rank > 0, active)
    assert np.array_equal((result.top >= 0).all(axis=2), active)
    assert np.array_equal(result.records["arm"]["requests"] == 1, active)


def test_history_is_the_last_window_oldest_first():
    core = make_core("never")
    assert [len(each) for each in core.history(core.layout.new(1)[0])] == [0, 0]
    _, records = run_one(core, [(each, each * 10) for each in range(4)])
    items, times = core.history(records[0])
    assert items.tolist() == [0, 1, 2, 3]
    assert times.tolist() == [0, 10, 20, 30]
    _, records = run_one(core, [(each, each * 10) for each in range(4, 9)], records=records, first_offset=4)
    items, times = core.history(records[0])
    assert items.tolist() == [3, 4, 5, 6, 7, 8]
    assert times.tolist() == [30, 40, 50, 60, 70, 80]


# -- requests and embeddings -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["always", "every-n:n=2", "drift:threshold=0.0", "drift:rate=0.5", "random:p=0.7"]),
    st.lists(st.one_of(st.integers(0, N - 1), st.tuples(st.integers(0, 900), st.booleans())), max_size=60),
)
def test_never_two_requests_under_way(arm, happenings):
    """Integers are events; (wait, answer) pairs let wall time go by and may bring the answer."""
    core, records, now_ms, pending, offset = make_core(arm), make_core(arm).layout.new(1), 0, None, 0
    for each in happenings:
        if isinstance(each, tuple):
            now_ms += each[0]
            if each[1] and pending is not None:
                records, _ = embed(core, records, E[offset % 20], pending[0], now_ms=now_ms)
                pending = None
            continue
        result = core.step(records, make_wave([each], offset, first_offset=offset, now_ms=now_ms))
        records, offset = result.records, offset + 1
        if result.request[0, 0]:
            assert pending is None or now_ms > pending[1]
            pending = (int(records["count"][0]), now_ms + core.deadline_ms)
        assert core.reasons[result.reason[0, 0]] == "" or result.request[0, 0]
        assert (result.urgency[0, 0] == 0) or result.request[0, 0]
        assert records["arm"]["requests"][0, 0] >= result.request[0, 0]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 7), st.integers(1, 40), st.data())
def test_every_n_asks_after_exactly_n_if_the_cloud_answers_in_between(n, events, data):
    core, asked = make_core(f"every-n:n={n}"), []
    records, waiting = core.layout.new(1), None
    for offset in range(events):
        result = core.step(records, make_wave([offset % N], offset, first_offset=offset))
        records = result.records
        if result.request[0, 0]:
            asked.append(offset + 1)
            waiting = (offset + 1, offset + 1 + data.draw(st.integers(0, n - 1)))
            assert core.reasons[result.reason[0, 0]] == ("initial" if len(asked) == 1 else "every-n")
        if waiting and offset + 1 >= waiting[1]:
            records, fate = embed(core, records, E[0], waiting[0])
            assert fate[0] == APPLIED
            waiting = None
    assert asked == list(range(1, events + 1, n))


def test_request_given_up_after_the_deadline_is_made_again():
    core = make_core("always")
    first = core.step(core.layout.new(1), make_wave([1], 0, now_ms=0))
    at_deadline = core.step(first.records, make_wave([2], 1, first_offset=1, now_ms=1000))
    past_it = core.step(at_deadline.records, make_wave([3], 2, first_offset=2, now_ms=1001))
    assert [bool(each.request[0, 0]) for each in (first, at_deadline, past_it)] == [True, False, True]
    assert core.reasons[past_it.reason[0, 0]] == "initial"


def test_answer_to_an_older_request_does_not_end_the_wait():
    core = make_core("always")
    first = core.step(core.layout.new(1), make_wave([1], 0, now_ms=0))
    second = core.step(first.records, make_wave([2], 1, first_offset=1, now_ms=5000))
    assert second.request[0, 0]
    late, fate = embed(core, second.records, E[0], 1, now_ms=5001)
    assert fate[0] == APPLIED  # better than nothing
    assert not core.step(late, make_wave([3], 2, first_offset=2, now_ms=5002)).request[0, 0]
    answered, _ = embed(core, late, E[1], 2, now_ms=5003)
    assert core.step(answered, make_wave([3], 2, first_offset=2, now_ms=5004)).request[0, 0]


def test_embedding_is_used_from_the_next_event_on_and_says_how_long_it_took():
    core = make_core("never")
    _, records = run_one(core, [(1, 10), (2, 20)])
    records, fate = embed(core, records, E[0], 1, event_time_ms=10, requested_at_ms=400, now_ms=450)
    assert FATES[fate[0]] == "applied"
    result = core.step(records, make_wave([3], 50, first_offset=2))
    served = (result.gap, result.age_ms, result.as_of, result.freshness_ms)
    assert [each[0, 0] for each in served] == [1, 40, 1, 50]
    assert result.records["count"][0] - result.records["arm"]["as_of"][0, 0] == 2


def test_embedding_older_than_cached_is_ignored():
    core = make_core("never")
    _, records = run_one(core, [(1, 0), (2, 1), (3, 2)])
    records, _ = embed(core, records, E[0], 2)
    for as_of, want in ((1, OLDER), (2, REPEATED), (4, FUTURE), (-1, OLDER)):
        after, fate = embed(core, records, E[1], as_of)
        assert fate[0] == want
        assert after.tobytes() == records.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_embedding_that_is_no_number_is_ignored_and_the_device_waits_for_its_deadline(bad):
    core = make_core("always")
    _, records = run_one(core, [(1, 0)])
    vector = E[0].copy()
    vector[3] = bad
    after, fate = embed(core, records, vector, 1)
    assert fate[0] == NOT_FINITE
    assert after.tobytes() == records.tobytes()
    assert not core.step(after, make_wave([2], 1, first_offset=1, now_ms=10)).request[0, 0]


def test_embedding_for_one_arm_leaves_the_others_alone():
    core = make_core("never", "never")
    _, records = run_one(core, [(1, 0)])
    after, _ = embed(core, records, E[0], 1, arm=1)
    assert after["arm"][0, 0].tobytes() == records["arm"][0, 0].tobytes()
    result = core.step(after, make_wave([2], 1, first_offset=1))
    assert result.as_of.tolist() == [[-1, 1]]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 15), st.integers(0, 15), st.integers(0, 3))
def test_late_embedding_has_the_signals_of_one_that_came_in_time(events, late, unknown):
    """As long as the window covers the gap; items that the bundle does not know count only in the gap."""
    late = min(late, events, WINDOW)
    core = make_core("never")
    first = [(each % N, each) for each in range(events - late)]
    rest = [(each % N, each) for each in range(events - late, events)]
    _, before = run_one(core, first)
    in_time, _ = embed(core, before, E[0], events - late)
    _, in_time = run_one(core, rest, records=in_time, first_offset=len(first))
    _, missed = run_one(core, rest, records=before, first_offset=len(first))
    afterwards, _ = embed(core, missed, E[0], events - late)
    for name in ("phi", "recent_mean", "recent_norm", "as_of"):
        assert np.allclose(in_time["arm"][name], afterwards["arm"][name], atol=1e-6), name


def test_gap_longer_than_the_window_is_counted_whole():
    core = make_core("never")
    _, records = run_one(core, [(each, each) for each in range(30)])
    records, fate = embed(core, records, E[0], 2)
    assert fate[0] == APPLIED
    result = core.step(records, make_wave([35], 50, first_offset=30))
    assert result.gap[0, 0] == 28
    assert np.isfinite(result.records["arm"]["phi"]).all()


def test_device_without_a_history_can_be_given_an_embedding():
    core = make_core("always")
    records, fate = embed(core, core.layout.new(1), E[0], 0)
    assert fate[0] == APPLIED
    result = core.step(records, make_wave([-1], 0))
    assert result.as_of[0, 0] == 0
    assert np.isfinite(result.records["arm"]["phi"]).all()


def test_candidates_that_are_no_items_or_stand_twice_are_left_out():
    core = make_core("never", ranking="candidates")
    given_lists = [np.array([5, 5, -3, N, 7, 5, 8]), np.arange(N), np.zeros(0, np.int32)]
    _, records = run_one(core, [(1, 0)])
    records, _ = embed(core, np.repeat(records, 3), E[0], 1, candidates=given_lists)
    kept = records["arm"]["candidates"][:, 0].tolist()
    assert kept[0] == [5, 7, 8] + [-1] * 9
    assert kept[1] == [0, -1, *range(2, 12)]  # item 1 was seen
    assert kept[2] == [-1] * 12
    result = core.step(records, make_wave([7, 7, 7], 1, offsets=[1, 1, 1], hashes=[90, 91, 92]))
    assert result.ranked[:, 0].tolist() == [3, 11, 0]
    assert (result.rank[:, 0] > 0).tolist() == [True, True, False]
    assert result.top[2, 0].tolist() == [-1] * 5


@settings(deadline=None, max_examples=30)
@given(
    st.lists(EVENT, min_size=1, max_size=40),
    st.sampled_from([0.0, 1e-8, 6e-5, 1.0, 60000.0]),
    st.sampled_from(["catalogue", "candidates"]),
)
def test_nothing_is_ever_not_a_number(events, size, ranking):
    core = make_core("always", "drift:rate=0.3", ranking=ranking)
    records = core.layout.new(6)
    for offset, (device, item, time_ms, serve, event_hash) in enumerate(events):
        row = slice(device, device + 1)
        result = core.step(
            records[row], make_wave([item], time_ms, serve=serve, hashes=[event_hash], first_offset=offset)
        )
        records[row], _ = embed(core, result.records, E[0] / 4 * size, result.records["count"], arm=offset % 2)
        for each in (result.staleness, result.reliability, result.urgency):
            assert np.isfinite(each).all()
        assert (result.rank <= result.ranked).all()
        for name in ("phi", "recent_mean", "recent_norm", "scratch", "embedding"):
            assert np.isfinite(records["arm"][name]).all(), name
        assert np.isfinite(records["srm_hidden"]).all()


def test_arm_with_an_unknown_policy_is_refused():
    with pytest.raises(SettingsError, match="no policy"):
        make_core("wishful")


def test_same_devices_in_another_order_get_the_same():
    core = make_core("every-n:n=2", "never")
    order = np.random.default_rng(0).permutation(30)
    records = core.layout.new(30)
    for step in range(4):
        wave = make_wave(np.arange(30) + step, step, offsets=np.arange(30) + 30 * step)
        straight = core.step(records, wave)
        shuffled = core.step(records[order], wave.take(order))
        assert digest(shuffled.records) == [digest(straight.records)[i] for i in order]
        assert np.array_equal(shuffled.request, straight.request[order])
        assert np.abs(shuffled.rank - straight.rank[order]).max() <= 1
        records = straight.records
