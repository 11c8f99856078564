"""A real Flight SQL server in this process, on the sealed database with 1,000 trades, one for each module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import adbc_driver_flightsql.dbapi as dbapi
import pytest
from prometheus_client import CollectorRegistry
from pyarrow import flight

from common.settings import FlightSettings
from flight_server.service.service import FlightService
from tests.support.fake_lake import FakeLake

ROWS = 1_000


class Served:
    """The service, the lake beneath it, and its metrics."""

    def __init__(self, settings: FlightSettings) -> None:
        self.lake = FakeLake(ROWS, settings, research=True)
        self.registry = CollectorRegistry()
        self.service = FlightService(self.lake, settings, registry=self.registry)
        self.service.start()

    @property
    def uri(self) -> str:
        return self.service.uri

    def stop(self) -> None:
        self.service.stop()
        self.lake.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served(FlightSettings(port=0))
    yield served
    served.stop()


@pytest.fixture
def connection(served: Served) -> Iterator[dbapi.Connection]:
    with dbapi.connect(served.uri, autocommit=True) as connection:
        yield connection


@pytest.fixture
def client(served: Served) -> Iterator[flight.FlightClient]:
    with flight.connect(served.uri) as client:
        yield client


#: Answered by pyarrow itself, so that no counter of ours sees them.
_UNCOUNTED = {"Handshake", "PollFlightInfo"}


@pytest.fixture(autouse=True)
def _what_a_mark_names_was_asked(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test marked `flight_sql` fails when its client never sent what the mark names: docs/flight-sql.md is made of
    the marks, and so tells what went over the wire and not what somebody believed.
    """
    named = {str(name) for mark in request.node.iter_markers("flight_sql") for name in mark.args} - _UNCOUNTED
    server = next((name for name in ("served", "timed") if name in request.fixturenames), None)
    if not named or server is None:
        assert not named, "a test that is marked with flight_sql needs the fixture served"
        yield
        return
    registry = request.getfixturevalue(server).registry
    before = _asked(registry)
    yield
    after = _asked(registry)
    assert sorted(name for name in named if after[name] <= before[name]) == []


def _asked(registry: CollectorRegistry) -> Counter[str]:
    """How often each method, command and action was called."""
    asked: Counter[str] = Counter()
    for metric in registry.collect():
        for sample in metric.samples:
            if sample.name == "k2_flight_calls_total":
                asked[sample.labels["method"]] += int(sample.value)
                asked[sample.labels["command"]] += int(sample.value)
    return asked
