"""Market functions on a database with K2's tables and rows by hand, and nasty series of trades and quotes to put there.

What a call becomes is made as the server makes it: parsed, its arguments computed, its SELECT put in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import duckdb
import pyarrow as pa
from hypothesis import strategies as st

from common.datasets import BARS
from common.schemas.arrow import table_schema
from flight_server.engine.market.expansion import calls_of, expanded
from flight_server.engine.market.registry import FUNCTIONS
from flight_server.engine.rewrite import functions_of, tree_of
from flight_server.storage.macros import MACROS
from sink.bars import bars_of
from tests.support.records import quote, trade

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SCHEMAS = {"trades": table_schema("trade"), "quotes": table_schema("quote")} | dict.fromkeys(BARS, table_schema("bar"))


def at(us: int) -> datetime:
    """An instant by its microseconds since 1970."""
    return EPOCH + timedelta(microseconds=us)


def us_of(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1)


class MarketDatabase:
    """`tables` are those that functions may read."""

    def __init__(self, tables: Sequence[str] = ("trades", "quotes")) -> None:
        self.tables = frozenset(tables)
        self.connection = duckdb.connect(config={"threads": 1})
        for statement in (
            "SET TimeZone = 'UTC'",
            "SET preserve_insertion_order = false",
            "ATTACH ':memory:' AS k2",
            "CREATE SCHEMA k2.market",
            *(macro.create("k2") for macro in MACROS),
            "SET search_path = 'k2.market'",
        ):
            self.connection.execute(statement)
        self.fill()

    def close(self) -> None:
        self.connection.close()

    def fill(self, trades: Sequence[Mapping[str, Any]] = (), quotes: Sequence[Mapping[str, Any]] = ()) -> None:
        """Put these rows in the place of those that were there; bars are made of the trades, as the sink makes them."""
        rows = {
            name: pa.Table.from_pylist(list(given), schema=_SCHEMAS[name])
            for name, given in (("trades", trades), ("quotes", quotes))
        }
        rows |= {name: bars_of(rows["trades"], bars.width_us) for name, bars in BARS.items() if name in self.tables}
        for name, found in rows.items():
            self.connection.register("rows", found)
            self.connection.execute(f"CREATE OR REPLACE TABLE k2.market.{name} AS SELECT * FROM rows")

    def expanded(self, sql: str) -> str:
        """The statement that is run for this one."""

        @contextmanager
        def parser() -> Iterator[duckdb.DuckDBPyConnection]:
            yield self.connection

        tree = tree_of(sql, self.connection, FUNCTIONS.keys())
        return expanded(tree, calls_of(tree, functions_of(tree), self.tables, parser, ()))

    def ask(self, sql: str) -> list[dict[str, Any]]:
        """The rows of a statement, in their order."""
        found: list[dict[str, Any]] = self.connection.execute(self.expanded(sql)).to_arrow_table().to_pylist()
        return found

    def columns(self, sql: str) -> str:
        """Names and types of a statement's columns, as SQL."""
        described = self.connection.execute(f"DESCRIBE {self.expanded(sql)}").fetchall()
        return ", ".join(f"{name} {kind}" for name, kind, *_ in described)


@st.composite
def trade_series(
    draw: st.DrawFn, *, base_us: int, spread_us: int, step_us: int = 1, count_max: int = 12
) -> list[dict[str, Any]]:
    """Trades of one or two symbols, and exchanges, in no order: single ones, at equal times, with gaps, received before
    they happened, of any side, and of no quantity.
    """
    count = draw(st.integers(1, count_max))
    times = draw(st.lists(st.integers(0, spread_us // step_us), min_size=1, max_size=count))
    ids = draw(st.permutations(range(1, count + 1)))
    price = st.decimals(Decimal("0.00000001"), Decimal("99999"), places=8) | st.sampled_from(
        [Decimal("100.5"), Decimal("100"), Decimal("9999999999.99999999")]
    )
    quantity = st.decimals(0, Decimal(10) ** 9, places=8) | st.sampled_from([Decimal(0), Decimal("0.00000001")])
    rows = []
    for trade_id in ids:
        time = at(base_us + draw(st.sampled_from(times)) * step_us)
        latency = timedelta(microseconds=draw(st.sampled_from([-5_000, 0, 700])))
        rows.append(
            trade(
                trade_id,
                symbol=draw(st.sampled_from("AAAB")),
                exchange=draw(st.sampled_from(["binance", "binance", "asx"])),
                event_time=time,
                receive_time=time + latency,
                price=draw(price),
                quantity=draw(quantity),
                side=draw(st.sampled_from(["BUY", "SELL", "SELL_SHORT", "UNKNOWN"])),
            )
        )
    return rows


@st.composite
def quote_series(
    draw: st.DrawFn, *, base_us: int, spread_us: int, step_us: int = 1, count_max: int = 12
) -> list[dict[str, Any]]:
    """Quotes, as `trade_series`: with and without the venue's time, one-sided, locked and crossed."""
    count = draw(st.integers(1, count_max))
    times = draw(st.lists(st.integers(0, spread_us // step_us), min_size=1, max_size=count))
    price = (
        st.none()
        | st.decimals(Decimal("99"), Decimal("101"), places=8)
        | st.sampled_from([Decimal("99.5"), Decimal("100"), Decimal("100.00000001")])
    )
    quantity = st.decimals(0, Decimal(10) ** 6, places=8)
    rows = []
    for quote_id in draw(st.permutations(range(1, count + 1))):
        time = at(base_us + draw(st.sampled_from(times)) * step_us)
        bid, ask = draw(price), draw(price)
        said = draw(st.booleans())
        latency = timedelta(microseconds=draw(st.sampled_from([-5_000, 700])))
        rows.append(
            quote(
                quote_id,
                symbol=draw(st.sampled_from("AAAB")),
                exchange=draw(st.sampled_from(["binance", "binance", "asx"])),
                event_time=time if said else None,
                receive_time=time + latency if said else time,
                bid_price=bid,
                bid_quantity=None if bid is None else draw(quantity),
                ask_price=ask,
                ask_quantity=None if ask is None else draw(quantity),
            )
        )
    return rows


def by_symbol(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The rows of each (exchange, symbol), in the order of these."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["exchange"], row["symbol"])):
        found.setdefault((row["exchange"], row["symbol"]), []).append(row)
    return found


def rounded(numerator: Any, denominator: Any) -> Decimal:
    """A quotient in steps of 10^-8, half to even."""
    return Decimal(round(Fraction(numerator) / Fraction(denominator) * 10**8)).scaleb(-8)
