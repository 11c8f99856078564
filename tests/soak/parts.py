"""K2's parts as processes on one broker and one lake; any of them can be killed and started again."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.errors import K2Error
from common.settings import KafkaSettings, LakeSettings
from k2.broker import EmbeddedBroker
from tests.integration.kafka_server import KafkaServer
from tests.support.maven import java_and_maven
from tests.support.missing import MissingTool
from tests.support.processes import Process

#: What a part says when it is up.
_READY = {
    "simulate": r"simulating .* at (ws\S+)",
    "ingest": r"ingesting ",
    "sink": r" -> ",
    "maintain": r"keeping the tables of ",
    "serve": r"Flight SQL at ",
}
_START_S_MAX = 120.0
_STARTS_MAX = 5


@contextlib.contextmanager
def broker(kind: str, folder: Path) -> Iterator[str]:
    """The bootstrap servers of an Apache Kafka or of the embedded broker; it is never killed."""
    if kind == "embedded":
        with EmbeddedBroker() as embedded:
            yield embedded.bootstrap_servers
        return
    java_and_maven()
    folder.mkdir(parents=True)
    server = KafkaServer(folder)
    server.start()
    try:
        yield server.bootstrap_servers
    finally:
        server.stop()


def kind_here() -> str:
    """`kafka` where there is Java and Maven, else `embedded`."""
    try:
        java_and_maven()
    except MissingTool:
        return "embedded"
    return "kafka"


class Parts:
    """The processes by name, `sink-1` and `sink-2` among them."""

    def __init__(
        self,
        bootstrap_servers: str,
        folder: Path,
        *,
        rate: float,
        symbols: int,
        sinks: int,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`env` are settings that win over the soak's own."""
        self.lake = LakeSettings.load(data_dir=folder / "lake")
        self.kafka = KafkaSettings.load(bootstrap_servers=bootstrap_servers)
        self.uri = f"grpc://127.0.0.1:{_free_port()}"
        self._env = {
            "K2_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
            "K2_LAKE_DATA_DIR": str(self.lake.data_dir),
            "K2_TELEMETRY_LOG_LEVEL": "warning",
            "K2_TELEMETRY_LOG_FORMAT": "json",
            # Far more often than anybody would want, so that the jobs meet commits, queries and kills.
            "K2_MAINTENANCE_COMPACT_INTERVAL_S": "3",
            "K2_MAINTENANCE_EXPIRE_INTERVAL_S": "5",
            "K2_MAINTENANCE_MANIFESTS_INTERVAL_S": "15",
            "K2_MAINTENANCE_RETENTION_INTERVAL_S": "30",
            "K2_MAINTENANCE_ORPHANS_INTERVAL_S": "30",
        }
        if sinks > 1:
            self._env["K2_SINK_GROUP"] = "soak"
        self._env |= env or {}
        self._rate, self._symbols = rate, symbols
        self.sinks = [f"sink-{number}" for number in range(1, sinks + 1)]
        self._commands: dict[str, tuple[str, ...]] = {}
        self._running: dict[str, Process] = {}
        self.said: dict[str, list[str]] = {}
        #: How often a part gave up while it was starting.
        self.starts_failed: dict[str, int] = {}

    @property
    def pids(self) -> Mapping[str, int]:
        return {name: process.pid for name, process in list(self._running.items())}

    def start_all(self, *, maintain: bool = True, serve: bool = True) -> None:
        """Start each part and wait until it is up; the simulator first."""
        self._commands["simulate"] = (
            *("simulate", "--port", "0", "--rate", str(self._rate)),
            *("--symbols", str(self._symbols)),
        )
        self.start("simulate")
        found = self._running["simulate"].wait_for(r"simulating (\S+) at (ws\S+)", _START_S_MAX)
        self.start_behind(found[1], found[2], maintain=maintain, serve=serve)

    def start_behind(self, symbols: str, url: str, *, maintain: bool = True, serve: bool = True) -> None:
        """As `start_all`, behind an exchange that is there."""
        for name in self.sinks:
            self._commands[name] = ("sink",)
        self._commands["ingest"] = ("ingest", "binance", "--symbols", symbols, "--url", url)
        if maintain:
            self._commands["maintain"] = ("maintain",)
        if serve:
            self._commands["serve"] = ("serve", "--port", self.uri.rpartition(":")[2])
        for name in self._commands:
            if name != "simulate":
                self.start(name)

    def start(self, name: str) -> None:
        """Start it and wait until it is up; one that gives up before that is started again, as a supervisor would.

        Raises K2Error when it did not come up after some attempts.
        """
        for _attempt in range(_STARTS_MAX):
            process = self._running[name] = Process(*self._commands[name], env=self._env)
            try:
                process.wait_for(_READY[name.partition("-")[0]], _START_S_MAX)
                return
            except AssertionError:
                self.kill(name)
                self.starts_failed[name] = self.starts_failed.get(name, 0) + 1
        raise K2Error(f"{name} did not come up: {''.join(process.lines[-3:]).strip()}")

    def metrics_of(self, name: str) -> str:
        """Where a part that was given a port for its metrics serves them."""
        return self._running[name].wait_for(r"metrics at (\S+)")[1]

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self._running[name].kill()
        self._keep(name)

    def stop(self, name: str) -> int:
        """SIGTERM, and the exit code."""
        code = self._running[name].stop(60)
        self._keep(name)
        del self._running[name]
        return code

    def ended(self) -> list[str]:
        """Those that ended by themselves, with what they said last."""
        return [
            f"{name} ended by itself: {''.join(process.lines[-3:]).strip()}"
            for name, process in self._running.items()
            if not process.running
        ]

    def kill_all(self) -> None:
        for name, process in list(self._running.items()):
            if process.running:
                process.kill()
            self._keep(name)

    def last_lines(self) -> Mapping[str, list[str]]:
        """What each part said, all its lives together, the last hundred lines."""
        return {name: [line.rstrip() for line in lines[-100:]] for name, lines in self.said.items()}

    def _keep(self, name: str) -> None:
        self.said.setdefault(name, []).extend(self._running[name].lines)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
