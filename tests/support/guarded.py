"""A server for tests as a child process that ends with this one, however this one ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import k2.broker_guard

_STOP_S_MAX = 20.0


class Guarded:
    """A command, from `start` to `end`; what it says goes to a file."""

    def __init__(self, command: Sequence[str], said: Path, *, env: Mapping[str, str] | None = None) -> None:
        self._command = command
        self._env = env
        self._guard: subprocess.Popen[bytes] | None = None
        self.said = said
        self.pid = 0

    @property
    def running(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    def start(self) -> None:
        guard = [sys.executable, "-I", "-S", k2.broker_guard.__file__, str(os.getpid())]
        with self.said.open("ab") as out:
            self._guard = subprocess.Popen(
                [*guard, *self._command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                start_new_session=True,
                env=None if self._env is None else {**os.environ, **self._env},
            )
        assert self._guard.stdout is not None
        self.pid = int(self._guard.stdout.readline())

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Send the signal, and wait. Idempotent."""
        if self._guard is None:
            return
        if self._guard.poll() is None:
            os.kill(self.pid, how)
        assert self._guard.stdin is not None and self._guard.stdout is not None
        with contextlib.suppress(subprocess.TimeoutExpired):  # then closing the pipe makes the guard kill it
            self._guard.wait(_STOP_S_MAX)
        self._guard.stdin.close()
        self._guard.wait(_STOP_S_MAX)
        self._guard.stdout.close()
        self._guard = None

    def last_words(self) -> str:
        return self.said.read_text(errors="replace")[-2000:] if self.said.exists() else ""


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
