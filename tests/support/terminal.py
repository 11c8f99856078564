"""`k2 ...` at a pseudo-terminal, as a person has it: keys go in, and what is shown comes out as text."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

CTRL_C, CTRL_D, TAB, ENTER, UP = "\x03", "\x04", "\t", "\r", "\x1b[A"
#: The child takes the terminal as its own, so that Ctrl-C is a signal to it while nobody reads keys.
_OWN = (
    # Whoever was started in the background ignores Ctrl-C, and so would all that it starts.
    "import fcntl, os, signal, sys, termios; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, '-m', 'k2.cli', *sys.argv[1:]])"
)
_ESCAPES = re.compile(r"\x1b\[[0-9;?<>=]*[A-Za-z@]|\x1b\][^\x07]*\x07|\x1b[=>()][A-Z0-9]?")


class Terminal:
    """The child, and all that it has shown. `raw` has the escape sequences too."""

    def __init__(
        self, *arguments: str, columns: int = 100, rows: int = 30, env: Mapping[str, str] | None = None
    ) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self._child = subprocess.Popen(
            [sys.executable, "-c", _OWN, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # Nobody answers prompt_toolkit's question where the cursor is.
            env={**plain, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **(env or {})},
        )
        os.close(slave)
        self.raw = b""
        self._mark = 0
        self._said = threading.Condition()
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    @property
    def text(self) -> str:
        """All that was shown, without escape sequences."""
        return _ESCAPES.sub("", self.raw.decode(errors="replace")).replace("\r", "")

    def type(self, text: str) -> None:
        """Press these keys. What is shown from now on is what `sees` looks at."""
        with self._said:
            self._mark = len(self.text)
        os.write(self._master, text.encode())

    def sees(self, pattern: str, timeout_s: float = 90.0) -> str:
        """Waits until what was shown since the last key matches; gives what matched."""
        with self._said:
            self._said.wait_for(lambda: re.search(pattern, self.text[self._mark :]) or not self._running, timeout_s)
            found = re.search(pattern, self.text[self._mark :])
        assert found is not None, f"{pattern!r} was never shown: {self.text[self._mark :][-2000:]}"
        return found[0]

    def ends(self, timeout_s: float = 60.0) -> int:
        """Waits for the child's end; its exit code."""
        code = self._child.wait(timeout_s)
        self._listener.join()
        return code

    def signal(self, number: int) -> None:
        self._child.send_signal(number)

    def close(self) -> None:
        """Kill what still runs."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGKILL)
            self._child.wait()
        self._listener.join()
        os.close(self._master)

    @property
    def _running(self) -> bool:
        return self._child.poll() is None

    def _listen(self) -> None:
        while True:
            try:
                read = os.read(self._master, 65_536)
            except OSError:  # how Linux says that the other end is closed
                read = b""
            with self._said:
                self.raw += read
                self._said.notify_all()
            if not read:
                return


@contextmanager
def terminal(*arguments: str, columns: int = 100, env: Mapping[str, str] | None = None) -> Iterator[Terminal]:
    """One that is gone at the end."""
    opened = Terminal(*arguments, columns=columns, env=env)
    try:
        yield opened
    finally:
        opened.close()
