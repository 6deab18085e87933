"""The doctor says what is well and what is not, with a remedy where something is amiss."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from infra.broker import free_port
from infra.cli.doctor import doctor
from infra.doctor import Check, check_disk, check_encoder, check_home, check_packages, check_python, examine, healthy
from streams.settings import KafkaSettings


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(doctor)
    return app


def test_every_part_of_the_machine_is_looked_at(tmp_path: Path) -> None:
    names = [check.name for check in examine(tmp_path, KafkaSettings())]
    for name in ("python", "java", "maven", "kafka", "encoder", "cloud packages", "disk", "home", "ports", "size"):
        assert name in names


def test_each_line_that_is_amiss_has_a_remedy_and_no_other_has(tmp_path: Path) -> None:
    bare = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    checks = examine(tmp_path, KafkaSettings(), environ=bare)
    amiss = {check.name for check in checks if not check.ok}
    assert {"java", "maven", "kafka"} <= amiss
    for check in checks:
        assert bool(check.remedy) is not check.ok, check
    assert not healthy(checks)


def test_nothing_is_fetched_or_left_behind(tmp_path: Path) -> None:
    examine(tmp_path / "home", KafkaSettings(), environ={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert list(tmp_path.iterdir()) == []


def test_a_broken_kafka_home_is_amiss(tmp_path: Path) -> None:
    checks = {
        c.name: c for c in examine(tmp_path, KafkaSettings(), environ={**os.environ, "KAFKA_HOME": str(tmp_path)})
    }
    assert not checks["kafka"].ok
    assert str(tmp_path) in checks["kafka"].detail


def test_a_cluster_that_does_not_answer_is_amiss_and_java_is_not_asked_for(tmp_path: Path) -> None:
    bare = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    nobody = KafkaSettings(bootstrap=f"127.0.0.1:{free_port()}")
    checks = {c.name: c for c in examine(tmp_path, nobody, environ=bare)}
    assert not checks["cluster"].ok
    assert not checks["java"].required


def test_an_old_python_a_full_disk_and_absent_packages_are_amiss(tmp_path: Path) -> None:
    for check in (
        check_python((3, 9, 2)),
        check_disk(tmp_path, needed=10**18),
        check_packages("x", ("no_such_module",), "device"),
        check_encoder("no_such_module"),
    ):
        assert not check.ok
        assert check.remedy


def test_a_home_that_cannot_be_written_is_amiss() -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("needs a folder that even root cannot write to")
    assert not check_home(Path("/proc/self/x")).ok


def test_only_what_is_required_decides(tmp_path: Path) -> None:
    assert healthy([Check("a", True, ""), Check("b", False, "", "slow", required=False)])
    assert not healthy([Check("a", False, "", "install it")])


def test_json_is_one_object_with_rows(command: typer.Typer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, ["--json"])
    answer = json.loads(result.stdout)
    assert set(answer) == {"meta", "rows"}
    assert all(set(row) == {"check", "ok", "detail", "remedy"} for row in answer["rows"])
    assert result.exit_code == (0 if answer["meta"]["ok"] else 1)


def test_a_machine_without_java_ends_with_1(
    command: typer.Typer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    result = CliRunner().invoke(command, [], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "openjdk-17-jre-headless" in result.stdout


def test_a_misspelt_setting_is_a_line_of_the_report(
    command: typer.Typer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTLINE_HOMME", "x")
    result = CliRunner().invoke(command, ["--json"])
    rows = {row["check"]: row for row in json.loads(result.stdout)["rows"]}
    assert not rows["settings"]["ok"]
    assert "DRIFTLINE_HOMME" in rows["settings"]["detail"]
    assert result.exit_code == 1
