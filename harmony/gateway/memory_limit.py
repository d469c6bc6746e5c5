"""How much memory there is to divide: that of the machine, or of the container that this process is in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["MINIMUM_HELD_BYTES", "SHARE", "default_held_bytes"]

MINIMUM_HELD_BYTES: Final = 256 * 1024 * 1024
SHARE: Final = 4
"""One part in so many: the others are for the program, the index's pages, the kernel's buffers and everybody else."""
_CONTAINER = Path("/sys/fs/cgroup/memory.max")  # cgroup v2, as it is seen from within


def default_held_bytes() -> int:
    """A quarter of the memory, and at least MINIMUM_HELD_BYTES."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        text = _CONTAINER.read_text().strip()
    except OSError:
        text = ""
    if text.isdecimal():  # else "max"
        found.append(int(text))
    return max(MINIMUM_HELD_BYTES, min(found) // SHARE)
