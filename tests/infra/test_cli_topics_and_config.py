"""The verbs topics and config as a user meets them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from streams.durable_producer import DurableProducer
from streams.settings import KafkaSettings
from streams.topics import Topics

ROOT = Path(__file__).parents[2]


@pytest.fixture
def driftline(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments, code=0, **options):
        done = subprocess.run(
            [sys.executable, "-m", "infra", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **options,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def _object(done):
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.kafka
def test_topics_are_created_listed_with_their_records_and_deleted(driftline, kafka, topic_prefix):
    where = ["--bootstrap", kafka.bootstrap, "--topic-prefix", topic_prefix]
    names = [spec.name for spec in Topics(topic_prefix).specs()]
    listed = _object(driftline("topics", "list", *where, "--json"))
    assert listed["meta"] == {"bootstrap": kafka.bootstrap, "topic_prefix": topic_prefix}
    assert [row["topic"] for row in listed["rows"]] == names
    assert {row["state"] for row in listed["rows"]} == {"missing"}

    created = _object(driftline("topics", "create", *where, "--partitions", "2", "--json"))
    assert {row["state"] for row in created["rows"]} == {"created"}
    partitions = {row["topic"]: row["partitions"] for row in created["rows"]}
    assert partitions.pop(f"{topic_prefix}trends.v1") == 1, "a broadcast"
    assert set(partitions.values()) == {2}
    with DurableProducer(KafkaSettings(bootstrap=kafka.bootstrap)) as producer:
        producer.send(names[0], b"k", b"v")
        producer.flush_or_raise()
    listed = _object(driftline("topics", "list", *where, "--partitions", "2", "--json"))
    assert {row["state"] for row in listed["rows"]} == {"ok"}
    assert [row["records"] for row in listed["rows"]] == [1] + [0] * (len(names) - 1)

    differs = driftline("topics", "create", *where, "--partitions", "3", code=1)
    assert f"{names[0]} has 2 partitions, the settings want 3" in differs.stderr
    assert "has 2 partitions" in driftline("topics", "list", *where, "--partitions", "3").stdout

    refused = driftline("topics", "delete", *where, code=1, input="n\n")
    assert names[0] in refused.stderr
    deleted = _object(driftline("topics", "delete", *where, "--yes", "--json"))
    assert sorted(row["topic"] for row in deleted["rows"]) == sorted(names)
    assert _object(driftline("topics", "delete", *where, "--json"))["rows"] == []


def test_topics_without_a_cluster_say_which_setting_to_set(driftline):
    assert "kafka.bootstrap" in driftline("topics", "list", code=1).stderr


def test_config_shows_each_value_with_its_source_and_meaning_but_no_secret(driftline, tmp_path, monkeypatch):
    (tmp_path / "driftline.toml").write_text('[kafka]\ntopic_prefix = "mine."\nsasl_password = "s3cret"\n')
    monkeypatch.setenv("DRIFTLINE_KAFKA__BOOTSTRAP", "host:1")
    done = driftline("config", "--json")
    found = _object(done)
    assert found["meta"]["file"] == str(tmp_path / "driftline.toml")
    rows = {row["key"]: row for row in found["rows"]}
    assert list(rows["dataset"]) == ["key", "value", "from", "meaning"]
    assert (rows["kafka.topic_prefix"]["value"], rows["kafka.topic_prefix"]["from"]) == ("mine.", "file")
    assert (rows["kafka.bootstrap"]["value"], rows["kafka.bootstrap"]["from"]) == ("host:1", "environment")
    assert rows["kafka.partitions"]["from"] == "default"
    assert all(row["meaning"] for row in rows.values())
    assert rows["kafka.sasl_password"]["value"] == "**********"
    for text in (done.stdout, driftline("config").stdout):
        assert "s3cret" not in text


def test_config_with_an_unknown_key_names_it(driftline, tmp_path):
    (tmp_path / "driftline.toml").write_text("colour = 1\n")
    assert "colour" in driftline("config", code=2).stderr
