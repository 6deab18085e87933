"""Which experiment a command runs, and that bad arms are found where they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.experiments import choose_experiment
from streams.errors import SettingsError


def test_arms_by_flag_come_before_the_commands_own() -> None:
    assert [arm.policy for arm in choose_experiment(None, None, ["never", "always"]).arms] == ["never", "always"]
    assert [arm.policy for arm in choose_experiment(None, ["ttl:seconds=60"], ["never"]).arms] == ["ttl"]


def test_a_file_brings_its_design(tmp_path: Path) -> None:
    file = tmp_path / "e.toml"
    file.write_text('[experiment]\ndesign = "split"\nsalt = "s"\n[[arm]]\npolicy = "every-n"\nn = 3\n')
    found = choose_experiment(file, None)
    assert (found.design, found.salt, found.arms[0].params) == ("split", "s", {"n": 3})
    with pytest.raises(SettingsError, match="--experiment and by --arm"):
        choose_experiment(file, ["never"])


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        (["often"], "there is no policy 'often'"),
        (["every-n:k=3"], "every-n"),
        (["every-n:n=0"], "every-n"),
        (["never", "never"], "two arms are called 'never'"),
        (["every-n:n"], "is not KEY=VALUE"),
    ],
)
def test_an_arm_that_no_worker_could_run_is_refused(arms: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        choose_experiment(None, arms)
