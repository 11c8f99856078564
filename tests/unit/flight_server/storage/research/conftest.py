"""Research tables of a fresh lake, a server's engine that reads them, and another engine on the same catalog."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.catalog import Catalog

from common.clock import ManualClock
from common.iceberg import open_catalog
from common.settings import FlightSettings, LakeSettings
from flight_server.storage.database import Database
from flight_server.storage.research import ResearchTables


@pytest.fixture
def settings(tmp_path: Path) -> LakeSettings:
    return LakeSettings.load(data_dir=tmp_path)


@pytest.fixture
def research(settings: LakeSettings) -> ResearchTables:
    return ResearchTables(settings, clock=ManualClock())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cursor of a flight server's database that may read the warehouses of all tests here."""
    everywhere = LakeSettings.load(warehouse=f"file://{tmp_path_factory.getbasetemp()}")
    database = Database(FlightSettings.load(threads=1, memory_bytes_max=256 * 1024**2), everywhere)
    yield database.cursor()
    database.close()


@pytest.fixture
def foreign(settings: LakeSettings) -> Catalog:
    """Another engine on the same catalog."""
    return open_catalog(settings)
