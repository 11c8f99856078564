"""Tables in a SELECT: found where DuckDB finds them, replaced without changing anything else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InvalidStatement, Unsupported
from flight_server.engine.rewrite import TableRef, as_of_text, rewritten, tables_of, tree_of

CORPUS = [
    statement
    for statement in (Path(__file__).with_name("rewrite_corpus.sql")).read_text().split(";\n")
    if statement.strip()
]


@pytest.fixture(scope="module")
def cursor() -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect()
    connection.execute(
        """
        CREATE SCHEMA market;
        CREATE TABLE market.trades AS
            SELECT i AS id, 's' || (i % 3) AS symbol, (i * 1.5)::DECIMAL(18, 8) AS price, i::DECIMAL(28, 8) AS qty,
                   TIMESTAMP '2024-01-01' + INTERVAL (i) MINUTE AS ts, IF(i % 2 = 0, 'BUY', 'SELL') AS side,
                   ['a', 'b' || i] AS tags, MAP {'k': i} AS m, {'a': i, 'b': 'x'} AS s
            FROM range(40) r(i);
        CREATE TABLE market.quotes AS SELECT id, symbol, ts, price - 1 AS bid, price + 1 AS ask FROM market.trades;
        SET search_path = 'memory.market';
        SET threads = 1;
        """
    )
    yield connection
    connection.close()


def subquery(ref: TableRef) -> str:
    """The same rows as the table itself has."""
    return f'SELECT * FROM memory.market."{ref.name}"'


def answer(cursor: duckdb.DuckDBPyConnection, sql: str) -> tuple[list[str], list[str]]:
    result = cursor.execute(sql)
    return [column[0] for column in result.description], sorted(map(repr, result.fetchall()))


@pytest.mark.parametrize("sql", CORPUS)
def test_the_same_tables_in_subqueries_give_the_same_answer(cursor: duckdb.DuckDBPyConnection, sql: str) -> None:
    tree = tree_of(sql, cursor)
    assert rewritten(tree, lambda _ref: None) == sql
    if "rowid" in sql:
        return
    names, rows = answer(cursor, sql)
    changed_names, changed_rows = answer(cursor, rewritten(tree, subquery, schema="market"))
    assert changed_rows == rows
    for name, changed in zip(names, changed_names, strict=True):
        assert changed == name or "SELECT" in name or "market.trades" in name  # named after the table it reads


def test_the_corpus_reads_tables(cursor: duckdb.DuckDBPyConnection) -> None:
    assert len(CORPUS) > 110
    assert sum(bool(tables_of(tree_of(sql, cursor))) for sql in CORPUS) > 90


# -- generated: names of CTEs and of tables are the same, nested at random

NAMES = ("trades", "quotes", "x")


def queries(depth: int) -> st.SearchStrategy[str]:
    base = st.sampled_from(
        ["SELECT id FROM trades", "SELECT id FROM market.trades", "SELECT id FROM quotes", "SELECT 1 AS id",
         "SELECT trades.id FROM trades", "FROM trades SELECT id", "SELECT t.id FROM trades t",
         "SELECT t.id FROM memory.market.trades AS t", "SELECT market.quotes.id FROM market.quotes"]
    )  # fmt: skip
    if depth == 0:
        return base
    inner = queries(depth - 1)
    names = st.sampled_from(NAMES)
    return st.one_of(
        base,
        st.builds(lambda name, body, rest: f"WITH {name} AS ({body}) SELECT id FROM ({rest}) r", names, inner, inner),
        st.builds(
            lambda one, first, two, second: f"WITH {one} AS ({first}), {two} AS ({second}) SELECT id FROM {two}",
            st.just("trades"), inner, st.just("x"), inner,
        ),
        st.builds(lambda name, body: f"WITH {name} AS ({body}) SELECT id FROM {name}", names, inner),
        st.builds(lambda body, name: f"SELECT id FROM ({body}) AS {name}", inner, names),
        st.builds(lambda one, two: f"({one}) UNION ALL ({two})", inner, inner),
        st.builds(lambda body: f"SELECT id FROM trades WHERE id IN ({body})", inner),
        st.builds(lambda body: f"SELECT (SELECT max(id) FROM ({body}) z) AS id FROM quotes", inner),
        st.builds(lambda one, two: f"SELECT a.id FROM ({one}) a JOIN ({two}) b ON a.id = b.id", inner, inner),
        st.builds(lambda one: f"SELECT l.id FROM trades, LATERAL ({one}) l WHERE l.id = trades.id", inner),
    )  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(queries(3))
def test_whatever_is_nested_in_whatever(cursor: duckdb.DuckDBPyConnection, sql: str) -> None:
    limited = f"SELECT count(*), sum(id), min(id), max(id) FROM (SELECT * FROM ({sql}) LIMIT 100000)"
    try:
        expected = answer(cursor, limited)
    except duckdb.Error:
        return  # the same name twice in one FROM, and the like
    assert answer(cursor, rewritten(tree_of(limited, cursor), subquery, schema="market")) == expected


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(queries(3))
def test_what_is_replaced_is_what_duckdb_reads(cursor: duckdb.DuckDBPyConnection, sql: str) -> None:
    """With every table replaced by one without rows, an answer that needs tables has none, and others stay."""
    tree = tree_of(sql, cursor)
    changed = rewritten(tree, lambda ref: f"{subquery(ref)} WHERE false", schema="market")
    left = [ref for ref in tables_of(tree_of(changed, cursor)) if ref.catalog != "memory"]
    assert left == []
    assert len(tables_of(tree)) == len(tables_of(tree_of(changed, cursor)))


# -- references


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1", []),
        ("FROM trades", [TableRef("", "", "trades")]),
        ('FROM k2."Market".trades AS t', [TableRef("k2", "Market", "trades", "t")]),
        ("WITH trades AS (SELECT 1) FROM trades", []),
        ("WITH TRADES AS (SELECT 1) FROM Trades", []),
        ("WITH trades AS (SELECT 1) FROM market.trades", [TableRef("", "market", "trades")]),
        ("WITH trades AS (FROM trades) FROM trades", [TableRef("", "", "trades")]),
        ("WITH RECURSIVE r AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM r WHERE i < 3) FROM r", []),
        ("SHOW TABLES", []),
        ("SUMMARIZE trades", [TableRef("", "", "trades")]),
        ("FROM range(3)", []),
    ],
)
def test_tables_of(cursor: duckdb.DuckDBPyConnection, sql: str, expected: list[TableRef]) -> None:
    assert tables_of(tree_of(sql, cursor)) == expected


AT_FORMS = [
    ("FROM trades AT (VERSION => 123)", "VERSION", "123", "FROM (T) AS \"trades\" "),
    ("FROM trades t AT (VERSION => 123) WHERE id = 1", "VERSION", "123", "FROM (T) t  WHERE id = 1"),
    ("FROM trades AS t(a, b) AT (VERSION => 123)", "VERSION", "123", "FROM (T) AS t(a, b) "),
    ("FROM t: trades AT (VERSION => 123)", "VERSION", "123", "FROM t: (T) "),
    ("FROM market.trades at(version=>'{\"a\":(1}')", "VERSION", "'{\"a\":(1}'", "FROM (T) AS \"trades\" "),
    ("FROM trades AT (TIMESTAMP => now() - INTERVAL (1) HOUR) LIMIT 3", "TIMESTAMP", "now() - INTERVAL (1) HOUR",
     "FROM (T) AS \"trades\"  LIMIT 3"),
    ("FROM trades AT /* c */ (TIMESTAMP /* d */ => TIMESTAMP '2024-01-01')", "TIMESTAMP", "TIMESTAMP '2024-01-01'",
     "FROM (T) AS \"trades\" "),
    ("FROM trades AT (VERSION => $$12$$)", "VERSION", "$$12$$", "FROM (T) AS \"trades\" "),
    ("SELECT 'é' FROM trades é AT (VERSION => 1)", "VERSION", "1", "SELECT 'é' FROM (T) é "),
    ("FROM trades AT (VERSION => 1) TABLESAMPLE 10%", "VERSION", "1", "FROM (T) AS \"trades\"  TABLESAMPLE 10%"),
    ("DESCRIBE FROM trades AT (VERSION => 1)", "VERSION", "1", "DESCRIBE FROM (T) AS \"trades\" "),
    ("SELECT (SELECT max(id) FROM trades AT (VERSION => 1))", "VERSION", "1",
     "SELECT (SELECT max(id) FROM (T) AS \"trades\" )"),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "unit", "expression", "expected"), AT_FORMS)
def test_at_is_read_out_and_goes(
    cursor: duckdb.DuckDBPyConnection, sql: str, unit: str, expression: str, expected: str
) -> None:
    tree = tree_of(sql, cursor)
    (ref,) = tables_of(tree)
    assert ref.at is not None and (ref.at.unit, ref.at.expression) == (unit, expression)
    assert rewritten(tree, lambda _: "T") == expected
    tree_of(rewritten(tree, subquery), cursor)


def test_each_reference_has_an_at_of_its_own(cursor: duckdb.DuckDBPyConnection) -> None:
    sql = """
        WITH before AS (FROM trades AT (VERSION => 1))
        SELECT * FROM before JOIN trades a AT (VERSION => 2) USING (id) JOIN trades b USING (id)
        WHERE EXISTS (FROM quotes AT (VERSION => 3) WHERE quotes.id = b.id)
    """
    tree = tree_of(sql, cursor)

    def until(ref: TableRef) -> str | None:
        return None if ref.at is None else f'SELECT * FROM "{ref.name}" WHERE id < {10 * int(ref.at.expression)}'

    changed = rewritten(tree, until)
    assert sorted(ref.at.expression for ref in tables_of(tree) if ref.at) == ["1", "2", "3"]
    assert changed.count("JOIN trades b USING") == 1
    assert len(answer(cursor, changed)[1]) == 10


@pytest.mark.parametrize(
    "sql", ["FROM trades AT (VERSION => $1)", "FROM trades AT (VERSION => ?)", "FROM trades AT (TIMESTAMP => $at)"]
)
def test_at_takes_no_parameter(cursor: duckdb.DuckDBPyConnection, sql: str) -> None:
    with pytest.raises(Unsupported, match="AT takes a constant"):
        tree_of(sql, cursor)


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        ("VERSION => 123", "123"),
        ("VERSION => '{\"a\": 1}'", '{"a": 1}'),
        ("VERSION => 100 + 23", "123"),
        ("TIMESTAMP => TIMESTAMP '2024-01-01'", "2024-01-01T00:00:00.000000Z"),
        ("TIMESTAMP => TIMESTAMPTZ '2024-01-01 02:00:00.5+02'", "2024-01-01T00:00:00.500000Z"),
        ("TIMESTAMP => '2024-01-01'", "2024-01-01T00:00:00.000000Z"),
        ("TIMESTAMP => DATE '2024-01-01' + 1", "2024-01-02T00:00:00.000000Z"),
    ],
)
def test_what_at_says(clause: str, expected: str) -> None:
    with duckdb.connect() as cursor:
        cursor.execute("SET TimeZone = 'UTC'")
        (ref,) = tables_of(tree_of(f"FROM trades AT ({clause})", cursor))
        assert ref.at is not None
        assert as_of_text(ref.at, cursor) == expected


@pytest.mark.parametrize(
    "clause", ["VERSION => NULL", "TIMESTAMP => 'yesterday'", "VERSION => nonsense", "TIMESTAMP => 1"]
)
def test_an_at_that_says_nothing_is_refused_in_one_sentence(cursor: duckdb.DuckDBPyConnection, clause: str) -> None:
    (ref,) = tables_of(tree_of(f"FROM trades AT ({clause})", cursor))
    assert ref.at is not None
    with pytest.raises(InvalidStatement, match="AT ") as caught:
        as_of_text(ref.at, cursor)
    assert "\n" not in str(caught.value)


# -- what stays


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("SELECT ?, id FROM trades WHERE id = ? ORDER BY id LIMIT ?", [1, 2, 3]),
        ("SELECT $2, id FROM trades WHERE id = $1", [5, "x"]),
        ("SELECT $b, id FROM trades WHERE id = $a", {"a": 5, "b": "x"}),
        ("SELECT id FROM trades t WHERE (id, ?) IN (SELECT id, ? FROM trades LIMIT ?)", [1, 1, 5]),
    ],
)
def test_parameters_keep_number_and_order(cursor: duckdb.DuckDBPyConnection, sql: str, parameters: Any) -> None:
    changed = rewritten(tree_of(sql, cursor), subquery)
    assert changed != sql
    assert cursor.execute(changed, parameters).fetchall() == cursor.execute(sql, parameters).fetchall()


def test_a_view_over_the_name_replaced_is_not_asked(cursor: duckdb.DuckDBPyConnection) -> None:
    tree = tree_of("SELECT count(*) FROM trades, market.quotes", cursor)
    changed = rewritten(tree, lambda ref: "SELECT 1 AS id" if ref.name == "trades" else None)
    assert changed == 'SELECT count(*) FROM (SELECT 1 AS id) AS "trades", market.quotes'


def test_functions_that_read_by_name_are_refused_only_where_something_is_replaced(
    cursor: duckdb.DuckDBPyConnection,
) -> None:
    tree = tree_of("FROM trades, Query_Table('quotes')", cursor)
    assert rewritten(tree, lambda _: None) == tree.text
    with pytest.raises(Unsupported, match="query_table"):
        rewritten(tree, subquery)


@pytest.mark.parametrize("sql", ["INSERT INTO trades VALUES (1)", "SELEC 1", "", "CREATE TABLE x AS FROM trades"])
def test_what_is_no_select_is_refused(cursor: duckdb.DuckDBPyConnection, sql: str) -> None:
    with pytest.raises(InvalidStatement):
        tree_of(sql, cursor)


def test_a_statement_too_deep_to_be_read_is_refused(cursor: duckdb.DuckDBPyConnection) -> None:
    assert tables_of(tree_of("SELECT " + "- ( " * 900 + "1" + ")" * 900, cursor)) == []
    with pytest.raises(InvalidStatement, match="too deep"):
        tree_of("SELECT " + "+ ".join(["id"] * 990) + " FROM trades", cursor)


@pytest.mark.parametrize(
    ("sql", "named"),
    [
        ("SELECT count(*) FROM trades", set()),
        ("SELECT t.Price + id AS x, [symbol, 's'] FROM trades t WHERE ts > now()",
         {"t", "price", "id", "symbol", "ts"}),
        ("SELECT q.bid FROM trades JOIN quotes q USING (id, Symbol) GROUP BY ALL", {"q", "bid", "id", "symbol"}),
        ("SELECT max(price) OVER w FROM trades WINDOW w AS (PARTITION BY symbol ORDER BY ts)",
         {"price", "symbol", "ts"}),
        ("SELECT x FROM (SELECT (SELECT max(bid) FROM quotes q WHERE q.id = t.id) AS x FROM trades t)",
         {"x", "bid", "q", "id", "t"}),
        ("SELECT list_transform(tags, lambda tag: tag || side) FROM trades", {"tags", "tag", "side"}),
        ("SELECT price FROM trades UNION ALL BY NAME SELECT bid FROM quotes", {"price", "bid"}),
        ("FROM trades", None),
        ("SELECT price, quotes.* FROM trades, quotes", None),
        ("SELECT COLUMNS('p.*') FROM trades", None),
        ("SELECT price FROM trades ORDER BY ALL", None),
        ("SELECT #1 FROM trades", None),
        ("SELECT price FROM trades NATURAL JOIN quotes", None),
        ("SELECT price FROM trades POSITIONAL JOIN quotes", None),
        ("SELECT a FROM trades AS t(a, b)", None),
        ("SELECT a FROM (FROM trades) AS t(a, b)", None),
        ("SUMMARIZE SELECT price FROM trades", None),
        ("UNPIVOT quotes ON bid, ask", None),
    ],
)  # fmt: skip
def test_which_columns_a_statement_may_mean(
    cursor: duckdb.DuckDBPyConnection, sql: str, named: set[str] | None
) -> None:
    assert tree_of(sql, cursor).named == (None if named is None else frozenset(named))
