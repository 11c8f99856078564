"""The process between K2 and its embedded broker: it ends the broker when K2 is gone, however K2 went.

Run by path with a bare interpreter (`python -I -S broker_guard.py <parent pid> <command> ...`), so it imports nothing
but the standard library. Guarantees: the command's process id is written to stdout as one line once it runs; the
command is ended when stdin reaches its end (the pipe that the parent holds open: the kernel closes it whatever ends the
parent, SIGKILL included), or when the parent's process id is no longer ours (a forked child of the parent may hold a
copy of the pipe). On Linux the command also dies with this guard, by PR_SET_PDEATHSIG; that is bound to the thread
which forks, here the main and only one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.25


def _die_with_guard() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Run the command until it or the parent ends; the exit code is the command's, 0 when we ended it."""
    parent_pid, command = int(arguments[0]), arguments[1:]
    on_linux = sys.platform.startswith("linux")
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        preexec_fn=_die_with_guard if on_linux else None,  # noqa: PLW1509 - this process has one thread
    )
    os.write(1, f"{child.pid}\n".encode())
    os.close(1)
    while child.poll() is None:
        readable, _, _ = select.select([0], [], [], _POLL_S)
        if (readable and not os.read(0, 1024)) or os.getppid() != parent_pid:
            child.kill()  # it keeps nothing, so there is nothing to close properly; asked politely it takes seconds
            child.wait()
            return 0
    return child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
