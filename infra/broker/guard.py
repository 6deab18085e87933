"""Watches over one process, Kafka or a worker: when the process that wanted it is gone, so is that one.

Run as a script, by path, with nothing but the standard library::

    guard.py OUTPUT_FILE PARENT_PID GRACE_SECONDS COMMAND...

It starts COMMAND with its output in OUTPUT_FILE and writes its process id to standard output as one line. On
standard input it takes the words ``term`` and ``kill``. When standard input ends, or the parent is no longer
there, however it ended, COMMAND is asked to end and, after the grace period, killed. Should the guard itself be
killed, the system kills COMMAND (Linux). The guard ends with COMMAND and with its status.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG = 1
_LOOK_AROUND_S = 0.5


def _die_with_guard() -> None:
    """Have the system kill the new process when the guard dies; nothing where the system cannot."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _watch(child: subprocess.Popen[bytes], parent: int, grace_s: float) -> None:
    while True:
        ready, _, _ = select.select([0], [], [], _LOOK_AROUND_S)
        words = os.read(0, 4096).split() if ready else [b""]
        # An end of input is the parent's death, unless a fork of it still holds the pipe: so its id is looked at.
        if not words or (os.getppid() != parent):
            break
        if b"kill" in words:
            child.kill()
        elif b"term" in words:
            child.terminate()
    child.terminate()
    deadline = time.monotonic() + grace_s
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    child.kill()


def main(arguments: list[str]) -> int:
    """Run the guard; see the module's docstring for the arguments."""
    output, parent, grace_s, *command = arguments
    with Path(output).open("wb") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=_die_with_guard,  # noqa: PLW1509 - the guard has no threads yet
        )

    def pass_on(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        child.terminate()

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.write(1, f"{child.pid}\n".encode())
    threading.Thread(target=_watch, args=(child, int(parent), float(grace_s)), daemon=True).start()
    status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
