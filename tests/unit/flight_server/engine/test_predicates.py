"""Rows that a SELECT's own comparisons exclude make no difference to it: each is run on all rows and on those left."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pytest

from flight_server.engine.chosen import conditions_of, named
from flight_server.engine.rewrite import TableRef, rewritten, tables_of, tree_of
from flight_server.engine.statements import parse
from flight_server.storage.file_index import Condition

DAY_US = 86_400_000_000
NOW_US = 1_795_000_000_000_000
SCHEMA = pa.schema(
    [
        ("symbol", pa.string()),
        ("trade_id", pa.int64()),
        ("event_time", pa.timestamp("us", "UTC")),
        ("price", pa.int32()),
    ]
)


@pytest.fixture(scope="module")
def cursor() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'; ATTACH ':memory:' AS k2; USE k2; CREATE SCHEMA market; USE k2.market")
        for table in ("trades", "quotes"):
            connection.execute(
                f"CREATE TABLE {table} AS SELECT ['A', 'B', 'b', NULL][1 + i % 4] AS symbol, i::BIGINT AS trade_id, "
                "CASE WHEN i % 7 = 0 THEN NULL ELSE TIMESTAMPTZ '2024-08-12 00:00:00+00' + to_minutes(i * 7) END "
                "AS event_time, (i * 31 % 10)::INTEGER AS price FROM range(60) r(i)"
            )
        yield connection


#: (statement, parameters, how many tables have something asked of them)
STATEMENTS = [
    ("SELECT * FROM trades WHERE symbol = 'A'", (), 1),
    ("SELECT * FROM trades WHERE 'A' = symbol AND trade_id > 10", (), 1),
    ("SELECT * FROM market.trades WHERE trades.symbol IN ('A', 'b') AND market.trades.trade_id = 4", (), 1),
    ("SELECT count(*) FROM trades WHERE trade_id BETWEEN 10 AND 20 OR symbol = 'A'", (), 0),
    ("SELECT count(*) FROM trades WHERE NOT (trade_id > 10)", (), 1),
    ("SELECT count(*) FROM trades WHERE trade_id BETWEEN 10 AND 20", (), 1),
    ("SELECT count(*) FROM trades WHERE trade_id NOT BETWEEN 10 AND 20", (), 0),
    ("SELECT count(*) FROM trades WHERE trade_id NOT IN (1, 2)", (), 0),
    ("SELECT count(*) FROM trades WHERE event_time >= TIMESTAMPTZ '2024-08-12 01:00:00+00'", (), 1),
    (
        "SELECT count(*) FROM trades WHERE event_time >= '2024-08-12 01:00:00+00' AND event_time < '2024-08-12 04:00'",
        (),
        1,
    ),
    (
        "SELECT price FROM trades WHERE event_time > TIMESTAMP '2024-08-12 01:00' AND event_time < DATE '2024-08-13'",
        (),
        1,
    ),
    (
        "SELECT count(*) FROM trades WHERE event_time > now() - INTERVAL 100 YEAR AND event_time < current_timestamp",
        (),
        1,
    ),
    ("SELECT price FROM trades WHERE event_time > TIMESTAMPTZ '2024-08-12 01:00:00+00' + to_hours(2)", (), 1),
    ("SELECT count(*) FROM trades WHERE event_time > date_trunc('day', TIMESTAMPTZ '2024-08-12 05:00:00+00')", (), 1),
    ("SELECT count(*) FROM trades WHERE event_time = NULL OR trade_id = 3", (), 0),
    ("SELECT count(*) FROM trades WHERE symbol = NULL", (), 0),
    ("SELECT count(*) FROM trades WHERE trade_id > 10.5 AND trade_id < 1e1", (), 0),
    ("SELECT count(*) FROM trades WHERE trade_id = '7'", (), 1),
    ("SELECT count(*) FROM trades WHERE symbol = 'A' COLLATE NOCASE", (), 0),
    ("SELECT count(*) FROM trades WHERE symbol || '' = 'A'", (), 0),
    ("SELECT price AS trade_id FROM trades WHERE trade_id > 50", (), 1),
    ("SELECT trade_id AS x FROM trades WHERE x > 50", (), 1),
    ("SELECT symbol, sum(price) FROM trades WHERE trade_id > 30 GROUP BY symbol HAVING sum(price) > 10", (), 1),
    ("SELECT *, row_number() OVER (ORDER BY trade_id) FROM trades WHERE trade_id > 50 QUALIFY price > 3", (), 1),
    (
        "SELECT t.price, q.price FROM trades t JOIN quotes q USING (trade_id) WHERE t.symbol = 'A' AND q.price > 3",
        (),
        2,
    ),
    (
        "SELECT t.trade_id, q.price FROM trades t LEFT JOIN quotes q ON t.trade_id = q.trade_id + 1 WHERE q.price > 5",
        (),
        1,
    ),
    (
        "SELECT t.price, q.price FROM trades t RIGHT JOIN quotes q ON t.trade_id = q.trade_id + 50 WHERE t.price < 5",
        (),
        1,
    ),
    (
        "SELECT t.trade_id, q.price FROM trades t FULL JOIN quotes q ON t.trade_id = q.trade_id + 50 WHERE t.price < 5",
        (),
        1,
    ),
    (
        "SELECT t.trade_id, q.price FROM trades t LEFT JOIN quotes q ON t.trade_id = q.trade_id + 1 AND q.price > 5",
        (),
        0,
    ),
    (
        "SELECT t.price, q.trade_id FROM trades t ASOF JOIN quotes q ON t.event_time >= q.event_time WHERE q.price > 5",
        (),
        0,
    ),
    ("SELECT t.trade_id FROM trades t SEMI JOIN quotes q ON t.trade_id = q.trade_id + 1 WHERE t.price > 5", (), 0),
    ("SELECT t.trade_id FROM trades t ANTI JOIN quotes q ON t.trade_id = q.trade_id + 30 WHERE t.price > 5", (), 0),
    ("SELECT t.trade_id, q.price FROM trades t POSITIONAL JOIN quotes q WHERE t.price > 5", (), 0),
    ("SELECT trade_id FROM trades, (SELECT 5 AS five) WHERE trade_id < 5", (), 0),
    ("SELECT a.trade_id, b.trade_id FROM trades a, trades b WHERE a.trade_id = 3 AND b.trade_id < 3", (), 2),
    ("WITH trades AS (SELECT 1 AS trade_id) SELECT * FROM trades WHERE trade_id = 7", (), 0),
    ("WITH x AS (SELECT * FROM trades WHERE trade_id > 40) SELECT * FROM x WHERE symbol = 'A'", (), 1),
    ("SELECT * FROM trades WHERE trade_id > 40 UNION ALL SELECT * FROM trades WHERE trade_id < 3", (), 2),
    ("SELECT * FROM trades WHERE trade_id IN (SELECT trade_id FROM quotes WHERE price = 3) AND price > 2", (), 2),
    (
        "SELECT (SELECT max(price) FROM quotes q WHERE q.trade_id < t.trade_id) m FROM trades t WHERE t.trade_id < 9",
        (),
        1,
    ),
    ("SELECT count(*) FROM trades AS t(a, b, c, d) WHERE b > 50", (), 0),
    ("SELECT count(*) FROM trades TABLESAMPLE 100% WHERE trade_id > 50", (), 0),
    ("SELECT count(*) FROM trades WHERE trade_id > ? AND symbol = ?", (20, "A"), 1),
    ("SELECT count(*) FROM trades WHERE symbol = $s AND trade_id BETWEEN $a AND $b", {"s": "b", "a": 5, "b": 50}, 1),
    ("SELECT count(*) FROM trades WHERE trade_id > ?", (2.5,), 1),
    ("SELECT count(*) FROM trades WHERE trade_id IN (1, 2, ?)", (None,), 1),
    ("SELECT count(*) FROM trades WHERE trade_id + 0 > 5 AND price <= 3", (), 1),
    ("SELECT count(*) FROM trades WHERE (trade_id > 5 AND (price <= 3 AND symbol >= 'B'))", (), 1),
    ("SELECT count(*) FROM trades WHERE trade_id >= CAST('5' AS BIGINT) AND trade_id < (3 + 4) * 2", (), 1),
    ("SELECT count(*) FROM trades WHERE TRADE_ID >= 5 AND Trades.Price < 4", (), 1),
    ("FROM trades WHERE trade_id = 5", (), 1),
    ("SELECT count(*) FROM trades WHERE unknown_column = 5 OR true", (), 0),
]


@pytest.mark.parametrize(("sql", "given", "asked"), STATEMENTS)
def test_rows_that_are_excluded_make_no_difference(
    cursor: duckdb.DuckDBPyConnection, sql: str, given: tuple[object, ...] | dict[str, object], asked: int
) -> None:
    statement = parse(sql, cursor, frozenset())
    tree = tree_of(sql, cursor)
    refs = tables_of(tree)
    assert sum(bool(ref.asked) for ref in refs) == asked
    values = given if isinstance(given, dict) else list(given)

    def some_rows(ref: object) -> str | None:
        assert isinstance(ref, TableRef)
        conditions = conditions_of(ref.asked, SCHEMA, named(statement, values), cursor, NOW_US)
        return f"SELECT * FROM k2.market.{ref.name} WHERE {' AND '.join(map(as_sql, conditions)) or 'true'}"

    try:
        expected = cursor.execute(sql, values or None).to_arrow_table().to_pylist()
    except duckdb.Error as error:
        with pytest.raises(type(error)):
            cursor.execute(rewritten(tree, some_rows, schema="market"), values or None)
        return
    found = cursor.execute(rewritten(tree, some_rows, schema="market"), values or None).to_arrow_table().to_pylist()
    assert sorted(found, key=repr) == sorted(expected, key=repr)


def as_sql(condition: Condition) -> str:
    """As files are chosen, but for one row: whether it may be left out."""
    column = f"epoch_us({condition.column})" if condition.column == "event_time" else condition.column
    terms = []
    for low, high in condition.intervals:
        ends = [f"{column} >= {low!r}"] * (low is not None) + [f"{column} <= {high!r}"] * (high is not None)
        terms.append(f"({' AND '.join(ends) or 'true'})")
    return f"({' OR '.join(terms) or 'false'})"


@pytest.mark.parametrize(
    ("sql", "conditions"),
    [
        ("symbol = 'A' AND trade_id >= 3", [Condition("symbol", (("A", "A"),)), Condition("trade_id", ((3, None),))]),
        ("event_time < '1970-01-01 00:00:01+00'", [Condition("event_time", ((None, 1_000_000),))]),
        ("price IN (1, 2)", [Condition("price", ((1, 1), (2, 2)))]),
        ("trade_id > 1.5", []),
        ("event_time > 5", []),
        ("event_time > now() - INTERVAL 1 SECOND", [Condition("event_time", ((NOW_US - 1_000_000, None),))]),
        ("event_time < current_date", [Condition("event_time", ((None, NOW_US // DAY_US * DAY_US),))]),
        ("event_time >= today() - 1", [Condition("event_time", ((NOW_US // DAY_US * DAY_US - DAY_US, None),))]),
        ("symbol = '\ue000'", []),
    ],
)
def test_comparisons_become_conditions(
    cursor: duckdb.DuckDBPyConnection, sql: str, conditions: list[Condition]
) -> None:
    (ref,) = tables_of(tree_of(f"FROM trades WHERE {sql}", cursor))
    assert conditions_of(ref.asked, SCHEMA, {}, cursor, NOW_US) == conditions
