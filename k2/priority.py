"""How much of a core a process takes where others want it too."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def stand_back(nice: int) -> None:
    """Have every thread of the process stand back by so much, as nice(1) has it; threads to come do as they begin.

    On Linux each thread has a number of its own, and libraries start some while they are imported.
    """
    own = os.getpriority(os.PRIO_PROCESS, 0)
    threads = [int(thread.name) for thread in Path("/proc/self/task").iterdir()] if sys.platform == "linux" else [0]
    for thread in threads:
        os.setpriority(os.PRIO_PROCESS, thread, min(19, own + nice))
