"""How the C library of a process of K2 keeps memory that was freed: in few places, and large pieces not at all.

glibc gives threads heaps of their own, up to eight a core, and what is freed in one is not there for the others. It
also learns from each large piece that is freed to keep the next one. A part of K2 has dozens of threads, librdkafka's
and its readers' of files, and messages come in pieces of a megabyte: what is held grows towards what every heap held
at its worst. On two cores, after a quarter of an hour of a soak with both as glibc has them, heaps of threads were 161
of a server's 773 MB, and 59 of a sink's 413.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

#: glibc's names for mallopt (malloc.h).
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
#: Heaps, where glibc would make eight a core.
_HEAPS_MAX: Final = 2
#: From this size on a piece is the system's own, and goes back when it is freed. It is where glibc begins, before it
#: learns; saying so keeps it there.
_OWN_PIECE_BYTES: Final = 128 * 1024
#: Who sets one of these has chosen, and is left alone.
_CHOSEN: Final = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_few_heaps() -> bool:
    """Have the C library do so from now on; called before there are threads. False where it is not glibc, or where the
    environment says how it is to be.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _CHOSEN):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library, as musl
        return False
    options = ((_M_ARENA_MAX, _HEAPS_MAX), (_M_MMAP_THRESHOLD, _OWN_PIECE_BYTES))
    return all(mallopt(option, value) == 1 for option, value in options)
