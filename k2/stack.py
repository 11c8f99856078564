"""Parts put together as services: lake and door; a capture and the ingest that takes it in."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from common.settings import FlightSettings, KafkaSettings, LakeSettings
from flight_server.service.service import FlightService
from flight_server.storage.lake import Lake
from ingest.service import IngestService
from ingest.simulator import Simulator


class Server:
    """Lake and Flight SQL service as one: the lake first, and the last to stop."""

    def __init__(
        self, kafka: KafkaSettings, lake: LakeSettings, settings: FlightSettings, registry: CollectorRegistry
    ) -> None:
        self.lake = Lake(kafka, lake, settings, registry=registry)
        self.flight = FlightService(self.lake, settings, registry=registry)

    @property
    def failure(self) -> BaseException | None:
        return self.lake.failure or self.flight.failure

    def start(self) -> None:
        self.lake.start()
        try:
            self.flight.start()
        except BaseException:
            self.lake.stop()
            raise

    def stop(self, timeout_s: float = 4.0) -> None:
        self.flight.stop(timeout_s)
        self.lake.stop()


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
