import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.errors import SettingsError
from streams.settings import Settings, describe, load_settings


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """An empty folder and no DRIFTLINE_* of the machine's own."""
    import os

    for name in list(os.environ):
        if name.upper().startswith("DRIFTLINE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def _file(tmp_path, text, name="driftline.toml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_without_anything_the_defaults_hold():
    assert load_settings().kafka.partitions == 4
    assert load_settings().kafka.bootstrap == ""


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path, monkeypatch):
    _file(
        tmp_path,
        'dataset = "from-file"\n[kafka]\nbootstrap = "file:1"\npartitions = 7\ntopic_prefix = "file."\n',
    )
    monkeypatch.setenv("DRIFTLINE_KAFKA__BOOTSTRAP", "env:1")
    monkeypatch.setenv("DRIFTLINE_KAFKA__TOPIC_PREFIX", "env.")
    found = load_settings(flags={"kafka.topic_prefix": "flag.", "kafka.partitions": None})
    assert found.dataset == "from-file"
    assert found.kafka.partitions == 7, "a flag that was not given changes nothing"
    assert found.kafka.bootstrap == "env:1"
    assert found.kafka.topic_prefix == "flag."


def test_a_named_file_is_read_instead_of_the_one_here(tmp_path, monkeypatch):
    _file(tmp_path, 'dataset = "here"')
    other = _file(tmp_path, 'dataset = "there"', "other.toml")
    third = _file(tmp_path, 'dataset = "flag"', "third.toml")
    monkeypatch.setenv("DRIFTLINE_CONFIG", str(other))
    assert load_settings().dataset == "there"
    assert load_settings(third).dataset == "flag"


def test_a_file_that_is_named_but_missing_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match=r"none\.toml does not exist"):
        load_settings(tmp_path / "none.toml")
    monkeypatch.setenv("DRIFTLINE_CONFIG", "none.toml")
    with pytest.raises(SettingsError, match=r"none\.toml does not exist"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "key"),
    [("colour = 1", "colour"), ("[kafka]\nbootstraps = 'x'", "kafka.bootstraps"), ("[kafk]\nx=1", "kafk")],
)
def test_an_unknown_key_in_the_file_is_refused_by_name(tmp_path, text, key):
    _file(tmp_path, text)
    with pytest.raises(SettingsError, match=f"setting {key}.*driftline config"):
        load_settings()


@pytest.mark.parametrize("name", ["DRIFTLINE_COLOUR", "DRIFTLINE_KAFKA__BOOTSTRAPS", "driftline_kafka_bootstrap"])
def test_an_unknown_variable_is_refused_by_name(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=name):
        load_settings()


@pytest.mark.parametrize("key", ["colour", "kafka.bootstraps"])
def test_an_unknown_flag_is_refused_by_name(key):
    with pytest.raises(SettingsError, match=f"setting {key}"):
        load_settings(flags={key: "1"})


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ({"kafka.partitions": 0}, "kafka.partitions"),
        ({"kafka.partitions": "many"}, "kafka.partitions"),
        ({"log_level": "loud"}, "log_level"),
        ({"http.port": 70000}, "http.port"),
        ({"kafka.security_protocol": "TLS"}, "kafka.security_protocol: input should be 'PLAINTEXT'"),
        ({"kafka.bootstrap": "kafka"}, "kafka.bootstrap: value error, 'kafka' is no address"),
        ({"kafka.bootstrap": "a:1,b:kafka"}, "kafka.bootstrap: value error, 'b:kafka' is no address"),
        ({"kafka.bootstrap": "a:70000"}, "kafka.bootstrap"),
        ({"kafka.bootstrap": ","}, "kafka.bootstrap"),
        ({"kafka.bootstrap": "a:1;b:2"}, "kafka.bootstrap"),
        ({"kafka.bootstrap": "http://a:1"}, "kafka.bootstrap"),
        ({"kafka.topic_prefix": "my topics/"}, "kafka.topic_prefix"),
        ({"device.group": ""}, "device.group"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_its_key(flags, key):
    with pytest.raises(SettingsError, match=f"setting {key}"):
        load_settings(flags=flags)


def test_a_file_that_is_not_toml_is_named(tmp_path):
    _file(tmp_path, "kafka = {")
    with pytest.raises(SettingsError, match=r"driftline\.toml"):
        load_settings()


def test_secrets_are_masked_wherever_settings_are_shown(monkeypatch):
    monkeypatch.setenv("DRIFTLINE_KAFKA__SASL_PASSWORD", "s3cret-kafka")
    monkeypatch.setenv("DRIFTLINE_CLOUD__ENCODER_API_KEY", "s3cret-key")
    found = load_settings()
    assert found.kafka.sasl_password.get_secret_value() == "s3cret-kafka"
    shown = str(describe(found)) + repr(found) + str(found) + found.model_dump_json()
    assert "s3cret" not in shown


def test_a_bad_secret_is_not_repeated_in_the_error(tmp_path):
    _file(tmp_path, "[kafka]\nsasl_password = ['s3cret']")
    with pytest.raises(SettingsError) as told:
        load_settings()
    assert "s3cret" not in str(told.value)


def test_every_key_is_described_in_words():
    for key, _, meaning in describe(Settings()):
        assert len(meaning) > 8, key


def test_settings_do_not_change_under_a_running_process():
    found = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        found.kafka.partitions = 9


@given(st.integers(1, 1000), st.sampled_from(["a:1", "a:1,b:2", "[::1]:9092", "kafka-0.kafka_x.svc:9092"]))
def test_flags_arrive_as_they_were_given(partitions, bootstrap):
    found = load_settings(flags={"kafka.partitions": partitions, "kafka.bootstrap": bootstrap}, environ={})
    assert (found.kafka.partitions, found.kafka.bootstrap) == (partitions, bootstrap)
