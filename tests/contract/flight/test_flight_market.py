"""Market functions over the wire: asked, prepared, kept in tables, refused."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import adbc_driver_flightsql.dbapi as dbapi
import adbc_driver_manager
import pytest

from tests.support.fake_lake import BASE_US
from tests.support.market import EPOCH

BEGIN = EPOCH + timedelta(microseconds=BASE_US)


def ask(connection: dbapi.Connection, sql: str, *parameters: Any) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        rows: list[dict[str, Any]] = cursor.fetch_arrow_table().to_pylist()
        return rows


def test_bars_are_asked_by_text_and_by_parameters(connection: dbapi.Connection) -> None:
    rows = ask(connection, f"SELECT * FROM ohlcv('BTCUSDT', '{BEGIN.isoformat()}', every := '250ms')")
    assert [(row["open"], row["close"], row["trade_count"]) for row in rows] == [
        (100 + Decimal(n) / 100, 100 + Decimal(n + 249) / 100, 250) for n in range(0, 1_000, 250)
    ]
    assert rows[0]["bar_start"] == BEGIN
    sql = "SELECT * FROM ohlcv(?, ?, every := ?)"
    assert ask(connection, sql, "BTCUSDT", BEGIN, "250ms") == rows
    assert ask(connection, sql, "BTCUSDT", BEGIN.isoformat(), "500ms") != rows


def test_they_fill_a_sessions_own_tables_and_those_of_research(connection: dbapi.Connection) -> None:
    bars = "SELECT symbol, trade_count FROM ohlcv('BTCUSDT', every := ?)"
    for table in ("mine_of_functions", "research.of_functions"):
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE TABLE {table} AS {bars}", ("250ms",))
            cursor.execute(f"INSERT INTO {table} {bars}", ("1m",))
        assert sorted(row["trade_count"] for row in ask(connection, f"SELECT * FROM {table}")) == [250] * 4 + [1_000]


def test_times_are_the_same_instants_in_any_zone_of_the_session(connection: dbapi.Connection) -> None:
    sql = "SELECT epoch_us(bar_start) AS us, trade_count FROM ohlcv('BTCUSDT', '2024-08-08', every := '1h')"
    here = ask(connection, sql)
    with connection.cursor() as cursor:
        cursor.execute("SET timezone = 'Australia/Sydney'")
    try:
        assert ask(connection, sql) == here
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SET timezone = 'UTC'")
    assert len(here) == 1


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("FROM ohlcv('BTC', every := '1m')", "ohlcv: market.trades has no symbol 'BTC'; there are BTCUSDT"),
        ("FROM ohlcv('BTCUSDT', every := '0s')", "every of ohlcv is '0s'; write one that is longer than nothing"),
        ("FROM spread('BTCUSDT')", "spread: market.quotes has no symbol 'BTCUSDT'; it has no rows yet"),
    ],
)
def test_what_is_wrong_comes_as_one_sentence(connection: dbapi.Connection, sql: str, says: str) -> None:
    with pytest.raises(adbc_driver_manager.Error) as raised:
        ask(connection, sql)
    assert says in str(raised.value)
    assert "Traceback" not in str(raised.value)
