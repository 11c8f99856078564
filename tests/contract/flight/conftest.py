"""A real Flight SQL server in this process, on the sealed database with 1,000 trades, one for each module."""

from __future__ import annotations

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
