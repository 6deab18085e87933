"""What the encoder reads about a user."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_worker.profile_text import age_words, item_text, profile_text
from streams.topics import DAY_MS

TITLES = ["Heat", "Toy Story", "Alien", "天空の城ラピュタ", ""]
CATEGORIES = ["crime|drama", "animation", "", "animation", ""]

windows = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3 * 10**12)), max_size=30)


def test_profile_reads_newest_first_under_coarse_ages():
    text = profile_text([2, 1, 0], [0, 3 * DAY_MS, 3 * DAY_MS + 5], TITLES, CATEGORIES, last=10)
    assert text == "Recently, newest first. today: Heat (crime, drama); Toy Story (animation). 3 days before: Alien."


def test_item_text_does_with_what_there_is():
    assert item_text("Heat", "crime|drama") == "Heat (crime, drama)"
    assert item_text("  Heat\n ", "") == "Heat"
    assert item_text("", "crime") == "crime"
    assert item_text("", "") == ""


def test_one_endless_title_leaves_room_for_the_others():
    text = profile_text([0, 1], [0, 0], ["short", "x" * 10_000], ["", ""], last=5)
    assert len(text) < 300
    assert "short" in text


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (0, "today"),
        (1, "1 day before"),
        (6, "6 days before"),
        (7, "1 week before"),
        (29, "4 weeks before"),
        (30, "1 month before"),
        (364, "12 months before"),
        (800, "2 years before"),
    ],
)
def test_ages_are_coarse(days, words):
    assert age_words(days * DAY_MS + 1) == words


def test_time_going_backwards_is_no_age():
    assert age_words(-5) == "today"


@given(windows, st.integers(1, 12), st.integers(-(10**12), 10**12))
def test_equal_histories_give_equal_texts_whenever_they_happened(window, last, shift):
    items = [item for item, _ in window]
    times = [time for _, time in window]
    text = profile_text(items, times, TITLES, CATEGORIES, last=last)
    moved = profile_text(
        np.array(items, dtype=np.int32), np.array(times, dtype=np.int64) + shift, TITLES, CATEGORIES, last=last
    )
    assert text == moved


@given(windows, windows, st.integers(1, 12))
def test_what_lies_before_the_last_titles_does_not_matter(old, window, last):
    window = window[-last:]
    if len(window) < last:
        return
    both = old + window
    assert profile_text([i for i, _ in both], [t for _, t in both], TITLES, CATEGORIES, last=last) == profile_text(
        [i for i, _ in window], [t for _, t in window], TITLES, CATEGORIES, last=last
    )


def test_empty_window_is_an_empty_text():
    assert profile_text([], [], TITLES, CATEGORIES, last=3) == ""


def test_windows_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="2 items has 1 times"):
        profile_text([0, 1], [0], TITLES, CATEGORIES, last=3)
    with pytest.raises(ValueError, match="0 titles"):
        profile_text([0], [0], TITLES, CATEGORIES, last=0)
    for outside in (-1, 5):
        with pytest.raises(IndexError):
            profile_text([outside], [0], TITLES, CATEGORIES, last=3)
