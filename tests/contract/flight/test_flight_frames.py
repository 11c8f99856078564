"""K2 from polars and pandas, over an ADBC connection.

Not over polars.read_database_uri: its scheme flightsql:// speaks TLS only, and K2 serves none yet.
"""

from __future__ import annotations

from decimal import Decimal

import adbc_driver_flightsql.dbapi as dbapi
import pandas as pd
import polars as pl
from conftest import ROWS

SQL = "select symbol, price, event_time, trade_id from market.trades order by trade_id"


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


def test_pandas(connection: dbapi.Connection) -> None:
    frame = pd.read_sql(SQL, connection)
    assert list(frame.columns) == ["symbol", "price", "event_time", "trade_id"] and len(frame) == ROWS
    assert str(frame["event_time"].dt.tz) == "UTC"
