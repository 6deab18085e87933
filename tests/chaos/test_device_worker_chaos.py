"""Killing device workers and the broker on purpose: nothing is lost, nothing is repeated, the state is the same."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import pytest

from device_agent.checkpoint import STEPS
from infra.broker import Broker
from streams.bundle import Bundle
from streams.events import Interaction
from tests.bundles import make_bundle
from tests.pipeline import Pipeline, answer, interactions, pipeline, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]
EVENTS = 1200


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", n_items=60)


@pytest.fixture(scope="module")
def events(bundle: Bundle) -> list[Interaction]:
    return interactions(bundle, EVENTS)


@pytest.fixture(scope="module")
def undisturbed(
    kafka: Broker, bundle: Bundle, events: list[Interaction], tmp_path_factory: pytest.TempPathFactory
) -> dict[bytes, str]:
    """Digest of each device after a run in which nothing happened."""
    with pipeline(kafka.bootstrap, "calm.", bundle, tmp_path_factory.mktemp("calm")) as calm:
        calm.start_worker()
        calm.produce_interactions(events)
        calm.wait_served(EVENTS)
        calm.stop_workers()
        return calm.digests()


def check(made: Pipeline, events: list[Interaction], undisturbed: dict[bytes, str]) -> None:
    """No event lost, none repeated, none applied twice, and the same state as in an undisturbed run."""
    made.wait_served(EVENTS, 120)
    made.stop_workers()
    assert made.served() == {(event.event_id, arm.name): 1 for event in events for arm in made.experiment.arms}
    assert made.digests() == undisturbed


@pytest.mark.parametrize("files", ["with its old files", "with an empty directory"])
def test_a_worker_killed_between_each_two_steps_of_a_checkpoint(
    kafka: Broker,
    topic_prefix: str,
    bundle: Bundle,
    events: list[Interaction],
    undisturbed: dict[bytes, str],
    tmp_path: Path,
    files: str,
) -> None:
    share = EVENTS // len(STEPS)
    # small checkpoints, so that the death comes between two of them
    with pipeline(kafka.bootstrap, topic_prefix, bundle, tmp_path, flags={"device.checkpoint_events": 40}) as made:
        for life, step in enumerate(STEPS):
            worker = made.start_worker(die_at=step, die_on=2)
            # two portions: the first checkpoint happens, the second is the one it dies in
            middle = life * share + share // 2
            made.produce_interactions(events[life * share : middle])
            time.sleep(0.5)
            made.produce_interactions(events[middle : (life + 1) * share])
            died = _end_of(worker, made)
            assert died == -signal.SIGKILL, made.tell(0)
            if files == "with an empty directory":
                rmtree(made.state_dir("w"))
        made.start_worker()
        check(made, events, undisturbed)


def test_kill_9_in_mid_run_while_embeddings_arrive(
    kafka: Broker,
    topic_prefix: str,
    bundle: Bundle,
    events: list[Interaction],
    undisturbed: dict[bytes, str],
    tmp_path: Path,
) -> None:
    with pipeline(kafka.bootstrap, topic_prefix, bundle, tmp_path) as made:
        answered = 0
        worker, other = made.start_worker("one"), made.start_worker("two")
        for part in range(6):
            made.produce_interactions(events[part * 200 : (part + 1) * 200])
            if part in (2, 4):
                time.sleep(0.7)
                worker.kill()
                worker.wait()
                worker = made.start_worker("one")
            requests = made.requests()
            made.produce_embeddings([answer(request, bundle) for request in requests[answered:]])
            answered = len(requests)
        assert other.poll() is None
        check(made, events, undisturbed)


def test_a_zombie_that_wakes_up_commits_nothing_and_leaves_to_be_started_again(
    kafka: Broker,
    topic_prefix: str,
    bundle: Bundle,
    events: list[Interaction],
    undisturbed: dict[bytes, str],
    tmp_path: Path,
) -> None:
    with pipeline(kafka.bootstrap, topic_prefix, bundle, tmp_path) as made:
        zombie = made.start_worker("zombie")
        made.produce_interactions(events[:300])
        made.wait_served(300)
        made.produce_interactions(events[300:600])
        zombie.send_signal(signal.SIGSTOP)
        made.start_worker("heir")
        made.produce_interactions(events[600:900])
        made.wait_served(900, 120)
        zombie.send_signal(signal.SIGCONT)
        made.produce_interactions(events[900:])
        check(made, events, undisturbed)


def test_a_broker_that_is_gone_for_half_a_minute_costs_time_and_nothing_else(
    make_broker: Callable[..., Broker],
    topic_prefix: str,
    bundle: Bundle,
    events: list[Interaction],
    undisturbed: dict[bytes, str],
    tmp_path: Path,
) -> None:
    broker = make_broker("own")
    broker.start()
    with pipeline(broker.bootstrap, topic_prefix, bundle, tmp_path / "run") as made:
        worker = made.start_worker()
        made.produce_interactions(events[:600])
        made.wait_served(300)
        broker.kill()
        time.sleep(30)
        broker.restart()
        made.produce_interactions(events[600:])

        def served() -> bool:
            nonlocal worker
            if worker.poll() is not None:  # what the supervisor does
                worker = made.start_worker()
            return sum(made.served().values()) >= EVENTS * len(made.experiment.arms)

        wait_for(served, 150, lambda: made.tell(EVENTS))
        check(made, events, undisturbed)


def _end_of(worker: subprocess.Popen[bytes], made: Pipeline) -> int:
    try:
        return worker.wait(60)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the worker did not die: {made.tell(0)}") from None
