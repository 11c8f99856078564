"""A real Apache Kafka (KRaft, one node, loopback) for tests: its jars from Maven Central, once, and a JVM of its own.

Needs `java` 17 or newer and `mvn` on the path. The jars lie in the user's cache folder afterwards (43 MB), so only the
first run needs the network. Measured on 2 cores: jars 5 s, format 2 s, start to ready 4 s, 320 MB resident.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import k2.broker_guard
from common.errors import BrokerError
from common.log import KafkaLog
from common.settings import KafkaSettings

KAFKA_VERSION = os.environ.get("K2_TEST_KAFKA_VERSION", "4.4.0")
_JAVA_VERSION_MIN = 17
_READY_S_MAX = 90.0
_STOP_S_MAX = 20.0

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>k2.tests</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{version}</version>
    </dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""

_PROPERTIES = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={log_dir}
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.retention.check.interval.ms=200
log.initial.task.delay.ms=100
file.delete.delay.ms=100
"""


class KafkaUnavailable(Exception):
    """A real Kafka cannot be had on this machine; the text says why."""


def java_and_maven() -> None:
    """Raises KafkaUnavailable when Java or Maven are missing or too old."""
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise KafkaUnavailable(f"{tool} is not on the path")
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', said)
    if found is None or int(found[1]) < _JAVA_VERSION_MIN:
        raise KafkaUnavailable(
            f"Kafka {KAFKA_VERSION} needs Java {_JAVA_VERSION_MIN}, here is: {said.splitlines()[:1]}"
        )


def jars() -> Path:
    """The folder with Kafka's jars, resolved with Maven on first use. Raises KafkaUnavailable."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "k2"
    complete = cache / f"kafka-{KAFKA_VERSION}"
    if complete.is_dir():
        return complete
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        pom, filling = Path(work) / "pom.xml", Path(work) / "jars"
        pom.write_text(_POM.format(version=KAFKA_VERSION))
        goal = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
        command = ["mvn", "-q", "-B", "-f", str(pom), goal, f"-DoutputDirectory={filling}", "-DincludeScope=runtime"]
        resolved = subprocess.run(command, capture_output=True, text=True, check=False)
        if resolved.returncode != 0:
            lines = (resolved.stdout + resolved.stderr).strip().splitlines() or ["it said nothing"]
            raise KafkaUnavailable(f"Maven could not resolve Kafka {KAFKA_VERSION}: {lines[0][:300]}")
        try:
            filling.rename(complete)  # atomic: what lies in the cache is whole
        except OSError:
            if not complete.is_dir():  # else another process was first
                raise
    return complete


class KafkaServer:
    """One node with a data folder of its own; may be stopped, killed and started again on the same ports and data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._classpath = f"{jars()}/*"
        self._guard: subprocess.Popen[bytes] | None = None
        self._properties = folder / "server.properties"
        self._out = folder / "server.log"
        self.pid = 0
        self.port, controller_port = _free_ports(2)
        self._properties.write_text(
            _PROPERTIES.format(port=self.port, controller_port=controller_port, log_dir=folder / "data")
        )
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self._java("kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "-c", str(self._properties))

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Return when the broker answers."""
        guard = [sys.executable, "-I", "-S", k2.broker_guard.__file__, str(os.getpid())]
        with self._out.open("ab") as out:
            self._guard = subprocess.Popen(
                [*guard, *self._command("kafka.Kafka", str(self._properties))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                start_new_session=True,
            )
        assert self._guard.stdout is not None
        self.pid = int(self._guard.stdout.readline())
        log = KafkaLog(KafkaSettings.load(bootstrap_servers=self.bootstrap_servers, request_timeout_ms=1_000))
        deadline_s = time.monotonic() + _READY_S_MAX
        while True:
            try:
                log.cluster_id()
                return
            except BrokerError:
                if self._guard.poll() is not None or time.monotonic() > deadline_s:
                    said = self._out.read_text(errors="replace")[-2000:]
                    self.stop()
                    raise RuntimeError(f"Kafka did not come up: {said}") from None

    def stop(self) -> None:
        """End the broker cleanly, by its process id."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the broker with SIGKILL."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
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

    def _command(self, main_class: str, *arguments: str) -> list[str]:
        options = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        options.append("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
        return ["java", *options, "-cp", self._classpath, main_class, *arguments]

    def _java(self, main_class: str, *arguments: str) -> None:
        done = subprocess.run(self._command(main_class, *arguments), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{main_class} failed: {(done.stdout + done.stderr)[-2000:]}")


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
