"""Which run of the machine this is: files that were never synced can be trusted only within the one that wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psutil

_KERNEL: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Changes when the machine starts anew; where the kernel does not tell, its start time does."""
    try:
        return _KERNEL.read_text().strip()
    except OSError:
        return f"boot-{int(psutil.boot_time())}"
