"""Devices and cloud killed in mid-run, with a real text encoder between them: the books balance, refreshes go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import pytest

from cloud_worker.encoder.model_folder import find_model_folder, model_id_of
from device_agent.state import StateLayout
from infra.broker import Broker
from infra.demo.applied import applied_counts
from infra.launch import Supervisor
from infra.workers import worker_specs
from streams.bundle import Bundle
from streams.events import Codec, Embedding, Interaction
from streams.settings import Settings
from tests.bundles import make_bundle
from tests.pipeline import Pipeline, interactions, pipeline, settings_of, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

EVENTS, PORTION, DEVICES = 1500, 100, 30
KILLS = {4: "device-1", 6: "cloud-1", 9: "device-2"}
"""After which portion who is killed, while that portion is on its way."""
ASKING = ("every-n-n5", "drift-rate0.2")
FLAGS = {"cloud.encoder": "onnx", "cloud.deadline_ms": 120_000}
"""A machine that is busy with other things must not let a request expire."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    encoder = model_id_of(find_model_folder(""))
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", n_items=60, encoder_id=encoder)


@pytest.fixture(scope="module")
def events(bundle: Bundle) -> list[Interaction]:
    return interactions(bundle, EVENTS, devices=DEVICES)


@pytest.fixture(scope="module")
def undisturbed(
    kafka: Broker, bundle: Bundle, events: list[Interaction], tmp_path_factory: pytest.TempPathFactory
) -> dict[bytes, str]:
    """Digest of each device after a run in which nothing happened."""
    with pipeline(kafka.bootstrap, "calm-whole.", bundle, tmp_path_factory.mktemp("calm")) as calm:
        calm.start_worker()
        calm.produce_interactions(events)
        calm.wait_served(EVENTS)
        calm.stop_workers()
        return calm.digests()


class Run:
    """A pipeline whose workers are the real commands, under the supervisor that `up` and `demo` use."""

    def __init__(self, made: Pipeline, encoder_exports: Path) -> None:
        self.made = made
        home = made.directory / "home"
        home.mkdir()
        (home / "onnx").symlink_to(encoder_exports, target_is_directory=True)
        settings: Settings = settings_of(made).model_copy(update={"home": home})
        specs = worker_specs(settings, made.directory, made.bundle.path, made.experiment, clouds=1, devices=2)
        self.specs = {spec.name: spec for spec in specs}
        self.supervisor = Supervisor(specs)

    def wait(self, done: Callable[[], bool], timeout_s: float = 120) -> None:
        def looked() -> bool:
            self.supervisor.check()
            return done()

        wait_for(looked, timeout_s, lambda: self.made.tell(0))

    def ready(self) -> bool:
        return all(status.state == "ready" for status in self.supervisor.statuses)

    def kill(self, name: str, *, with_files: bool) -> None:
        """Kill -9; it comes back by itself, or (its files deleted) as a worker that was never here before."""
        self.supervisor.kill(name)
        if with_files:
            self.supervisor.remove(name)
            own = Path("home", "embedding-cache") if name.startswith("cloud") else Path("state", name)
            rmtree(self.made.directory / own)
            self.supervisor.add(self.specs[name])

    def embeddings(self) -> list[Embedding]:
        return [Codec(Embedding).decode(record.value) for record in self.made.read(self.made.topics.embeddings)]

    def all_answered(self) -> bool:
        """Whether each device and arm that asked has an embedding as new as its newest request."""
        newest = {(answer.device_id, answer.arm): answer.as_of for answer in self.embeddings()}
        asked = {(request.device_id, request.arm): request.as_of for request in self.made.requests()}
        return all(newest.get(who, -1) >= as_of for who, as_of in asked.items())


@pytest.mark.parametrize("files", ["with its old files", "with an empty directory"])
def test_killed_devices_and_a_killed_cloud_lose_nothing_and_refreshes_go_on(
    kafka: Broker,
    topic_prefix: str,
    bundle: Bundle,
    events: list[Interaction],
    undisturbed: dict[bytes, str],
    encoder_exports: Path,
    tmp_path: Path,
    files: str,
) -> None:
    with pipeline(kafka.bootstrap, topic_prefix, bundle, tmp_path, flags=FLAGS) as made:
        run = Run(made, encoder_exports)
        last_kill = max(KILLS)
        with run.supervisor:
            run.supervisor.wait_ready()
            for number in range(EVENTS // PORTION):
                made.produce_interactions(events[number * PORTION : (number + 1) * PORTION])
                if number in KILLS:
                    run.kill(KILLS[number], with_files=files == "with an empty directory")
                elif number < last_kill:
                    run.wait(lambda: run.embeddings() != [])
                else:  # all is well again, step by step
                    run.wait(run.ready)
                    made.wait_served((number + 1) * PORTION, 120)
                    run.wait(run.all_answered)
        for name in KILLS.values():
            assert made.log_file(name).read_text().count(f"driftline starts {name}") >= 2, "it was killed and came back"

        assert made.served() == {(event.event_id, arm.name): 1 for event in events for arm in made.experiment.arms}
        counts = applied_counts(made.kafka, made.topics, StateLayout(bundle.manifest, len(made.arms)))
        assert counts == Counter(event.device_id for event in events)
        assert made.digests() == undisturbed

        seen_at_kill = Counter(event.device_id for event in events[: (last_kill + 1) * PORTION])
        for arm in ASKING:
            fresh = [r for r in made.recommendations() if r.arm == arm and r.as_of > seen_at_kill[r.device_id]]
            assert fresh, f"{arm} was served with nothing that the cloud embedded after the last kill"
        assert not [r for r in made.requests() if r.arm == "never"]
