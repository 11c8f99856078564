"""The C library keeps few heaps, whatever the number of threads, unless the environment says otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has heaps for threads")

#: Eight threads that hold a piece of memory each; then glibc says which heaps there are.
_SCRIPT = """
import ctypes, sys, threading
from k2.heap import keep_few_heaps
print(keep_few_heaps() if {asked} else None, flush=True)
libc, all_there = ctypes.CDLL(None), threading.Barrier(9)
def hold():
    libc.malloc(1_000)
    all_there.wait()
    all_there.wait()
threads = [threading.Thread(target=hold) for _ in range(8)]
for thread in threads:
    thread.start()
all_there.wait()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
all_there.wait()
"""


def said(*, asked: bool, **env: str) -> tuple[str, int]:
    """What the function answered in a process of its own, and how many heaps that had."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", _SCRIPT.format(asked=asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=plain | env)
    answer, _, heaps = done.stdout.partition("\n")
    return answer, heaps.count("<heap nr=")


def test_threads_share_two_heaps() -> None:
    assert said(asked=True) == ("True", 2)
    assert said(asked=False)[1] > 2


def test_who_has_chosen_is_left_alone() -> None:
    answer, heaps = said(asked=True, MALLOC_ARENA_MAX="5")
    assert (answer, heaps) == ("False", 5)
