"""K2 from polars and pandas, over an ADBC connection and over a URI: reading, and writing by ingest."""

from __future__ import annotations

from decimal import Decimal

import adbc_driver_flightsql.dbapi as dbapi
import pandas as pd
import polars as pl
import pytest
from conftest import ROWS, Served

SQL = "select symbol, price, event_time, trade_id from market.trades order by trade_id"


@pytest.mark.flight_sql("CommandPreparedStatementQuery", client="polars")
def test_polars_over_a_connection(connection: dbapi.Connection) -> None:
    frame = pl.read_database(SQL, connection)
    assert frame.shape == (ROWS, 4)
    assert frame.schema["event_time"] == pl.Datetime("us", "UTC")
    assert frame["price"][1] == Decimal("100.01000000")
    bound = pl.read_database(
        "select trade_id from market.trades where trade_id < ?", connection, execute_options={"parameters": [3]}
    )
    assert sorted(bound["trade_id"]) == [0, 1, 2]


def test_polars_in_batches(connection: dbapi.Connection) -> None:
    frames = list(pl.read_database("from range(200000)", connection, iter_batches=True, batch_size=50_000))
    assert sum(len(frame) for frame in frames) == 200_000 and len(frames) > 1


@pytest.mark.filterwarnings("ignore:Cannot disable autocommit")
def test_polars_over_a_uri(served: Served) -> None:
    """polars takes the driver's name from the scheme, `flightsql`, which is TLS unless the URI says otherwise."""
    uri = f"flightsql://{served.uri.rpartition('/')[2]}?transport=tcp"
    assert pl.read_database_uri(SQL, uri, engine="adbc").shape == (ROWS, 4)
    with pytest.raises(ModuleNotFoundError, match="adbc_driver_grpc"):
        pl.read_database_uri(SQL, served.uri, engine="adbc")


@pytest.mark.flight_sql("CommandStatementIngest", client="polars")
def test_polars_writes_and_reads_back(connection: dbapi.Connection) -> None:
    frame = pl.DataFrame({"id": [1, 2], "price": [Decimal("1.50"), None], "text": ["ü", None]})
    for there in ("fail", "append"):
        assert frame.write_database("from_polars", connection, engine="adbc", if_table_exists=there) == 2
    found = pl.read_database("select * from from_polars order by id", connection)
    assert found.rows() == [row for row in frame.rows() for _ in range(2)]
    with pytest.raises(dbapi.Error, match="from_polars"):
        frame.write_database("from_polars", connection, engine="adbc", if_table_exists="fail")


@pytest.mark.flight_sql("CommandStatementIngest", client="pandas")
def test_pandas_writes_and_reads_back(connection: dbapi.Connection) -> None:
    frame = pd.DataFrame({"id": [1, 2], "text": ["ü", "x"]})
    assert frame.to_sql("from_pandas", connection, index=False) == 2
    assert frame.to_sql("from_pandas", connection, index=False, if_exists="replace") == 2
    assert pd.read_sql("select * from from_pandas order by id", connection).equals(frame)
    assert pd.read_sql_table("trades", connection, schema="market").shape[0] == ROWS


@pytest.mark.flight_sql("CommandPreparedStatementQuery", client="pandas")
def test_pandas(connection: dbapi.Connection) -> None:
    frame = pd.read_sql(SQL, connection)
    assert list(frame.columns) == ["symbol", "price", "event_time", "trade_id"] and len(frame) == ROWS
    assert str(frame["event_time"].dt.tz) == "UTC"
