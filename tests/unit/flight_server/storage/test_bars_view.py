"""The SQL of bars against plain Python: whatever part of the trades is in bars, in files and in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.datasets import BARS
from common.offsets import KafkaPartition, PartitionOffsets, topic_short
from common.schemas.arrow import table_schema
from flight_server.storage.bars_view import bars_sql, conditions_on_trades, from_trades_sql, trades_beyond
from flight_server.storage.file_index import Condition
from flight_server.storage.read_view import Segment, Snapshot, Tail
from sink.bars import bars_of
from tests.support.bars_oracle import EPOCH, in_order, oracle

P0, P1 = (KafkaPartition("cluster", "topic-id-00000001", number) for number in range(2))
NAMES = ["exchange", "symbol", "trade_id", "event_time", "price", "quantity"]
AUDIT = ["_kafka_topic", "_kafka_partition", "_kafka_offset"]
TRADES = pa.schema([table_schema("trade").field(name) for name in [*NAMES, *AUDIT]])
BAR = table_schema("bar")
WIDTHS_US = [bars.width_us for bars in BARS.values()]
SECOND_US, MINUTE_US = WIDTHS_US[:2]
LONG = 12  # offsets of each partition


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


def types_of(database: duckdb.DuckDBPyConnection, schema: pa.Schema) -> dict[str, str]:
    database.register("shape", schema.empty_table())
    return {name: kind for name, kind, *_ in database.execute("DESCRIBE SELECT * FROM shape").fetchall()}


def relation(database: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> str:
    database.register("rows", rows)
    database.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM rows")
    return name


def found(database: duckdb.DuckDBPyConnection, select: str) -> list[dict[str, Any]]:
    return in_order(database.execute(select).to_arrow_table())


@st.composite
def logs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Trades at every offset of two partitions, at few times and of any size."""
    times = draw(st.lists(st.integers(-3_000_000, 4_000_000), min_size=2 * LONG, max_size=2 * LONG))
    ids = draw(st.permutations(range(2 * LONG)))
    price = st.decimals(0, Decimal("9999999999.99999999"), places=8) | st.just(Decimal("0.00000001"))
    quantity = st.decimals(0, Decimal(10) ** 12, places=8) | st.sampled_from([Decimal(0), Decimal("1e20") - 1])
    return [
        {
            "exchange": "binance",
            "symbol": draw(st.sampled_from("AB")),
            "trade_id": ids[index],
            "event_time": EPOCH + timedelta(microseconds=times[index]),
            "price": draw(price),
            "quantity": draw(quantity),
            "_kafka_topic": topic_short(P0.topic_id),
            "_kafka_partition": index % 2,
            "_kafka_offset": index // 2,
        }
        for index in range(2 * LONG)
    ]


def offsets(draw: st.DrawFn, at_most: Sequence[int] = (LONG, LONG)) -> list[int]:
    return [draw(st.integers(0, most)) for most in at_most]


def below(log: Sequence[Mapping[str, Any]], ends: Sequence[int], starts: Sequence[int] = (0, 0)) -> list[Any]:
    return [
        row for row in log if starts[row["_kafka_partition"]] <= row["_kafka_offset"] < ends[row["_kafka_partition"]]
    ]


def positions(ends: Sequence[int]) -> PartitionOffsets:
    return PartitionOffsets(zip((P0, P1), ends, strict=True))


@settings(max_examples=40, deadline=None)
@given(logs(), st.sampled_from(WIDTHS_US), st.booleans(), st.data())
def test_bars_and_what_lies_beyond_them_are_the_bars_of_all(
    database: duckdb.DuckDBPyConnection, log: list[dict[str, Any]], width_us: int, has_bars: bool, data: st.DataObject
) -> None:
    draw = data.draw
    end = draw(st.tuples(st.integers(0, LONG), st.integers(0, LONG)))  # what the transaction sees
    committed = offsets(draw, end)  # what the snapshot of the trades has
    base = offsets(draw, committed)  # from where on memory has it too
    covered = offsets(draw, end)  # what the bars have: more or less than that snapshot
    middle = [draw(st.integers(low, high)) for low, high in zip(base, end, strict=True)]  # where a segment ends
    trade_types = types_of(database, TRADES)
    files = pa.Table.from_pylist(below(log, committed), schema=TRADES)
    segments = [
        Segment(
            relation(database, f"segment_{number}", pa.Table.from_pylist(below(log, ends, starts), schema=TRADES)),
            positions(starts),
            positions(ends),
        )
        for number, (starts, ends) in enumerate(((base, middle), (middle, end)))
    ]
    trades = Snapshot(7, relation(database, "files", files), tuple(TRADES.names), positions(committed))
    memory = Tail(positions(base), positions(end), tuple(segments))
    held = bars_of(pa.Table.from_pylist(below(log, covered), schema=TRADES), width_us) if has_bars else None
    bars = (
        Snapshot()
        if held is None
        else Snapshot(8, relation(database, "bars", held), tuple(BAR.names), positions(covered))
    )
    columns = types_of(database, BAR)
    beyond = trades_beyond(bars.offsets, trades, memory, trade_types)
    if held is None:
        select = from_trades_sql(width_us, columns, beyond)
    else:
        select = bars_sql(width_us, columns, "bars", f"({beyond})")
    assert found(database, select) == oracle(below(log, end), width_us)
    described = database.execute(f"DESCRIBE {select}").fetchall()
    assert [(name, kind) for name, kind, *_ in described] == list(columns.items())
    for condition in ("symbol = 'A'", "bar_start >= TIMESTAMPTZ '1970-01-01 00:00:01+00'", "trade_count > 1"):
        wanted = database.execute(f"SELECT * FROM ({select})").to_arrow_table()
        database.register("wanted", wanted)
        filtered = found(database, f"SELECT * FROM ({select}) WHERE {condition}")
        assert filtered == found(database, f"SELECT * FROM wanted WHERE {condition}")


@settings(max_examples=25, deadline=None)
@given(logs(), st.sampled_from(WIDTHS_US))
def test_bars_of_an_earlier_instant_are_computed(
    database: duckdb.DuckDBPyConnection, log: list[dict[str, Any]], width_us: int
) -> None:
    trades = relation(database, "trades", pa.Table.from_pylist(log, schema=TRADES))
    select = from_trades_sql(width_us, types_of(database, BAR), f"SELECT * FROM {trades}")
    assert found(database, select) == oracle(log, width_us)


def test_a_sum_of_products_that_fit_is_never_a_wrong_number(database: duckdb.DuckDBPyConnection) -> None:
    """Up to 10^22 it is exact, from there on NULL; from 1.7 x 10^22 on the statement is refused."""
    row = {"exchange": "x", "symbol": "A", "event_time": EPOCH, "price": Decimal("9999999999")}
    audit = {"_kafka_topic": "t", "_kafka_partition": 0, "_kafka_offset": 0}
    half = [row | audit | {"trade_id": i, "quantity": Decimal(500_000_000_000)} for i in range(4)]
    for count, wanted in ((1, Decimal("4999999999500000000000")), (3, None)):
        table = pa.Table.from_pylist(half[:count], schema=TRADES)
        select = from_trades_sql(SECOND_US, types_of(database, BAR), f"FROM {relation(database, 'trades', table)}")
        assert database.execute(f"SELECT notional FROM ({select})").fetchall() == [(wanted,)]
    relation(database, "trades", pa.Table.from_pylist(half, schema=TRADES))
    with pytest.raises(duckdb.OutOfRangeException, match="Overflow"):
        database.execute(f"SELECT notional FROM ({select})").fetchall()


def test_conditions_on_a_bars_name_hold_for_its_trades() -> None:
    asked = [
        Condition("bar_start", ((5 * MINUTE_US, 5 * MINUTE_US), (None, 0), (7 * MINUTE_US, None))),
        Condition("symbol", (("A", "A"),)),
        Condition("trade_count", ((3, None),)),
    ]
    assert conditions_on_trades(asked, MINUTE_US) == [
        Condition(
            "event_time",
            ((5 * MINUTE_US, 6 * MINUTE_US - 1), (None, MINUTE_US - 1), (7 * MINUTE_US, None)),
        ),
        Condition("symbol", (("A", "A"),)),
    ]
