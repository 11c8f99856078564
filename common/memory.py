"""How much memory this process has, and how much it may have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_STATM: Final = Path("/proc/self/statm")
_CGROUP_MEMORY: Final = Path("/sys/fs/cgroup/memory.max")


def memory_limit_bytes() -> int:
    """What this process may have: the container's limit (cgroup v2), else the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(int(_CGROUP_MEMORY.read_text()), machine)
    except (OSError, ValueError):  # no such file, or "max"
        return machine


def resident_bytes() -> int | None:
    """This process's resident size; None where /proc does not tell it."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
