"""What the broker says when the machine lacks something, and how Kafka's jars are found."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import yaml

from infra.broker import find_jars, find_java, get_jars, pinned_version
from infra.broker.java import parse_java_version
from streams.errors import EnvironmentProblem

ROOT = Path(__file__).resolve().parents[2]


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + textwrap.dedent(body))
    path.chmod(0o755)
    return path


def fake_java(folder: Path, version: str) -> Path:
    return script(folder / "java", f"""echo 'openjdk version "{version}" 2020-01-01' >&2\n""")


# A stand-in for the client that fetches, never for Kafka: it leaves files named like Kafka's jars.
MAVEN = """
    echo called >> {calls}
    for word in "$@"; do case "$word" in -DoutputDirectory=*) out="${{word#*=}}";; esac; done
    touch "$out/kafka_2.13-9.9.9.jar" "$out/kafka-server-9.9.9.jar" "$out/kafka-clients-9.9.9.jar"
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('openjdk version "17.0.15" 2025-04-15', (17, "17.0.15")),
        ('java version "1.8.0_392"', (8, "1.8.0_392")),
        ('openjdk version "26-ea" 2026-03-17', (26, "26-ea")),
        ('Picked up JAVA_TOOL_OPTIONS: -Dx\nopenjdk version "21" 2023-09-19', (21, "21")),
        ("no such thing", None),
    ],
)
def test_every_way_that_java_writes_its_version_is_read(text: str, expected: tuple[int, str] | None) -> None:
    assert parse_java_version(text) == expected


def test_wrong_java_is_named_with_a_remedy(tmp_path: Path) -> None:
    fake_java(tmp_path, "11.0.2")
    with pytest.raises(EnvironmentProblem, match=r"Java 17 or later, but .* is Java 11\.0\.2") as caught:
        find_java({"PATH": str(tmp_path)})
    assert "apt-get install openjdk-17-jre-headless" in caught.value.remedy


def test_missing_java_is_said_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="no java was found") as caught:
        find_java({"PATH": str(tmp_path)})
    assert "docker compose" in caught.value.remedy


def test_a_java_that_does_not_run_is_named(tmp_path: Path) -> None:
    script(tmp_path / "java", "echo 'cannot load libjvm' >&2; exit 3\n")
    with pytest.raises(EnvironmentProblem, match="cannot load libjvm"):
        find_java({"PATH": str(tmp_path)})


def test_a_good_java_on_path_is_taken_where_java_home_is_too_old(tmp_path: Path) -> None:
    fake_java(tmp_path / "old" / "bin", "1.8.0_392")
    fake_java(tmp_path / "new", "21.0.1")
    found = find_java({"JAVA_HOME": str(tmp_path / "old"), "PATH": str(tmp_path / "new")})
    assert (found.major, found.path) == (21, tmp_path / "new" / "java")


def test_missing_maven_names_every_way_to_a_kafka(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="Maven") as caught:
        get_jars({"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)})
    for way in ("apt-get install maven", "KAFKA_HOME", "bootstrap servers", "docker compose"):
        assert way in caught.value.remedy


def test_a_failed_fetch_says_what_maven_said_and_leaves_nothing_behind(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "mvn", "echo '[ERROR] Unknown host'; exit 1\n")
    env = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with pytest.raises(EnvironmentProblem, match="Unknown host"):
        get_jars(env)
    assert find_jars(env) is None
    assert not list((tmp_path / "cache").rglob(".fetch-*"))


def test_jars_are_fetched_once_and_found_again(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    script(tmp_path / "bin" / "mvn", MAVEN.format(calls=calls))
    env = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    said: list[str] = []
    fetched = get_jars(env, say=said.append)
    assert (fetched.source, fetched.version) == ("maven", "9.9.9")
    assert "Maven" in said[0]
    assert get_jars(env).source == "cache"
    assert calls.read_text() == "called\n"


def test_an_unfinished_cache_is_not_taken_for_a_kafka(tmp_path: Path) -> None:
    libs = tmp_path / "driftline" / f"kafka-{pinned_version()}" / "libs"
    libs.mkdir(parents=True)
    (libs / "kafka-clients-4.1.2.jar").touch()
    assert find_jars({"XDG_CACHE_HOME": str(tmp_path)}) is None


@pytest.mark.parametrize(("jar", "says"), [("kafka_2.13-3.9.0.jar", "Kafka 3.9.0"), ("x.jar", "no Kafka server")])
def test_a_kafka_home_without_a_kafka_4_is_refused(tmp_path: Path, jar: str, says: str) -> None:
    (tmp_path / "libs").mkdir()
    for name in (jar, "kafka-server-1.jar", "kafka-clients-1.jar"):
        (tmp_path / "libs" / name).touch()
    with pytest.raises(EnvironmentProblem, match=says):
        find_jars({"KAFKA_HOME": str(tmp_path)})


def test_a_kafka_home_comes_before_the_cache(tmp_path: Path) -> None:
    (tmp_path / "libs").mkdir()
    for name in ("kafka_2.13-4.2.0.jar", "kafka-server-4.2.0.jar", "kafka-clients-4.2.0.jar"):
        (tmp_path / "libs" / name).touch()
    found = find_jars({"KAFKA_HOME": str(tmp_path)})
    assert found is not None
    assert (found.source, found.version) == ("KAFKA_HOME", "4.2.0")


def test_compose_and_maven_pin_the_same_kafka() -> None:
    compose = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())
    assert compose["services"]["kafka"]["image"] == f"apache/kafka:{pinned_version()}"
    assert compose["services"]["kafka"]["ports"] == ["127.0.0.1:9092:9092"]


def test_no_file_of_the_set_up_holds_a_registry_address() -> None:
    files = [*(ROOT / "infra").glob("*.sh"), ROOT / "infra" / "constraints.txt", ROOT / ".ci" / "run"]
    for path in files:
        assert not re.search(r"https?://", path.read_text()), path
    pom = (ROOT / "infra" / "kafka" / "pom.xml").read_text()
    assert "<repository>" not in pom
    assert "<url>" not in pom
