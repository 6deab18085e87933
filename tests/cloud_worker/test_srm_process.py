"""The process beside a training: the bundle is the same to the byte, and the process never outlives the training."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from safetensors.numpy import load_file

from cloud_worker.training import srm_process
from cloud_worker.training.checkpoints import Checkpoints
from cloud_worker.training.data import histories_of_events
from cloud_worker.training.options import silent
from cloud_worker.training.run import Run
from cloud_worker.training.train import train_bundle
from tests.cloud_worker.evaluation_data import OPTIONS, HashEncoder

LATE = ("SRM to the end", "second SRM", "second to the end")


@pytest.fixture
def started(monkeypatch):
    """Every process that was started; small data are worth one here."""
    monkeypatch.setattr(srm_process, "LEAST", 0)
    made: list[subprocess.Popen] = []

    class Noted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    yield made
    for process in made:
        process.kill()


def run_of(data, folder, options=OPTIONS) -> Run:
    prepared, split = data
    known = prepared.events.filter(prepared.events["event_time_ms"] < split.test.start_ms)
    histories = histories_of_events(known, prepared.items["item_id"].to_list(), split.valid.start_ms)
    return Run(histories, options, True, torch.device("cpu"), Checkpoints(folder / "b", "test"), silent)


def test_the_bundle_is_that_of_a_training_without_the_process(data, bundle, started, tmp_path):
    told = []
    found = train_bundle(*data, HashEncoder(), tmp_path / "b", OPTIONS, told.append)
    assert [process.returncode for process in started] == [0]
    assert found.bundle_id == bundle.id
    controls, wanted = (load_file(path / "controls.safetensors") for path in (tmp_path / "b", bundle.path))
    assert controls.keys() == wanted.keys()
    for name, array in wanted.items():  # not the bytes: the file's own notes have no fixed order
        np.testing.assert_array_equal(controls[name], array)
    for stage in LATE:
        done = [each.done for each in told if each.stage == stage]
        assert done, "what the process does is shown"
        assert done == list(range(1, len(done) + 1)), "and is not done twice"


def test_without_a_second_stage_and_without_controls_nothing_is_trained_for_them(data, started, tmp_path):
    told = []
    options = dataclasses.replace(OPTIONS, retrain=False, controls=False)
    train_bundle(*data, HashEncoder(), tmp_path / "b", options, lambda each: told.append(each.stage))
    assert not set(LATE) & set(told)
    assert not started


@pytest.mark.parametrize(("program", "codes"), [("/bin/false", [1]), ("/does/not/exist", [])])
def test_where_the_process_fails_the_training_does_its_work(
    data, bundle, started, tmp_path, monkeypatch, program, codes
):
    monkeypatch.setattr(sys, "executable", program)
    found = train_bundle(*data, HashEncoder(), tmp_path / "b", OPTIONS)
    assert [process.returncode for process in started] == codes
    assert found.bundle_id == bundle.id


def test_a_training_that_ends_early_takes_the_process_with_it(data, started, tmp_path):
    class Stopped(Exception):
        pass

    def stop(progress):
        if progress.stage == "SRM to the end":
            raise Stopped

    endless = dataclasses.replace(OPTIONS.srm, final_epochs=10**6)
    options = dataclasses.replace(OPTIONS, srm=endless, most_positions=10**12)
    with pytest.raises(Stopped):
        train_bundle(*data, HashEncoder(), tmp_path / "b", options, stop)
    assert [process.returncode for process in started] == [-9]


def test_ended_before_it_began_it_does_not_begin(data, started, tmp_path):
    process = srm_process.SrmProcess(run_of(data, tmp_path))
    process.end()
    process.follow()
    assert not started


def test_the_process_ends_with_a_parent_that_was_killed(data, tmp_path):
    forever = dataclasses.replace(OPTIONS, srm=dataclasses.replace(OPTIONS.srm, epochs=10**6), most_positions=10**12)
    with subprocess.Popen(
        [sys.executable, "-m", srm_process.__name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdin.write(pickle.dumps(run_of(data, tmp_path, forever)))
        process.stdin.flush()
        assert b'"SRM"' in process.stdout.readline()
        process.stdin.close()  # as the death of a parent does
        assert process.wait(10) == srm_process.PARENT_GONE
