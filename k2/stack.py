"""Parts put together as services: lake and door; a capture and the ingest that takes it in."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from common.settings import FlightSettings, KafkaSettings, LakeSettings
from flight_server.access.gate import Gate
from flight_server.service.health import HealthServer
from flight_server.service.service import FlightService
from flight_server.storage.lake import Lake
from ingest.service import IngestService
from ingest.simulator import Simulator


class Server:
    """Lake and Flight SQL service as one: the lake first, and the last to stop but for who tells its health.

    Without a `gate` everybody may come in, and the server can only listen on loopback. Raises SettingsError.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        lake: LakeSettings,
        settings: FlightSettings,
        registry: CollectorRegistry,
        gate: Gate | None = None,
    ) -> None:
        self.lake = Lake(kafka, lake, settings, registry=registry)
        self.flight = FlightService(self.lake, settings, registry=registry, gate=gate)
        self.health = (
            None
            if settings.health_port is None
            else HealthServer(settings.health_host, settings.health_port, self.check_ready)
        )

    @property
    def failure(self) -> BaseException | None:
        return self.lake.failure or self.flight.failure

    def check_ready(self) -> None:
        """Raises Unavailable, or TailGap, unless statements are taken and answered exactly."""
        self.flight.check_ready()

    def start(self) -> None:
        if self.health is not None:
            self.health.start()
        try:
            self.lake.start()
            try:
                self.flight.start()
            except BaseException:
                self.lake.stop()
                raise
        except BaseException:
            self._stop_health()
            raise

    def stop(self, timeout_s: float = 4.0) -> None:
        self.flight.stop(timeout_s)
        self.lake.stop()
        self._stop_health()

    def _stop_health(self) -> None:
        if self.health is not None:
            self.health.stop()


class ReplayDone(Exception):
    """The capture is through and acknowledged."""


class Replay:
    """A replay as a service that ends by itself, with ReplayDone, when all frames were taken."""

    def __init__(self, simulator: Simulator, service: IngestService) -> None:
        self._simulator = simulator
        self._service = service

    def start(self) -> None:
        self._service.start()

    def stop(self, timeout_s: float = 4.0) -> None:
        self._service.stop(timeout_s)

    @property
    def failure(self) -> BaseException | None:
        failure = self._service.failure or self._simulator.failure
        done = self._simulator.finished.is_set() and self._service.stats().frames >= self._simulator.stats().frames_sent
        return failure or (ReplayDone() if done else None)
