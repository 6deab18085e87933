"""The command `driftline` as a process of its own, a small dataset for it, and what it leaves running."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import psutil

ROOT = Path(__file__).parents[1]
TINY = "tiny"
USERS, EACH, ITEMS = 24, 100, 160
"""2,400 events; of the 480 in the test period each user has 20 or so."""
START_S = 1_600_000_000
GENRES = ("comedy", "drama", "horror", "western", "animation", "war", "romance", "crime")


class Command:
    """`driftline` with a home of its own and no settings from outside.

    Parameters
    ----------
    home
        Its --home.
    encoder_exports
        Folder with exported encoders; the ONNX encoder is used then, which loads in a second.
    """

    def __init__(self, home: Path, encoder_exports: Path | None = None) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("DRIFTLINE_")}
        self._environment |= {"PYTHONPATH": str(ROOT), "DRIFTLINE_DEVICE__MAP_SIZE_GB": "0.25"}
        if encoder_exports is not None:
            self.use_exported_encoder(encoder_exports)

    def use_exported_encoder(self, exports: Path) -> None:
        """From now on encode with the ONNX graph that was exported before."""
        if not (self.home / "onnx").exists():
            (self.home / "onnx").symlink_to(exports, target_is_directory=True)
        self._environment["DRIFTLINE_CLOUD__ENCODER"] = "onnx"

    def start(self, *arguments: str, out: Path, err: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Start it with its output in files."""
        with out.open("wb") as stdout, err.open("wb") as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", "infra", "--home", str(self.home), *arguments],
                cwd=self.home,
                env=self._environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )

    def run(self, *arguments: str, timeout_s: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            [sys.executable, "-m", "infra", "--home", str(self.home), *arguments],
            cwd=self.home,
            env=self._environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def left_running(self) -> list[str]:
        """Command lines of all processes that belong to this home: by argument, working folder or environment."""
        found = []
        home = str(self.home)
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                where = [*words, process.cwd(), process.environ().get("DRIFTLINE_HOME", "")]
            except psutil.Error:
                continue
            if process.pid != os.getpid() and any(home in each for each in where):
                found.append(f"{process.pid} {process.status()} {' '.join(words)}")
        return found


def import_tiny(command: Command, folder: Path) -> None:
    """Write the small dataset as TSV and import it."""
    folder.mkdir(parents=True, exist_ok=True)
    events, items = write_tiny(folder)
    done = command.run("data", "import", "--name", TINY, "--events", str(events), "--items", str(items))
    assert done.returncode == 0, done.stderr


def write_tiny(folder: Path) -> tuple[Path, Path]:
    """Users who stay with a genre for a while and then change it; an item once a user."""
    rng = Random(7)
    rows = []
    for user in range(USERS):
        taste, seconds, seen = rng.randrange(len(GENRES)), rng.randrange(1000), set[int]()
        for _ in range(EACH):
            if rng.random() < 0.1:
                taste = rng.randrange(len(GENRES))
            fresh = [item for item in range(ITEMS) if item not in seen]
            fitting = [item for item in fresh if item % len(GENRES) == taste]
            item = rng.choice(fitting if fitting and rng.random() < 0.8 else fresh)
            seen.add(item)
            seconds += rng.randrange(30, 90)
            rows.append((START_S + seconds, f"u{user}", f"i{item}"))
    rows.sort()
    events, items = folder / "events.tsv", folder / "items.tsv"
    lines = [f"{user}\t{item}\t{time}" for time, user, item in rows]
    events.write_text("\n".join(["user_id\titem_id\ttimestamp", *lines]) + "\n")
    titles = [
        f"i{item}\tA {GENRES[item % 8]} tale, part {item // 8}\t{GENRES[item % 8]}|{GENRES[item % 3]}"
        for item in range(ITEMS)
    ]
    items.write_text("\n".join(["item_id\ttitle\tcategories", *titles]) + "\n")
    return events, items
