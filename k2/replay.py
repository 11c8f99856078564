"""A capture and the ingest that takes it in, as one service that ends by itself."""

from __future__ import annotations

from ingest.service import IngestService
from ingest.simulator import Simulator


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
