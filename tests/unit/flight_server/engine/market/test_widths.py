"""Intervals as text."""

from __future__ import annotations

import duckdb
import pytest

from flight_server.engine.market.widths import DAY_US, Width, width_of


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("100ms", Width(us=100_000)),
        ("1.5s", Width(us=1_500_000)),
        (" 5 Minutes ", Width(us=300_000_000)),
        ("1h30m", Width(us=5_400_000_000)),
        ("1 day", Width(us=DAY_US)),
        ("2w", Width(us=14 * DAY_US)),
        ("1mo", Width(months=1)),
        ("1 month", Width(months=1)),
        ("1 year 3 mons", Width(months=15)),
        ("2q", Width(months=6)),
    ],
)
def test_an_interval_is_read(text: str, width: Width) -> None:
    assert width_of(text) == width


@pytest.mark.parametrize(
    "text", ["", "0s", "0 month", "1", "m", "1M", "-1m", "1 month 1 day", "0.5 month", "0.1us", "x"]
)
def test_what_is_no_interval_is_told_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is .*; (write|months come whole)"):
        width_of(text)


@pytest.mark.parametrize(
    "text", ["99 milliseconds", "61 minutes", "49 hours", "7 days", "3 weeks", "1 month", "1 year"]
)
def test_as_duckdb_writes_it_it_is_read_again(text: str) -> None:
    ((written,),) = duckdb.sql(f"SELECT CAST(INTERVAL '{text}' AS VARCHAR)").fetchall()
    assert width_of(written) == width_of(text)
    assert width_of(str(width_of(text))) == width_of(text)
