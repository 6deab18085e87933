"""Where things lie under `home`, and how one process hands its settings to another."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, SecretStr

from streams.settings import ENV_PREFIX, Settings


@dataclass(frozen=True)
class Workspace:
    """Folders under the setting `home`."""

    home: Path

    @property
    def kafka(self) -> Path:
        """Data of the broker that Driftline starts; a second run goes on with it."""
        return self.home / "kafka"

    def run(self, name: str) -> Path:
        """Logs, status files and device state of one run."""
        return self.home / "runs" / name


def new_run_name(kind: str) -> str:
    """Name of a run: unique, sorts by time, fit for a topic prefix."""
    return f"{kind}-{datetime.now().astimezone():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def as_environment(settings: Settings) -> dict[str, str]:
    """Every setting as the variable that gives it to a child process, whatever stands in its file or environment."""
    variables: dict[str, str] = {}

    def walk(model: BaseModel, front: str) -> None:
        for name in type(model).model_fields:
            value = getattr(model, name)
            if isinstance(value, BaseModel):
                walk(value, f"{front}{name.upper()}__")
            elif value is not None:
                plain = value.get_secret_value() if isinstance(value, SecretStr) else value
                variables[f"{front}{name.upper()}"] = str(plain.absolute() if isinstance(plain, Path) else plain)

    walk(settings, ENV_PREFIX)
    return variables
