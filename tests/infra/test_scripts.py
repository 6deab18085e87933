"""The two commands set up what is missing, are quick the second time, and say plainly what they need."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ["infra/setup.sh", "infra/demo.sh", "infra/test.sh", ".ci/run"]
BASH = shutil.which("bash") or "/bin/bash"


def script(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in a folder with a space in its name, with a Python that installs nothing but notes its calls."""
    root = tmp_path / "a checkout"
    (root / "infra").mkdir(parents=True)
    for name in ("pyproject.toml", *SCRIPTS[:3], "infra/constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    calls = tmp_path / "calls"
    made = root / ".venv" / "bin"
    tools = tmp_path / "bin"  # the whole PATH: what the system has must not matter
    tools.mkdir()
    for name in ("basename", "bash", "cat", "cksum", "cp", "dirname", "head", "mkdir", "rm", "sed"):
        (tools / name).symlink_to(shutil.which(name) or name)
    script(tools / "java", """echo 'openjdk version "17.0.1"' >&2""")
    script(tools / "mvn", "exit 0")
    note = f'echo "$(basename "$0") $*" >> "{calls}"'
    (tmp_path / "tool").write_text(f"#!/bin/sh\n{note}\n")
    (tmp_path / "tool").chmod(0o755)
    script(
        tools / "python3",
        f"""case "$*" in
        --version) echo Python 3.11.9;;
        "-m venv"*) mkdir -p "{made}"
            for t in python uv driftline ruff mypy lint-imports; do cp "{tmp_path}/tool" "{made}/$t"; done;;
        *) exit 0;; esac""",
    )
    return root


def run(
    checkout: Path, name: str, *arguments: str, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": str(checkout.parent / "bin"), "HOME": str(checkout.parent), **env}
    return subprocess.run(
        [BASH, str(checkout / name), *arguments],
        cwd=cwd or checkout,
        env=clean,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def calls(checkout: Path) -> list[str]:
    log = checkout.parent / "calls"
    lines = log.read_text().splitlines() if log.exists() else []
    return [line for line in lines if not line.startswith("python -c")]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_whole(name: str) -> None:
    subprocess.run([BASH, "-n", str(ROOT / name)], check=True)


def test_demo_sets_up_once_and_passes_its_arguments_on_from_any_folder(checkout: Path, tmp_path: Path) -> None:
    first = run(checkout, "infra/demo.sh", "--events", "5 000", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    done = calls(checkout)
    assert any("pip install" in line and "-e .[device,cloud,dev] -c infra/constraints.txt" in line for line in done)
    assert done[-1] == "driftline demo --events 5 000"

    second = run(checkout, "infra/demo.sh")
    assert second.returncode == 0
    assert calls(checkout)[len(done) :] == ["driftline demo"]
    assert second.stderr == ""


def test_demo_and_test_share_one_set_up(checkout: Path) -> None:
    run(checkout, "infra/demo.sh")
    before = len(calls(checkout))
    done = run(checkout, "infra/test.sh", "-k", "x")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in calls(checkout)[before:]] == ["ruff", "ruff", "mypy", "lint-imports", "python"]
    assert calls(checkout)[-1] == "python -m pytest -n 2 --dist loadfile -k x"


def test_changed_requirements_are_installed_anew(checkout: Path) -> None:
    run(checkout, "infra/demo.sh")
    before = len(calls(checkout))
    with (checkout / "infra" / "constraints.txt").open("a") as pins:
        pins.write("another==1\n")
    run(checkout, "infra/demo.sh")
    assert any("pip install" in line for line in calls(checkout)[before:])


def test_a_set_up_that_failed_is_done_again(checkout: Path) -> None:
    tool = checkout.parent / "tool"
    good = tool.read_text()
    tool.write_text(good + 'case "$*" in *"pip install"*) exit 1;; esac\n')
    assert run(checkout, "infra/demo.sh").returncode == 1
    tool.write_text(good)
    shutil.rmtree(checkout / ".venv")
    assert run(checkout, "infra/demo.sh").returncode == 0
    assert calls(checkout)[-1] == "driftline demo"


def test_a_python_that_is_too_old_or_does_not_run_is_passed_over_and_said(checkout: Path) -> None:
    tools = checkout.parent / "bin"
    for name in ("python3", "python3.13", "python3.12", "python3.11", "python"):
        script(tools / name, 'case "$*" in --version) echo Python 3.9.2;; *) exit 1;; esac')
    done = run(checkout, "infra/demo.sh")
    assert done.returncode == 1
    assert "missing: Python 3.11 or later (python3 is Python 3.9.2)" in done.stderr
    assert "apt-get install python3" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_without_venv_is_said(checkout: Path) -> None:
    tools = checkout.parent / "bin"
    python = (tools / "python3").read_text()
    (tools / "python3").write_text(python.replace("*) exit 0", "*ensurepip*) exit 1;;\n*) exit 0"))
    done = run(checkout, "infra/demo.sh")
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr


@pytest.mark.parametrize(
    ("java", "says"),
    [
        ("exit 127", "missing: Java 17"),
        ("""echo 'openjdk version "11.0.2"' >&2""", "too old: Java 11;"),
        ("""echo 'java version "1.8.0_392"' >&2""", "too old: Java 8;"),
    ],
)
def test_wrong_java_is_said_before_anything_is_installed(checkout: Path, java: str, says: str) -> None:
    script(checkout.parent / "bin" / "java", java)
    done = run(checkout, "infra/demo.sh")
    assert done.stderr.index(says) < done.stderr.index("installing")
    assert "apt-get install openjdk-17-jre-headless" in done.stderr


def test_missing_maven_is_said_unless_kafka_is_there(checkout: Path) -> None:
    (checkout.parent / "bin" / "mvn").unlink()
    assert "missing: Maven" in run(checkout, "infra/demo.sh").stderr
    assert "Maven" not in run(checkout, "infra/demo.sh", KAFKA_HOME="/opt/kafka").stderr


def test_the_pins_are_names_and_versions_alone() -> None:
    for line in (ROOT / "infra" / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9][a-z0-9.\-]*==[0-9][A-Za-z0-9.]*", line), line


def test_every_package_that_driftline_needs_is_pinned() -> None:
    pins = {line.split("==")[0] for line in (ROOT / "infra" / "constraints.txt").read_text().splitlines()}
    needed: set[str] = set()
    todo = [("driftline", extra) for extra in ("", "device", "cloud", "dev", "compare")]
    while todo:
        name, extra = todo.pop()
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # needed on another system only
        for requirement in map(Requirement, requirements):
            found = canonicalize_name(requirement.name)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            if found not in needed:
                needed.add(found)
                todo += [(found, wanted) for wanted in ("", *requirement.extras)]
    # torch's CUDA libraries are left free, so that UV_TORCH_BACKEND=cpu can do without them.
    free = {name for name in needed if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert needed - free - pins - {"driftline"} == set()


def test_ci_calls_the_test_command_of_the_readme() -> None:
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("exec bash infra/test.sh")
    readme = ROOT / "README.md"
    if readme.exists():
        assert "bash infra/test.sh" in readme.read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
