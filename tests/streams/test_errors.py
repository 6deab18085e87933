import re

import pytest

from streams import errors
from streams.errors import DriftlineError, RecordError

TREE = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]


@pytest.mark.parametrize("kind", TREE)
def test_every_error_has_one_root_and_says_what_to_do(kind):
    assert issubclass(kind, DriftlineError)
    error = kind("the port 9092 is taken", remedy="choose another")
    assert str(error) == "the port 9092 is taken — choose another"
    assert (error.message, error.remedy) == ("the port 9092 is taken", "choose another")
    assert str(kind("that is all")) == "that is all"


def test_the_tree_in_the_docstring_names_every_error():
    drawn = set(re.findall(r"[├└]── (\w+)|^\s*(\w+)$", errors.__doc__, re.MULTILINE))
    names = {first or second for first, second in drawn}
    assert {kind.__name__ for kind in TREE} <= names


def test_each_kind_of_record_error_has_a_reason_fit_for_a_label():
    kinds = [kind for kind in TREE if issubclass(kind, RecordError)]
    reasons = [kind("x").reason for kind in kinds]
    assert len(set(reasons)) == len(reasons)
    assert all(re.fullmatch(r"[a-z-]+", reason) for reason in reasons)
    assert RecordError("x", reason="unknown-item").reason == "unknown-item"
    assert RecordError.reason == "unusable"
