"""A device worker for tests: its settings as one JSON argument, and if asked it kills itself at a checkpoint's step."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

from device_agent.worker import WorkerOptions, run_device_worker
from streams.errors import EXIT_USAGE, SettingsError
from streams.experiment.arms import parse_arms
from streams.log import configure_logging
from streams.settings import load_settings


def main() -> None:
    given = json.loads(sys.argv[1])
    configure_logging("info", "device")
    seen = 0

    def on_step(step: str) -> None:
        nonlocal seen
        if step == given.get("die_at"):
            seen += 1
            if seen == given["die_on"]:
                os.kill(os.getpid(), signal.SIGKILL)

    options = WorkerOptions(
        bundle=Path(given["bundle"]),
        experiment=parse_arms(given["arms"]),
        state_dir=Path(given["state_dir"]),
        status_file=Path(given["status_file"]) if given.get("status_file") else None,
    )
    try:
        run_device_worker(load_settings(flags=given["flags"]), options, on_step=on_step)
    except SettingsError:  # as `driftline device` ends
        traceback.print_exc()
        sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()
