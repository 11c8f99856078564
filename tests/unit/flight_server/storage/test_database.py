"""The database in memory: what the tail's rows are kept as, and that dropped segments give their memory back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common.schemas.arrow import table_schema
from common.settings import FlightSettings
from flight_server.storage.database import Database
from tests.support.fake_lake import trades

_ROWS, _BATCH = 300_000, 3_000


@pytest.fixture
def database() -> Iterator[Database]:
    opened = Database(FlightSettings(threads=1), None)
    yield opened
    opened.close()


def filled(database: Database, name: str) -> str:
    """A segment with more rows than a row group, in several publications."""
    with database.publication():
        relation = database.create_segment(name, database.column_types(table_schema("trade")))
    batch = trades(range(_BATCH))
    for _ in range(_ROWS // _BATCH):
        with database.publication():
            database.insert(relation, batch)
    return relation


def test_rows_in_memory_are_not_compressed(database: Database) -> None:
    """Compressed, single rows of a 128-bit decimal are read many times slower."""
    filled(database, "rows")
    found = database.cursor().execute(
        "SELECT DISTINCT compression FROM pragma_storage_info('k2.tail.rows') WHERE segment_type NOT LIKE 'VALID%'"
    )
    assert found.fetchall() == [("Uncompressed",)]


def test_a_dropped_segment_gives_its_memory_back(database: Database) -> None:
    def used() -> int:
        ((nbytes,),) = database.cursor().execute("SELECT sum(memory_usage_bytes) FROM duckdb_memory()").fetchall()
        return int(nbytes)

    sizes = []
    for number in range(4):
        relation = filled(database, f"rows_{number}")
        sizes.append(used())
        with database.publication():
            database.drop_segment(relation)
    assert sizes[0] > 10_000_000, "nothing was held"
    assert used() < sizes[0] / 4
    assert max(sizes) < 1.5 * sizes[0]
