"""A real Apache Kafka (KRaft, loopback) for tests: its jars from Maven Central, once, and a JVM for each node.

Needs `java` 17 or newer and `mvn` on the path. The jars lie in the user's cache folder afterwards (43 MB), so only the
first run needs the network. Measured on 2 cores: jars 5 s, format 2 s, start to ready 4 s, 320 MB resident.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from common.errors import BrokerError
from common.log import KafkaLog
from common.settings import KafkaSettings
from tests.support import maven
from tests.support.guarded import Guarded, free_ports

KAFKA_VERSION = os.environ.get("K2_TEST_KAFKA_VERSION", "4.4.0")
_ARTIFACTS = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", "org.slf4j:slf4j-simple:1.7.36")
_READY_S_MAX = 90.0

_PROPERTIES = """process.roles=broker,controller
node.id={node_id}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={log_dir}
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor={replicas}
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync_min}
transaction.abort.timed.out.transaction.cleanup.interval.ms=500
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync_min}
min.insync.replicas={in_sync_min}
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.retention.check.interval.ms=200
log.initial.task.delay.ms=100
file.delete.delay.ms=100
"""


def jars() -> Path:
    """The folder with Kafka's jars, resolved with Maven on first use. Raises MissingTool."""
    maven.java_and_maven()
    return maven.jars(f"kafka-{KAFKA_VERSION}", _ARTIFACTS)


@dataclass(frozen=True)
class Cluster:
    """Who is who: the id, and the ports by node."""

    cluster_id: str
    ports: Sequence[int]
    controller_ports: Sequence[int]

    @classmethod
    def of(cls, nodes: int) -> Self:
        ports = free_ports(2 * nodes)
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        return cls(cluster_id, ports[:nodes], ports[nodes:])


class KafkaServer:
    """One node with a data folder of its own; may be stopped, killed and started again on the same ports and data.

    A cluster of one by default; `cluster` makes it a node of a larger one, see KafkaCluster.
    """

    def __init__(self, folder: Path, cluster: Cluster | None = None, node_id: int = 1) -> None:
        cluster = cluster or Cluster.of(1)
        self._properties = folder / "server.properties"
        self._server = Guarded(_command("kafka.Kafka", str(self._properties)), folder / "server.log")
        self.port = cluster.ports[node_id - 1]
        self._properties.write_text(
            _PROPERTIES.format(
                node_id=node_id,
                voters=",".join(f"{n}@127.0.0.1:{port}" for n, port in enumerate(cluster.controller_ports, 1)),
                port=self.port,
                controller_port=cluster.controller_ports[node_id - 1],
                log_dir=folder / "data",
                replicas=len(cluster.ports),
                in_sync_min=min(2, len(cluster.ports)),
            )
        )
        _java("kafka.tools.StorageTool", "format", f"--cluster-id={cluster.cluster_id}", "-c", str(self._properties))

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._server.pid

    def start(self) -> None:
        """Return when the broker answers."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start, and do not wait: one node of several answers only when most of them are there."""
        self._server.start()

    def wait(self) -> None:
        """Return when the broker answers."""
        log = KafkaLog(KafkaSettings.load(bootstrap_servers=self.bootstrap_servers, request_timeout_ms=1_000))
        deadline_s = time.monotonic() + _READY_S_MAX
        while True:
            try:
                log.cluster_id()
                return
            except BrokerError:
                if not self._server.running or time.monotonic() > deadline_s:
                    said = self._server.last_words()
                    self.stop()
                    raise RuntimeError(f"Kafka did not come up: {said}") from None

    def stop(self) -> None:
        """End the broker cleanly, by its process id. Idempotent."""
        self._server.end()

    def kill(self) -> None:
        """End the broker with SIGKILL."""
        self._server.end(signal.SIGKILL)


class KafkaCluster:
    """Several nodes, each broker and controller, that keep a replica of everything each; two must be in sync."""

    def __init__(self, folder: Path, nodes: int = 3) -> None:
        cluster = Cluster.of(nodes)
        self.nodes: list[KafkaServer] = []
        for node_id in range(1, nodes + 1):
            (folder / str(node_id)).mkdir()
            self.nodes.append(KafkaServer(folder / str(node_id), cluster, node_id))

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(node.bootstrap_servers for node in self.nodes)

    def start(self) -> None:
        """Return when every broker answers."""
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait()

    def stop(self) -> None:
        """At once: three that wait for each other would take long. Idempotent."""
        for node in self.nodes:
            node.kill()


def _command(main_class: str, *arguments: str) -> list[str]:
    return ["java", *maven.JVM_OPTIONS, "-cp", f"{jars()}/*", main_class, *arguments]


def _java(main_class: str, *arguments: str) -> None:
    done = subprocess.run(_command(main_class, *arguments), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{main_class} failed: {(done.stdout + done.stderr)[-2000:]}")
