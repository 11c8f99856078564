"""The fault matrix on a PostgreSQL catalog and on Iceberg's REST catalog; tests/recovery has it on SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.datasets import TRADES
from common.iceberg import open_catalog
from common.settings import LakeSettings
from sink.worker import Passed
from tests.integration.postgres_server import PostgresServer
from tests.integration.rest_catalog import RestCatalog
from tests.support.fault_matrix import CELLS, Fault, measure
from tests.support.missing import MissingTool, skip_or_fail

REQUIRE = "K2_REQUIRE_CATALOGS"
IDS = [f"{fault.name}-{step.name}".lower() for fault, step in CELLS]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    try:
        server = PostgresServer()
    except MissingTool as why:
        skip_or_fail(why, REQUIRE)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestCatalog]:
    try:
        catalog = RestCatalog(tmp_path_factory.mktemp("rest"))
    except MissingTool as why:
        skip_or_fail(why, REQUIRE)
    catalog.start()
    yield catalog
    catalog.stop()


@pytest.mark.parametrize(("fault", "step"), CELLS, ids=IDS)
def test_no_trade_is_lost_or_doubled_on_postgresql(
    fault: Fault, step: Passed, postgres: PostgresServer, tmp_path: Path
) -> None:
    # One database for all; what keeps the runs apart is the catalog's name.
    lake = LakeSettings.load(
        data_dir=tmp_path / "lake", catalog_uri=postgres.uri, catalog_name=f"{fault.name}-{step.name}".lower()
    )
    measure("PostgreSQL", lake, fault, step, tmp_path)


@pytest.mark.parametrize(("fault", "step"), CELLS, ids=IDS)
def test_no_trade_is_lost_or_doubled_on_a_rest_catalog(
    fault: Fault, step: Passed, rest: RestCatalog, tmp_path: Path
) -> None:
    lake = LakeSettings.load(
        data_dir=tmp_path / "lake",
        catalog_uri=rest.uri,
        catalog_properties={"type": "rest"},
        warehouse=f"file://{tmp_path / 'warehouse'}",
    )
    try:
        measure("REST", lake, fault, step, tmp_path)
    finally:
        open_catalog(lake).drop_table(TRADES.table)
