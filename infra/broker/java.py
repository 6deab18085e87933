"""Find a Java that can run Kafka, or say plainly why there is none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from streams.errors import EnvironmentProblem

JAVA_NEEDED = 17
"""The lowest Java that Kafka 4's server runs on."""

JAVA_REMEDY = (
    f"install Java {JAVA_NEEDED} or later (Debian, Ubuntu: apt-get install openjdk-17-jre-headless; "
    "macOS: brew install openjdk) and put it on PATH or point JAVA_HOME at it; "
    "without Java, run Kafka elsewhere (docker compose -f infra/compose.yaml up) and give its bootstrap servers"
)

_VERSION = re.compile(r'version "(?P<major>\d+)(?:\.(?P<minor>\d+))?[^"]*"')


@dataclass(frozen=True)
class Java:
    """A Java launcher and the release it says it is.

    Parameters
    ----------
    path
        The ``java`` executable.
    major
        17 for ``17.0.15``, 8 for ``1.8.0_392``.
    version
        The version as printed.
    """

    path: Path
    major: int
    version: str


def parse_java_version(text: str) -> tuple[int, str] | None:
    """Read the release from what ``java -version`` printed.

    Examples
    --------
    >>> parse_java_version('openjdk version "17.0.15" 2025-04-15')
    (17, '17.0.15')
    >>> parse_java_version('java version "1.8.0_392"')
    (8, '1.8.0_392')
    """
    found = _VERSION.search(text)
    if not found:
        return None
    major = int(found["major"])
    if major == 1 and found["minor"]:  # before Java 9 the release was the second number
        major = int(found["minor"])
    return major, found[0].split('"')[1]


def find_java(environ: Mapping[str, str] | None = None) -> Java:
    """Return the first Java that is new enough: that of ``JAVA_HOME``, then the one on ``PATH``.

    Raises
    ------
    EnvironmentProblem
        There is none, or those found are too old or do not run; the message names each.
    """
    env = os.environ if environ is None else environ
    seen: list[str] = []
    for path in _candidates(env):
        answer = _ask(path)
        if isinstance(answer, str):
            seen.append(f"{path} {answer}")
        elif answer.major < JAVA_NEEDED:
            seen.append(f"{path} is Java {answer.version}")
        else:
            return answer
    if not seen:
        raise EnvironmentProblem(
            f"no java was found on PATH or in JAVA_HOME; Kafka needs Java {JAVA_NEEDED} or later",
            remedy=JAVA_REMEDY,
        )
    raise EnvironmentProblem(f"Kafka needs Java {JAVA_NEEDED} or later, but {'; '.join(seen)}", remedy=JAVA_REMEDY)


def _candidates(env: Mapping[str, str]) -> list[Path]:
    paths: list[Path] = []
    if home := env.get("JAVA_HOME"):
        java = Path(home) / "bin" / "java"
        if java.is_file():
            paths.append(java)
    if on_path := shutil.which("java", path=env.get("PATH", os.defpath)):
        paths.append(Path(on_path))
    return paths


def _ask(path: Path) -> Java | str:
    try:
        done = subprocess.run(
            [str(path), "-version"], capture_output=True, text=True, errors="replace", timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"does not run ({problem})"
    text = done.stderr + done.stdout
    parsed = parse_java_version(text)
    if done.returncode != 0 or parsed is None:
        first = text.strip().splitlines()[0] if text.strip() else f"exit status {done.returncode}"
        return f"does not answer as a Java ({first})"
    return Java(path, *parsed)
