"""Ways to write a profile: what each says, and that their comparison is fair and looks at nothing too early."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch")

from cloud_worker.evaluation.profile_templates import SERVED, TEMPLATES, no_ages, tastes, titles_only
from cloud_worker.evaluation.profiles import compare
from cloud_worker.evaluation.staleness import difference
from cloud_worker.profile_text import profile_text
from cloud_worker.training.options import ProjectorOptions
from streams.errors import BundleError
from tests.cloud_worker.evaluation_data import HashEncoder

TITLES, KINDS = ["Heat", "Alien", "", "Up"], ["crime|drama", "horror, drama", "horror", ""]
WINDOW = (np.array([1, 2, 0]), np.array([0, 1, 2]), TITLES, KINDS)
QUICK = ProjectorOptions(hidden=16, stand_in_positions=2_000, epochs=2, batch=128, learning_rate=5e-3)


def test_what_each_template_says():
    assert no_ages(*WINDOW, 2) == "Recently, newest first. Heat (crime, drama); horror."
    assert titles_only(*WINDOW, 3) == "Heat; untitled; Alien."
    assert tastes(*WINDOW, 2) == "Mostly horror, drama, crime. Recently, newest first. Heat; untitled."
    assert TEMPLATES[SERVED](*WINDOW, 2) == profile_text(*WINDOW, last=2)


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_history_is_no_text_and_titles_further_back_are_not_named(name):
    nothing = np.zeros(0, np.int64)
    assert TEMPLATES[name](nothing, nothing, TITLES, KINDS, 3) == ""
    text = TEMPLATES[name](*WINDOW, 2)
    assert "Heat" in text
    assert "Alien" not in text


def test_tastes_without_categories_are_titles():
    assert tastes(np.array([3]), np.array([0]), TITLES, KINDS, 2) == "Up."


@pytest.fixture(scope="module")
def found(bundle, data):
    return compare(bundle, data[0], HashEncoder(), moments=10_000, profiles=300, seed=0, options=QUICK)


def test_all_templates_are_judged_at_the_same_moments_of_the_test_period(found, data):
    assert list(found.column.ranks) == list(TEMPLATES)
    assert all(len(ranks) == data[1].test.interactions for ranks in found.column.ranks.values())
    assert found.learned_from == 300
    assert found.characters["titles"] < found.characters["no ages"] < found.characters[SERVED]
    for interval in found.column.means("ndcg@10").values():
        assert 0 < interval.low <= interval.mean <= interval.high < 1


def test_the_same_template_twice_differs_by_nothing(bundle, data):
    templates = {SERVED: TEMPLATES[SERVED], "again": TEMPLATES[SERVED]}
    twice = compare(
        bundle, data[0], HashEncoder(), moments=200, profiles=100, seed=0, options=QUICK, templates=templates
    )
    assert np.array_equal(twice.column.ranks[SERVED], twice.column.ranks["again"])


def test_a_template_that_says_nothing_ranks_worse_than_those_that_say_what_was_taken(bundle, data):
    templates = {SERVED: TEMPLATES[SERVED], "mute": lambda *_: "nothing"}
    heard = compare(
        bundle, data[0], HashEncoder(), moments=10_000, profiles=300, seed=0, options=QUICK, templates=templates
    )
    less = difference(heard.column, "mute", SERVED, "ndcg@10")
    assert less.high < 0


def test_what_is_taken_after_a_moment_moves_no_rank_before_it(found, bundle, data):
    """The last event of the data, which is judged and which nothing that is judged may have seen."""
    prepared = data[0]
    items = prepared.events["item_id"].to_list()
    user = prepared.events["device_id"][-1]
    taken = set(prepared.events.filter(prepared.events["device_id"] == user)["item_id"])
    items[-1] = next(item for item in prepared.items["item_id"] if item not in taken)
    changed = dataclasses.replace(prepared, events=prepared.events.with_columns(item_id=np.array(items)))
    again = compare(bundle, changed, HashEncoder(), moments=10_000, profiles=300, seed=0, options=QUICK)
    for name, ranks in found.column.ranks.items():
        assert (again.column.ranks[name] != ranks).sum() <= 1


def test_another_encoder_is_refused(bundle, data):
    other = HashEncoder()
    other.model_id = "another"
    with pytest.raises(BundleError, match="another"):
        compare(bundle, data[0], other, moments=10, profiles=10, seed=0, options=QUICK)
