"""The worker processes of one installation on this machine, as the supervisor starts them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from infra.launch import ProcessSpec
from infra.workspace import as_environment
from streams.experiment.arms import Experiment
from streams.settings import Settings

_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""A device worker's matrices are small: more threads would only take the cores from the other workers."""


def cloud_spec(settings: Settings, run: Path, bundle: Path, number: int) -> ProcessSpec:
    """`driftline cloud` as a supervised process."""
    return _spec(f"cloud-{number}", ["cloud", "--bundle", str(bundle.absolute())], settings, run)


def device_spec(settings: Settings, run: Path, bundle: Path, experiment: Experiment, number: int) -> ProcessSpec:
    """`driftline device` as a supervised process, with state of its own."""
    state = run / "state" / f"device-{number}"
    arms = [each for arm in experiment.arms for each in ("--arm", arm.flag())]
    more = ["--design", experiment.design, "--salt", experiment.salt]
    command = ["device", "--bundle", str(bundle.absolute()), "--state-dir", str(state.absolute()), *arms, *more]
    return _spec(f"device-{number}", command, settings, run, env=_ONE_THREAD)


def worker_specs(
    settings: Settings, run: Path, bundle: Path, experiment: Experiment, *, clouds: int, devices: int
) -> Sequence[ProcessSpec]:
    """All workers, the cloud's first: their model takes longest to load."""
    return [
        *(cloud_spec(settings, run, bundle, number) for number in range(1, clouds + 1)),
        *(device_spec(settings, run, bundle, experiment, number) for number in range(1, devices + 1)),
    ]


def _spec(
    name: str, command: list[str], settings: Settings, run: Path, env: dict[str, str] | None = None
) -> ProcessSpec:
    status = run / f"{name}.json"
    return ProcessSpec(
        name=name,
        argv=(sys.executable, "-m", "infra", *command, "--status-file", str(status.absolute())),
        log_file=run / f"{name}.log",
        status_file=status,
        # a port of its own for each: one that is set is one worker's
        env=as_environment(settings) | {"DRIFTLINE_HTTP__PORT": "0"} | (env or {}),
        ready_timeout_s=120.0,
    )
