"""A real PostgreSQL on loopback for tests: the Debian package's, run as a user without rights, in a folder of its own.

PostgreSQL refuses to run as root; then it runs as the package's user, by util-linux's `setpriv`. Measured on 2 busy
cores: 5 s from nothing to an answer.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg2

from tests.support.guarded import Guarded, free_ports
from tests.support.missing import MissingTool

_READY_S_MAX = 60.0
_USER = "postgres"


class PostgresServer:
    """From `start` to `stop`."""

    def __init__(self) -> None:
        """Raises MissingTool."""
        self._programs = _programs()
        self._as_user = _as_user()
        (self.port,) = free_ports(1)
        # Not in pytest's folder, which only this process's user may enter.
        self._folder = Path(tempfile.mkdtemp(prefix="k2-postgres-"))
        self._server: Guarded | None = None

    def start(self) -> None:
        """Return when it answers."""
        data = self._folder / "data"
        if self._as_user:
            user = pwd.getpwnam(_USER)
            os.chown(self._folder, user.pw_uid, user.pw_gid)
        initdb = [*self._as_user, str(self._programs / "initdb"), "-D", str(data), "-U", "k2", "-A", "trust", "-N"]
        done = subprocess.run(initdb, capture_output=True, text=True, check=False, cwd=self._folder)
        if done.returncode:
            self.stop()
            raise RuntimeError(f"initdb failed: {done.stderr[-1000:]}")
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        command = [*self._as_user, str(self._programs / "postgres"), "-D", str(data), "-p", str(self.port)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        self._server = Guarded(command, self._folder / "said.log")
        self._server.start()
        deadline_s = time.monotonic() + _READY_S_MAX
        while True:
            try:
                psycopg2.connect(self._dsn).close()
                return
            except psycopg2.OperationalError:
                if not self._server.running or time.monotonic() > deadline_s:
                    said = self._server.last_words()
                    self.stop()
                    raise RuntimeError(f"PostgreSQL did not come up: {said}") from None
                time.sleep(0.05)

    @property
    def uri(self) -> str:
        """For PyIceberg's SQL catalog."""
        return f"postgresql+psycopg2://k2@127.0.0.1:{self.port}/postgres"

    def stop(self) -> None:
        """Idempotent."""
        if self._server is not None:
            self._server.end(signal.SIGINT)  # its word for: now, without waiting for clients
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _dsn(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=k2 dbname=postgres"


def _programs() -> Path:
    """The folder of `initdb` and `postgres`, which Debian does not put on the path."""
    found = [Path(program).resolve().parent for program in [shutil.which("initdb")] if program]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in found:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise MissingTool("PostgreSQL's server is not installed")


def _as_user() -> list[str]:
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        raise MissingTool("PostgreSQL does not run as root, and there is no setpriv to run it as somebody else")
    try:
        pwd.getpwnam(_USER)
    except KeyError:
        raise MissingTool(f"PostgreSQL does not run as root, and there is no user {_USER}") from None
    return ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--init-groups", "--"]
