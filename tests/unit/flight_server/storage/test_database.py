"""The database in memory: what the tail's rows are kept as, and that dropped segments give their memory back."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest

from common.schemas.arrow import table_schema
from common.settings import FlightSettings
from flight_server.storage.database import DISABLED_OPTIMIZERS, Database
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


#: The newest trade of each symbol, under a condition on a column that is not in the result.
NEWEST = (
    "SELECT symbol, trade_id, asset_class FROM {rows} WHERE _kafka_offset < 220 "
    "QUALIFY row_number() OVER (PARTITION BY symbol ORDER BY event_time DESC) = 1"
)
RIGHT = [("BTCUSDT", 219, "crypto")]
#: Their offsets are not the numbers of rows that DuckDB gives them, with which it mixes them up.
TRADES = range(100, 250)


@pytest.mark.parametrize("rows", ["market.small", "(SELECT * FROM market.small WHERE _kafka_partition = 0)"])
def test_the_first_row_of_each_group_is_one_of_those_that_were_asked_for(database: Database, rows: str) -> None:
    """As a table is while nothing of it is committed; and at a cut."""
    with database.publication():
        relation = database.create_segment("small", database.column_types(table_schema("trade")))
        database.insert(relation, trades(TRADES))
        database.replace_view("market.small", f"SELECT {', '.join(table_schema('trade').names)} FROM {relation}")
    assert database.cursor().execute(NEWEST.format(rows=rows)).fetchall() == RIGHT


def test_the_optimizer_that_is_off_is_wrong_still() -> None:
    """When this fails, DuckDB has repaired it, and DISABLED_OPTIMIZERS may go (decision 0002)."""
    with duckdb.connect() as connection:
        connection.register("rows", trades(TRADES).drop_columns(["trade_conditions", "vendor_data"]))
        connection.execute("CREATE TABLE rows_kept AS FROM rows")
        names = ", ".join(table_schema("trade").names).replace("trade_conditions, ", "").replace("vendor_data, ", "")
        query = NEWEST.format(rows=f"(SELECT {names} FROM rows_kept)")
        try:
            found = connection.execute(query).fetchall()
        except duckdb.InternalException:
            found = []
        assert found != RIGHT
        connection.execute(f"SET disabled_optimizers = '{DISABLED_OPTIMIZERS}'")
        assert connection.execute(query).fetchall() == RIGHT


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
