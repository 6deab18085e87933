"""What the supervisor's decisions promise, whatever the failures."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.launch.restart_policy import (
    Finished,
    GiveUp,
    Record,
    RestartPolicy,
    StartAgain,
    decide,
    in_words,
    reason,
)
from streams.clock import ManualClock
from streams.errors import EXIT_RESTART, EXIT_USAGE

POLICY = RestartPolicy()
FAILURES = st.integers(1, 255).filter(lambda status: status != EXIT_USAGE)


def _run(lives: list[float], policy: RestartPolicy = POLICY, status: int = 1) -> list[object]:
    """Decisions over a process that lives so long at each start, timed by a clock that waits as told."""
    clock, record, decisions = ManualClock(), Record(), []
    for life in lives:
        started = clock.monotonic()
        clock.advance(life)
        record, decision = decide(policy, record, status=status, lived_s=clock.monotonic() - started)
        decisions.append(decision)
        if not isinstance(decision, StartAgain):
            break
        clock.sleep(decision.delay_s)
    return decisions


def test_five_quick_failures_in_a_row_end_the_run() -> None:
    decisions = _run([0.5] * 9)
    assert decisions == [StartAgain(0.2), StartAgain(0.4), StartAgain(0.8), StartAgain(1.6), GiveUp(5)]


def test_back_off_doubles_up_to_its_limit_and_no_further() -> None:
    patient = RestartPolicy(give_up_after=100)
    delays = [d.delay_s for d in _run([0.1] * 9, patient) if isinstance(d, StartAgain)]
    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0, 5.0]


def test_a_healthy_life_clears_the_record() -> None:
    decisions = _run([1, 1, 1, 1, 31, 1, 1, 1, 1])
    assert not any(isinstance(d, GiveUp) for d in decisions)
    assert decisions[4] == StartAgain(0.2)


def test_failures_that_are_far_apart_never_end_the_run() -> None:
    assert all(isinstance(d, StartAgain) for d in _run([POLICY.quick_s] * 100))


@given(
    lives=st.lists(st.floats(0, 100, allow_nan=False), max_size=60),
    status=FAILURES,
    give_up_after=st.integers(1, 8),
)
def test_delays_are_bounded_and_giving_up_needs_that_many_quick_failures(
    lives: list[float], status: int, give_up_after: int
) -> None:
    policy = RestartPolicy(give_up_after=give_up_after)
    decisions = _run(lives, policy, status)
    for decision in decisions:
        if isinstance(decision, StartAgain):
            assert policy.first_delay_s <= decision.delay_s <= policy.max_delay_s
    quick = 0
    for life, decision in zip(lives, decisions, strict=False):
        quick = (0 if life >= policy.healthy_s else quick) + (life < policy.quick_s)
        assert isinstance(decision, GiveUp) == (quick >= give_up_after)


@given(lived=st.floats(0, 1e6), status=FAILURES, row=st.integers(0, 10_000))
def test_no_number_of_failures_overflows_the_delay(lived: float, status: int, row: int) -> None:
    _, decision = decide(POLICY, Record(row, 0), status=status, lived_s=lived)
    assert isinstance(decision, StartAgain)
    assert decision.delay_s <= POLICY.max_delay_s


def test_what_cannot_be_done_is_not_tried_again() -> None:
    record, decision = decide(POLICY, Record(), status=EXIT_USAGE, lived_s=1)
    assert decision == GiveUp(1)
    assert record == Record()


@given(row=st.integers(0, 4), lived=st.floats(0, 100))
def test_what_was_killed_on_request_is_not_blamed(row: int, lived: float) -> None:
    record = Record(row, row)
    after, decision = decide(POLICY, record, status=137, lived_s=lived, on_request=True)
    assert decision == StartAgain(POLICY.first_delay_s)
    assert after.quick_in_a_row <= record.quick_in_a_row


def test_an_end_without_being_asked_is_a_failure_unless_the_process_was_meant_to_end() -> None:
    assert isinstance(decide(POLICY, Record(), status=0, lived_s=1)[1], StartAgain)
    assert isinstance(decide(POLICY, Record(), status=0, lived_s=1, one_shot=True)[1], Finished)
    assert isinstance(decide(POLICY, Record(), status=1, lived_s=1, one_shot=True)[1], StartAgain)


@pytest.mark.parametrize(
    ("status", "word", "words"),
    [
        (0, "ended", "nobody asked"),
        (EXIT_RESTART, "checkpoint", "a checkpoint's outcome was unknown"),
        (EXIT_USAGE, "refused", "cannot do what it was told"),
        (1, "exit", "exit code 1"),
        (200, "exit", "exit code 200"),
        (128 + signal.SIGKILL, "signal", "SIGKILL"),
        (-signal.SIGSEGV, "signal", "SIGSEGV"),
    ],
)
def test_the_reason_is_a_word_for_the_metric_and_a_phrase_for_the_reader(status: int, word: str, words: str) -> None:
    assert reason(status) == word
    assert words in in_words(status)
