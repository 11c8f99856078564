"""Apicurio Registry on loopback for tests, which speaks Confluent's API: its archive from Maven Central, once.

Needs Java 17 or newer and Maven. It keeps its schemas in memory: one that is stopped has forgotten them. Measured on 2
busy cores: archive (142 MB) 60 s, once; start to ready 9 s, 4.6 s of them at work, 255 MB resident.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.guarded import Guarded, free_ports
from tests.support.maven import JVM_OPTIONS, java_and_maven, unpacked

APICURIO_VERSION = "2.6.13.Final"
_ARCHIVE = f"io.apicurio:apicurio-registry-app:{APICURIO_VERSION}:tar.gz:all"
_READY_S_MAX = 120.0


class ApicurioServer:
    """From `start` to `stop`."""

    def __init__(self, folder: Path) -> None:
        """Raises MissingTool."""
        java_and_maven()
        app = (
            unpacked(f"apicurio-{APICURIO_VERSION}", _ARCHIVE) / f"apicurio-registry-app-{APICURIO_VERSION}-runner.jar"
        )
        (port,) = free_ports(1)
        listening = ("-Dquarkus.http.host=127.0.0.1", f"-Dquarkus.http.port={port}")
        self._server = Guarded(["java", *JVM_OPTIONS, *listening, "-jar", str(app)], folder / "said.log")
        self.url = f"http://127.0.0.1:{port}/apis/ccompat/v7"

    def start(self) -> None:
        """Return when it answers."""
        self._server.start()
        deadline_s = time.monotonic() + _READY_S_MAX
        while not self._answers():
            if not self._server.running or time.monotonic() > deadline_s:
                said = self._server.last_words()
                self.stop()
                raise RuntimeError(f"Apicurio Registry did not come up: {said}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Idempotent."""
        self._server.end()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=5) as answer:
                return int(answer.status) == 200
        except (urllib.error.URLError, OSError):
            return False
