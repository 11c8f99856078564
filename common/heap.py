"""How the C library of a process of K2 keeps memory that was freed: in few places, and large pieces only while a large
result is made.

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
import threading
from collections.abc import Mapping
from typing import Final

from common.clock import Clock, SystemClock

#: glibc's names for mallopt (malloc.h).
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
#: Heaps, where glibc would make eight a core.
_HEAPS_MAX: Final = 2
#: From this size on a piece is the system's own, and goes back when it is freed; and so much free memory is kept at the
#: end of a heap. It is where glibc begins, before it learns; saying so keeps it there.
_USUAL: Final = {_M_MMAP_THRESHOLD: 128 * 1024, _M_TRIM_THRESHOLD: 128 * 1024}
#: The same while a large result is made.
_LARGE: Final = {_M_MMAP_THRESHOLD: 8 * 1024**2, _M_TRIM_THRESHOLD: 128 * 1024**2}
#: So far apart is free memory given back.
_GIVE_BACK_S: Final = 1.0
#: Who sets one of these has chosen, and is left alone.
_CHOSEN: Final = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


class Heap:
    """What the C library was told; it has one setting for all of a process. Thread-safe."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._ours = False
        self._large = 0
        self._given_back_s = -_GIVE_BACK_S

    def keep_few(self) -> bool:
        """Have few heaps from now on; called before there are threads. False where the C library is not glibc, or where
        the environment says how it is to be."""
        if sys.platform != "linux" or any(name in os.environ for name in _CHOSEN):
            return False
        if getattr(ctypes.CDLL(None), "mallopt", None) is None:  # another C library, as musl
            return False
        self._ours = _told({_M_ARENA_MAX: _HEAPS_MAX, **_USUAL})
        return self._ours

    def begin_large_result(self) -> None:
        """From now on keep what it is made of for what comes next; without `keep_few` nothing is done.

        A column of a batch is up to a megabyte, and there for some milliseconds. With each one the system's own, a scan
        of 10 million rows took a server 1.4 to 1.8 s of processor time and without 1.2 to 1.4: pages were handed out,
        cleared and taken back. With such pieces kept all of the time, a server that was asked point queries grew to
        2.2 GB in three minutes of a market, for what stays lay down among them.
        """
        with self._lock:
            self._large += 1
            if self._ours and self._large == 1:
                _told(_LARGE)

    def end_large_result(self) -> None:
        """Once for each that began; behind the last one all is as before, and what is free goes back."""
        with self._lock:
            self._large -= 1
            if not self._ours:
                return
            if self._large == 0:
                _told(_USUAL)
            now_s = self._clock.monotonic_s()
            if now_s - self._given_back_s < _GIVE_BACK_S:
                return
            self._given_back_s = now_s
        ctypes.CDLL(None).malloc_trim(0)


#: That of this process.
heap: Final = Heap()


def _told(options: Mapping[int, int]) -> bool:
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, value) == 1 for option, value in options.items())
