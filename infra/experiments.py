"""Which experiment a command runs: a file, arms by flag, or the command's own arms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from device_agent.policies.registry import build_policy
from streams.errors import SettingsError
from streams.experiment.arms import Experiment, as_design, load_experiment, parse_arms

DEFAULT_ARMS = ("every-n:n=20",)


def choose_experiment(
    file: Path | None,
    arms: Sequence[str] | None,
    default: Sequence[str] = DEFAULT_ARMS,
    *,
    name: str = "adhoc",
    design: str = "paired",
    salt: str = "",
) -> Experiment:
    """The experiment of --experiment or --arm, its policies built once to see that they can be.

    A bad arm is to be refused where it is typed: found in a device worker, it would have cost a broker's start, perhaps
    a training, and five failed starts of that worker.

    Raises
    ------
    SettingsError
        Both are given, the file or an arm cannot be read, or a policy cannot be built.
    """
    if file is not None and arms:
        raise SettingsError("arms are given by --experiment and by --arm", remedy="use one of them")
    if file is not None:
        experiment = load_experiment(file)
    else:
        experiment = parse_arms(arms or default, name=name, design=as_design(design, "--design"), salt=salt)
    for arm in experiment.arms:
        build_policy(arm)
    return experiment
