"""House rules for metrics, held for every class that declares some."""

import re

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from streams import metrics

CLASSES = sorted(
    (each for each in vars(metrics).values() if isinstance(each, type) and each.__module__ == metrics.__name__),
    key=lambda each: each.__name__,
)
LABELS = {"arm", "policy", "partition", "topic", "reason", "process", "part"}
UNITS = ("_seconds", "_ratio", "_total", "_interactions", "_requests", "_owned", "_bytes", "_info", "_users", "_items")


def _declared(cls):
    registry = CollectorRegistry()
    return registry, vars(cls(registry))


def _name(metric):
    name = getattr(metric, "name", None) or metric._name
    return name + "_total" if type(metric).__name__ == "Counter" else name


def _labels(metric):
    return set(getattr(metric, "labels", ()) if hasattr(metric, "name") else metric._labelnames)


@pytest.mark.parametrize("cls", CLASSES)
def test_names_are_prefixed_in_base_units_and_unique(cls):
    _, declared = _declared(cls)
    names = [_name(metric) for metric in declared.values()]
    assert names
    assert len(set(names)) == len(names)
    for metric, name in zip(declared.values(), names, strict=True):
        assert re.fullmatch(r"driftline_[a-z0-9_]+", name)
        assert not re.search(r"_(ms|milliseconds|minutes|percent|kb|mb)(_|$)", name)
        assert name.endswith(UNITS), name
        assert (type(metric).__name__ == "Counter") == name.endswith("_total")


@pytest.mark.parametrize("cls", CLASSES)
def test_no_label_is_unbounded(cls):
    for metric in _declared(cls)[1].values():
        assert _labels(metric) <= LABELS


def test_a_name_means_the_same_wherever_it_is_declared():
    meaning = {}
    for cls in CLASSES:
        for metric in _declared(cls)[1].values():
            here = (getattr(metric, "documentation", None) or metric._documentation, frozenset(_labels(metric)))
            assert meaning.setdefault(_name(metric), here) == here


@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_exported_can_be_parsed_and_every_metric_is_described(cls):
    registry, declared = _declared(cls)
    families = {each.name: each for each in text_string_to_metric_families(generate_latest(registry).decode())}
    for metric in declared.values():
        family = families[_name(metric).removesuffix("_total")]
        assert len(family.documentation) > 5
