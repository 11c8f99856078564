"""Parts put together as services: lake and door."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from common.settings import FlightSettings, KafkaSettings, LakeSettings
from flight_server.access.gate import Gate
from flight_server.service.health import HealthServer
from flight_server.service.service import FlightService
from flight_server.storage.lake import Lake


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
