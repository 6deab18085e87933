"""One first run of the demo, which trains the bundle that the other end-to-end tests of the command use, too."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.command import Command, import_tiny


@dataclass(frozen=True)
class FirstDemo:
    """A home with a dataset, a bundle and a broker's data, and what the demo that made them said."""

    command: Command
    done: subprocess.CompletedProcess[str]

    def copy(self, home: Path, encoder_exports: Path) -> Command:
        """Another home with the same dataset and bundle."""
        for folder in ("datasets", "bundles"):
            shutil.copytree(self.command.home / folder, home / folder)
        return Command(home, encoder_exports)


@pytest.fixture(scope="session")
def first_demo(kafka_installed: None, tmp_path_factory: pytest.TempPathFactory) -> FirstDemo:
    """A demo of default arms in an empty home, just as a user's first one; only the dataset is small."""
    place = tmp_path_factory.mktemp("demo")
    command = Command(place / "home")
    import_tiny(command, place)
    return FirstDemo(command, command.run("demo", "--dataset", "tiny", "--events", "300", "--json", timeout_s=900))
