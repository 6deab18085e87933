"""The last trainings of small models, in a process beside the training.

The SRM's epochs over both periods and the second SRM take a third of a training on one core, and nothing but its end
waits for them. torch has one generator of random numbers for a whole process, so a thread would not do: no bundle
could be made again from its seed. The process leaves what it trained in the training's checkpoints, where
`train_network` and `go_on` find it; what it does not get done, they do themselves.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec
import structlog
import torch

from cloud_worker.training.options import Progress, silent
from cloud_worker.training.run import Run
from cloud_worker.training.srm_trainings import second_to_the_end, srm_to_the_end, train_second, train_srm

PARENT_GONE: Final = 9
"""Exit code."""
LEAST: Final = 20_000
"""Interactions; with fewer, a process takes longer to start than it saves."""

log = structlog.get_logger(__name__)


class SrmProcess:
    """Does everything that is left once the SRM is trained on the training period.

    Parameters
    ----------
    run
        Its checkpoints have the SRM.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def follow(self) -> None:
        """Start it, tell of its progress, and return when it is done; at once where it is not worth it."""
        run = self._run
        left = run.options.retrain or run.options.controls
        if self._ended.is_set() or not left or run.device.type != "cpu" or len(run.histories.items) < LEAST:
            return
        path = os.pathsep.join(each or str(Path.cwd()) for each in sys.path)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for the training, which ends this process too
            )
        except OSError as exc:
            log.warning("no process can be started to train the SRMs; they are trained here", cause=str(exc))
            return
        self._process = process
        with contextlib.suppress(BrokenPipeError), process:  # its exit code says why
            try:
                self._talk(process)
            except BaseException:
                process.kill()
                raise
        if process.returncode and not self._ended.is_set():
            log.warning("the process that trains the SRMs failed; they are trained here", status=process.returncode)

    def _talk(self, process: subprocess.Popen[bytes]) -> None:
        if self._ended.is_set():  # in the meantime
            process.kill()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(pickle.dumps(replace(self._run, on_progress=silent)))
        process.stdin.flush()  # and left open: where it ends, the process ends
        for line in process.stdout:
            self._run.on_progress(msgspec.json.decode(line, type=Progress))

    def end(self) -> None:
        """Stop it. Any thread may call."""
        self._ended.set()
        if (process := self._process) is not None:
            process.kill()


def _die_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(PARENT_GONE)


def _main() -> None:
    torch.set_num_threads(1)  # as in the training's own process
    pipe = os.dup(1)
    os.dup2(2, 1)  # whoever prints does not speak to the parent
    run: Run = pickle.load(sys.stdin.buffer)  # noqa: S301 - of the parent, through a pipe
    threading.Thread(target=_die_with_parent, daemon=True).start()
    run = replace(run, on_progress=lambda told: _tell(pipe, told))
    if run.options.retrain:
        srm_to_the_end(run, train_srm(run))
    if run.options.controls:
        second = train_second(run)
        if run.options.retrain:
            second_to_the_end(run, second)
    os._exit(0)  # the thread that waits for the parent's death holds stdin: an orderly end would wait for it


def _tell(pipe: int, told: Progress) -> None:
    os.write(pipe, msgspec.json.encode(told) + b"\n")


if __name__ == "__main__":
    _main()
