"""Every request has one fate, and what a device waits for is answered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloud_worker.coalesce import plan
from streams.events import RefreshRequest, pack_items, pack_times

NOW = 1000


def request(device: str = "d", arm: str = "a", as_of: int = 1, deadline_ms: int = NOW, items: tuple[int, ...] = (1,)):
    return RefreshRequest(
        1, f"{device}-{arm}-{as_of}", device, arm, "b", as_of, pack_items(items), pack_times(items), "r", 0.0, 0, 0,
        deadline_ms,
    )  # fmt: skip


requests = st.lists(
    st.builds(
        request,
        st.sampled_from("xyz"),
        st.sampled_from("ab"),
        st.integers(0, 4),
        st.sampled_from([NOW - 1, NOW, NOW + 1]),
        st.sampled_from([(1,), (1, 2), ()]),
    ),
    max_size=25,
)


@given(requests)
def test_every_request_has_exactly_one_fate(batch):
    fates = plan(batch, NOW)
    answered = [index for unit in fates.units for index in unit.requests]
    assert sorted([*answered, *fates.expired, *fates.superseded]) == list(range(len(batch)))


@given(requests)
def test_the_newest_live_request_of_each_device_and_arm_is_answered(batch):
    fates = plan(batch, NOW)
    answered = [batch[index] for unit in fates.units for index in unit.requests]
    newest = {}
    for each in batch:
        if each.deadline_ms >= NOW:
            asker = each.device_id, each.arm
            newest[asker] = max(newest.get(asker, -1), each.as_of)
    assert {(each.device_id, each.arm): each.as_of for each in answered} == newest
    assert len(answered) == len(newest)


@given(requests)
def test_only_what_is_past_its_deadline_expires(batch):
    assert [batch[index].deadline_ms < NOW for index in range(len(batch))] == [
        index in plan(batch, NOW).expired for index in range(len(batch))
    ]


@given(requests)
def test_a_unit_is_one_device_with_one_history(batch):
    units = plan(batch, NOW).units
    histories = [{(batch[i].device_id, batch[i].items, batch[i].times_ms) for i in unit.requests} for unit in units]
    assert all(len(each) == 1 for each in histories)
    assert len(set.union(set(), *histories)) == len(units), "no history of a device is worked on twice"


def test_arms_of_a_device_share_the_work():
    fates = plan([request(arm="a"), request(arm="b"), request(device="e"), request(arm="c", items=(2,))], NOW)
    assert [unit.requests for unit in fates.units] == [(0, 1), (2,), (3,)]


def test_an_expired_request_does_not_supersede_a_live_one():
    fates = plan([request(as_of=3), request(as_of=9, deadline_ms=NOW - 1)], NOW)
    assert [unit.requests for unit in fates.units] == [(0,)]
    assert fates.expired == (1,)
