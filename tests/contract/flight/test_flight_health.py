"""grpc.health.v1 and /ready on their side ports: true while the server starts, serves, has a gap, drains and stops."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, Counter

from common.errors import SettingsError, TailGap, Unavailable
from common.settings import FlightSettings, TelemetrySettings
from common.telemetry import Readiness, serve_metrics
from flight_server.service.health import SERVICES, HealthServer
from flight_server.service.service import FlightService
from tests.support.fake_lake import FakeLake
from tests.support.kafka import eventually

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Part:
    """Something whose readiness a test decides."""

    def __init__(self) -> None:
        self.error: Exception | None = Unavailable("starting")

    def check(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def part() -> Part:
    return Part()


@pytest.fixture
def server(part: Part) -> Iterator[HealthServer]:
    server = HealthServer("127.0.0.1", 0, part.check)
    server.start()
    yield server
    server.stop()


def ask(server: HealthServer, service: str = "") -> int:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        status: int = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
        return status


@pytest.mark.parametrize("service", SERVICES)
def test_each_check_says_what_is_true_now(server: HealthServer, part: Part, service: str) -> None:
    assert ask(server, service) == NOT_SERVING
    part.error = None
    assert ask(server, service) == SERVING
    part.error = TailGap("the tail is behind")
    assert ask(server, service) == NOT_SERVING
    part.error = RuntimeError("a defect")
    assert ask(server, service) == NOT_SERVING
    part.error = None
    assert ask(server, service) == SERVING


def test_another_service_is_not_known(server: HealthServer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(server, "another.Service")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_who_watches_is_told_and_a_stop_ends_the_watch(server: HealthServer, part: Part) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""), timeout=30)
        assert next(watch).status == NOT_SERVING
        part.error = None
        assert next(watch).status == SERVING
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert next(watch).status == NOT_SERVING
        with pytest.raises((grpc.RpcError, StopIteration)):
            next(watch)
        stopping.join()


def test_many_who_watch_leave_room_for_checks(server: HealthServer, part: Part) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=60) for _ in range(64)]
        assert [next(watch).status for watch in watches] == [NOT_SERVING] * 64
        with pytest.raises(grpc.RpcError, match="64 clients watch the health of this server already") as caught:
            next(stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=60))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        part.error = None
        assert ask(server) == SERVING
        watches.pop().cancel()

        def is_let_in() -> bool:
            try:
                return bool(next(stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=60)).status == SERVING)
            except grpc.RpcError:
                return False

        eventually(is_let_in, what="one that went away makes room for another")


def test_watches_that_go_away_while_the_status_changes_hold_nothing_up(part: Part) -> None:
    """The library's own way of watching without threads stopped here for ever, in one of some dozens of rounds."""
    server = HealthServer("127.0.0.1", 0, part.check)
    server.start()
    for number in range(60):
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for watch in [stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=60) for _ in range(20)]:
                next(watch)
            part.error = None if number % 2 == 0 else Unavailable("starting")
            leaving = threading.Thread(target=channel.close)
            leaving.start()
            assert ask(server) == (SERVING if number % 2 == 0 else NOT_SERVING)
            leaving.join()
    stopping = threading.Thread(target=server.stop, daemon=True)
    stopping.start()
    stopping.join(60)
    assert not stopping.is_alive()


def test_a_port_that_is_taken_is_said(part: Part) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = HealthServer("127.0.0.1", port, part.check)
        with pytest.raises(SettingsError, match=f"127.0.0.1:{port} cannot be opened") as caught:
            server.start()
        assert "\n" not in caught.value.message
        server.stop()


def test_the_flight_service_is_ready_from_its_start_to_its_stop() -> None:
    settings = FlightSettings(port=0)
    lake = FakeLake(10, settings)
    service = FlightService(lake, settings)
    health = HealthServer("127.0.0.1", 0, service.check_ready)
    health.start()
    try:
        assert ask(health) == NOT_SERVING
        service.start()
        assert ask(health) == SERVING
        lake.gap = TailGap("the tail does not reach back")
        assert ask(health) == NOT_SERVING
        lake.gap = None
        assert ask(health) == SERVING
        service.stop()
        assert ask(health) == NOT_SERVING
    finally:
        service.stop()
        lake.close()
        health.stop()


# -- /ready


def fetched(port: int | None, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_ready_over_http_beside_the_metrics(part: Part) -> None:
    registry, readiness = CollectorRegistry(), Readiness()
    Counter("k2_things", "Things", registry=registry).inc(3)
    port = serve_metrics(TelemetrySettings(metrics_port=0), registry, readiness)
    assert "k2_things_total 3.0" in fetched(port, "/metrics")[1]
    assert fetched(port, "/ready") == (503, "starting\n")
    readiness.check = part.check
    part.error = TailGap("the tail is behind")
    assert fetched(port, "/ready") == (503, "the tail is behind\n")
    part.error = None
    assert fetched(port, "/ready") == (200, "ready\n")
    plain = serve_metrics(TelemetrySettings(metrics_port=0), registry)
    assert "k2_things_total 3.0" in fetched(plain, "/ready")[1]
