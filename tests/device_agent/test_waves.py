"""A wave holds at most one event a device, and the order of a device's events is kept."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from device_agent.waves import cut_waves

KEYS = st.lists(st.binary(max_size=1), max_size=200)


@given(KEYS, st.one_of(st.none(), st.integers(1, 20)))
def test_every_event_is_in_one_wave_and_no_device_twice_in_it(keys, limit):
    waves = cut_waves(keys, limit=limit)
    assert sorted(np.concatenate([*waves, np.zeros(0, int)]).tolist()) == list(range(len(keys)))
    for wave in waves:
        in_it = [keys[position] for position in wave]
        assert len(in_it) == len(set(in_it)) > 0
        assert limit is None or len(in_it) <= limit


@given(KEYS, st.one_of(st.none(), st.integers(1, 20)))
def test_order_of_a_device_is_kept(keys, limit):
    order = np.concatenate([*cut_waves(keys, limit=limit), np.zeros(0, int)]).tolist()
    for key in set(keys):
        mine = [position for position in order if keys[position] == key]
        assert mine == sorted(mine)


@given(KEYS)
def test_there_are_as_few_waves_as_the_busiest_device_has_events(keys):
    assert len(cut_waves(keys)) == max((keys.count(key) for key in keys), default=0)
