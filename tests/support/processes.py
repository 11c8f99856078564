"""K2's parts as processes of their own, started as a user starts them, ended by signal or by SIGKILL."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Process:
    """`k2 ...` as a child; everything it says on stderr is kept. With `module` another one of ours, told lines."""

    def __init__(self, *arguments: str, env: Mapping[str, str], module: str | None = None) -> None:
        self.arguments = arguments
        self.lines: list[str] = []
        self._said = threading.Condition()
        self._child = subprocess.Popen(
            [sys.executable, "-m", module or "k2.cli", *arguments],
            stdin=None if module is None else subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def wait_for(self, pattern: str, timeout_s: float = 60.0) -> re.Match[str]:
        """The first line that matches, said already or yet to come."""

        def found() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        with self._said:
            self._said.wait_for(lambda: found() is not None or not self.running, timeout_s)
        match = found()
        assert match is not None, f"k2 {' '.join(self.arguments)} never said {pattern!r}: {''.join(self.lines[-20:])}"
        return match

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def kill(self) -> None:
        """SIGKILL: no chance to clean up."""
        self._child.kill()
        self._end(None)

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM, and the exit code."""
        if self.running:
            self._child.send_signal(signal.SIGTERM)
        return self._end(timeout_s)

    def wait(self, timeout_s: float) -> int:
        return self._end(timeout_s)

    def _end(self, timeout_s: float | None) -> int:
        code = self._child.wait(timeout_s)
        self._listener.join()
        if self._child.stdin is not None:
            self._child.stdin.close()
        return code

    def _listen(self) -> None:
        assert self._child.stderr is not None
        for line in self._child.stderr:
            with self._said:
                self.lines.append(line)
                self._said.notify_all()
        with self._said:
            self._said.notify_all()


@contextmanager
def started(*arguments: str, env: Mapping[str, str]) -> Iterator[Process]:
    """A process that is killed at the end if it still runs."""
    process = Process(*arguments, env=env)
    try:
        yield process
    finally:
        if process.running:
            process.kill()
