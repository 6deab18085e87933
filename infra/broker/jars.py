"""Find Kafka's jars: a ``KAFKA_HOME``, those fetched before, or fetched now with Maven."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from streams.errors import EnvironmentProblem

POM = Path(__file__).resolve().parent.parent / "kafka" / "pom.xml"
"""Where the pinned versions are written; nowhere else."""

WAYS = (
    "any one of these will do: install Maven (Debian, Ubuntu: apt-get install maven; macOS: brew install maven) "
    "on a machine that reaches a Maven repository; set KAFKA_HOME to an unpacked Kafka 4 distribution; "
    "give the bootstrap servers of a Kafka that runs elsewhere; "
    "or run one with docker compose -f infra/compose.yaml up"
)

FETCH_TIMEOUT_S = 600
"""Some 45 MB: seconds on a good line, but a slow one must not be cut off."""

_CORE_JAR = re.compile(r"^kafka_2\.\d+-(?P<version>\d[\w.\-]*?)\.jar$")
_NEEDED = ("kafka_2.", "kafka-server-", "kafka-clients-")


@dataclass(frozen=True)
class KafkaJars:
    """A directory of Kafka's jars.

    Parameters
    ----------
    libs
        The directory; every jar in it goes on the class path.
    version
        Kafka's version, read from the jar's name.
    source
        ``"KAFKA_HOME"``, ``"cache"`` or ``"maven"``.
    """

    libs: Path
    version: str
    source: str


def pinned_version(pom: Path = POM) -> str:
    """Return the Kafka version that ``infra/kafka/pom.xml`` pins."""
    name = "{http://maven.apache.org/POM/4.0.0}kafka.version"
    found = next(ET.parse(pom).iter(name), None)  # noqa: S314 - our own file
    if found is None or not found.text:
        raise EnvironmentProblem(f"{pom} names no kafka.version", remedy="restore it from the repository")
    return found.text.strip()


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Return where jars of the pinned version are kept once fetched."""
    env = os.environ if environ is None else environ
    given = env.get("XDG_CACHE_HOME")
    root = Path(given) / "driftline" if given else Path(platformdirs.user_cache_dir("driftline"))
    return root / f"kafka-{pinned_version()}" / "libs"


def find_jars(environ: Mapping[str, str] | None = None) -> KafkaJars | None:
    """Return jars that are already on this machine, or None.

    Raises
    ------
    EnvironmentProblem
        ``KAFKA_HOME`` is set but holds no Kafka 4: a wish that cannot be met is not passed over in silence.
    """
    env = os.environ if environ is None else environ
    if home := env.get("KAFKA_HOME"):
        return _of_home(Path(home))
    return _of_cache(cache_dir(env))


def get_jars(environ: Mapping[str, str] | None = None, *, say: Callable[[str], None] | None = None) -> KafkaJars:
    """Return Kafka's jars, fetching them with Maven where they are not on this machine yet.

    Two processes never fetch at once, and a fetch that is cut off leaves nothing behind that looks whole.

    Parameters
    ----------
    environ
        The environment; the process's own by default.
    say
        Told in a sentence when a fetch begins.
    """
    env = os.environ if environ is None else environ
    if found := find_jars(env):
        return found
    libs = cache_dir(env)
    mvn = shutil.which("mvn", path=env.get("PATH", os.defpath))
    if mvn is None:
        raise EnvironmentProblem(
            f"Kafka {pinned_version()} is not on this machine (looked at KAFKA_HOME and {libs}) "
            "and Maven, which would fetch it, is not on PATH",
            remedy=WAYS,
        )
    try:
        libs.parent.mkdir(parents=True, exist_ok=True)
        with _locked(libs.parent.with_suffix(".lock")):
            if found := _of_cache(libs):  # another process fetched them while we waited
                return found
            if say:
                say(f"fetching Kafka {pinned_version()} with Maven, once (about 45 MB)")
            _fetch(mvn, libs, env)
    except OSError as problem:
        raise EnvironmentProblem(
            f"Kafka's jars cannot be kept in {libs}: {problem}",
            remedy="make it writable, or name another folder in XDG_CACHE_HOME",
        ) from problem
    fetched = _of_cache(libs)
    if fetched is None:
        raise EnvironmentProblem(f"Maven ended well but {libs} holds no Kafka", remedy=WAYS)
    return KafkaJars(fetched.libs, fetched.version, "maven")


def _of_home(home: Path) -> KafkaJars:
    libs = home / "libs"
    version = _version_in(libs)
    remedy = "point KAFKA_HOME at an unpacked Kafka 4 distribution, or unset it"
    if version is None:
        raise EnvironmentProblem(f"KAFKA_HOME is {home}, but {libs} holds no Kafka server", remedy=remedy)
    if int(version.split(".")[0]) < 4:
        raise EnvironmentProblem(f"KAFKA_HOME is {home}, a Kafka {version}; 4.0 or later is needed", remedy=remedy)
    return KafkaJars(libs, version, "KAFKA_HOME")


def _of_cache(libs: Path) -> KafkaJars | None:
    version = _version_in(libs)
    return None if version is None else KafkaJars(libs, version, "cache")


def _version_in(libs: Path) -> str | None:
    if not libs.is_dir():
        return None
    names = [path.name for path in libs.glob("*.jar")]
    if not all(any(name.startswith(prefix) for name in names) for prefix in _NEEDED):
        return None
    return next((found["version"] for name in names if (found := _CORE_JAR.match(name))), None)


def _fetch(mvn: str, libs: Path, env: Mapping[str, str]) -> None:
    staging = Path(tempfile.mkdtemp(prefix=".fetch-", dir=libs.parent))
    command = [
        mvn, "-q", "-B", "-f", str(POM), "dependency:copy-dependencies",
        f"-DoutputDirectory={staging}", "-DincludeScope=runtime",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=FETCH_TIMEOUT_S, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise EnvironmentProblem(
                f"Maven could not fetch Kafka {pinned_version()}: {_gist(done.stdout)}", remedy=WAYS
            )
        if libs.exists():  # something incomplete: replaced as a whole
            shutil.rmtree(libs)
        staging.rename(libs)
    except subprocess.TimeoutExpired as problem:
        raise EnvironmentProblem(
            f"Maven had not fetched Kafka {pinned_version()} after {FETCH_TIMEOUT_S} s", remedy=WAYS
        ) from problem
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _gist(output: str) -> str:
    """Return the lines of Maven's output that say what went wrong."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("[ERROR]")] or lines
    return " | ".join(errors[:4]) or "no output"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it when the process ends, however it ends
        yield
