"""Few heaps, whatever the number of threads; pieces of large results kept, unless the environment says otherwise."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has heaps for threads")

#: Eight threads that hold a piece of memory each; then glibc says which heaps there are.
_SCRIPT = """
import ctypes, sys, threading
from common.heap import heap
print(heap.keep_few() if {asked} else None, flush=True)
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


#: A piece of a megabyte, before, in and behind each of two large results at a time: is it the system's own?
_PIECES = """
import ctypes
from common.heap import heap
if {asked}:
    assert heap.keep_few()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def say():
    libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
    libc.fflush(None)
for step in (None, heap.begin_large_result, heap.begin_large_result, heap.end_large_result, heap.end_large_result):
    if step is not None:
        step()
    say()
    libc.malloc(1 << 20)
    say()
"""


def own_pieces(*, asked: bool) -> list[int]:
    """At each step, how many more pieces are the system's own behind a malloc of a megabyte."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", _PIECES.format(asked=asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=plain)
    counts = [int(count) for count in re.findall(r'^<total type="mmap" count="(\d+)"', done.stdout, re.MULTILINE)]
    return [after - before for before, after in zip(counts[0::2], counts[1::2], strict=True)]


def test_pieces_of_large_results_are_kept_while_there_is_one() -> None:
    assert own_pieces(asked=True) == [1, 0, 0, 0, 1]


def test_without_being_asked_to_nothing_is_told() -> None:
    assert own_pieces(asked=False) == [1, 1, 1, 1, 1]
