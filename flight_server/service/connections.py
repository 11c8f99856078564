"""The last means against a client that holds its connection and does not read: to close it from this side.

gRPC's shutdown waits for every call that is under way, and a call whose client stopped reading is blocked in a write
that nothing else ends; pyarrow offers no deadline for it. A paused result set in an SQL tool is such a client.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

#: Where the system lists this process's open files: Linux, then the BSDs and macOS.
_LISTS = (Path("/proc/self/fd"), Path("/dev/fd"))


def close_accepted(port: int) -> int:
    """Shut down each TCP connection that this process accepted on `port`; returns how many there were."""
    closed = 0
    for name in _open_files():
        try:
            copy = os.dup(int(name))
        except OSError:
            continue  # closed since it was listed
        try:
            connection = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)  # not a socket
            continue
        with connection:
            try:
                if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getsockname()[1] == port:
                    connection.getpeername()  # raises for the listening socket, which stays
                    connection.shutdown(socket.SHUT_RDWR)
                    closed += 1
            except OSError:
                continue
    return closed


def _open_files() -> list[str]:
    for folder in _LISTS:
        if folder.is_dir():
            return [entry.name for entry in folder.iterdir()]
    return []
