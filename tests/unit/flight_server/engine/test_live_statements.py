"""SUBSCRIBE's own syntax, calls of k2_changes as the parser shows them, and which queries can be followed."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest

from common.errors import InvalidStatement
from flight_server.engine.control import Subscribe, subscribe_of
from flight_server.engine.rewrite import Argument, FunctionRef, functions_of, rewritten, tables_of, tree_of
from flight_server.engine.statements import StatementKind, parse
from flight_server.engine.table_functions import by_name, text_of, with_parameters


@pytest.fixture(scope="module")
def parser() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SUBSCRIBE (SELECT 1)", Subscribe("SELECT 1")),
        ("subscribe(select (1) + f(2)) ;", Subscribe("select (1) + f(2)")),
        ("-- all\n/* of\nit */ Subscribe (FROM t -- ) no\n)", Subscribe("FROM t -- ) no\n")),
        ("SUBSCRIBE (SELECT ')' AS \")\") FROM NOW", Subscribe("SELECT ')' AS \")\"", from_now=True)),
        ("SUBSCRIBE (SELECT 'ä') FROM\nCUT\n'{\"a\": ''b''}' -- the last", Subscribe("SELECT 'ä'", cut="{\"a\": 'b'}")),
        ("SUBSCRIBE (FROM t) FROM CUT ''", Subscribe("FROM t", cut="")),
        ("SELECT 1", None),
        ("subscriber (1)", None),
        ('"subscribe" (1)', None),
        ("SELECT 'SUBSCRIBE (SELECT 1)'", None),
        ("", None),
    ],
)
def test_subscribe_is_read(text: str, expected: Subscribe | None) -> None:
    assert subscribe_of(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "SUBSCRIBE",
        "SUBSCRIBE x",
        "SUBSCRIBE SELECT 1",
        "SUBSCRIBE (SELECT 1",
        "SUBSCRIBE (SELECT 1))",
        "SUBSCRIBE (SELECT 1) (SELECT 2)",
        "SUBSCRIBE (SELECT 1) FROM",
        "SUBSCRIBE (SELECT 1) FROM now()",
        "SUBSCRIBE (SELECT 1) FROM CUT x",
        "SUBSCRIBE (SELECT 1) FROM CUT 1",
        'SUBSCRIBE (SELECT 1) FROM CUT "x"',
        "SUBSCRIBE (SELECT 1) FROM CUT $$x$$",
        "SUBSCRIBE (SELECT 1) FROM CUT 'x' 'y'",
        "SUBSCRIBE (SELECT 1) FROM CUT 'x",
        "SUBSCRIBE (SELECT 1); SUBSCRIBE (SELECT 2)",
    ],
)
def test_what_is_nearly_subscribe_is_told_how_it_is_written(text: str) -> None:
    with pytest.raises(InvalidStatement, match="SUBSCRIBE is written"):
        subscribe_of(text)


def test_it_is_a_query_with_the_query_inside(parser: duckdb.DuckDBPyConnection) -> None:
    statement = parse("SUBSCRIBE (SELECT a FROM t WHERE b = ? AND c < ?) FROM NOW", parser, frozenset())
    assert statement.kind is StatementKind.SUBSCRIBE
    assert statement.is_query
    assert statement.parameters == ("1", "2")
    assert statement.detail == Subscribe("SELECT a FROM t WHERE b = ? AND c < ?", from_now=True)
    assert statement.subscribed is not None
    assert statement.subscribed.kind is StatementKind.QUERY
    assert statement.subscribed.text == "SELECT a FROM t WHERE b = ? AND c < ?"


def test_calls_are_found_with_their_arguments(parser: duckdb.DuckDBPyConnection) -> None:
    text = (
        "WITH n AS (FROM k2_changes('a', [1, 2][1], f(b, ',')) c) SELECT * FROM n, K2_Changes('ä', ?, to_cut => $2) "
        "JOIN t ON k2_other(1) > 0, range(3)"
    )
    tree = tree_of(text, parser)
    assert [ref.name for ref in tables_of(tree)] == ["t"]
    assert sorted(functions_of(tree), key=lambda ref: ref.alias or "") == [
        FunctionRef(
            "k2_changes",
            (
                Argument("'ä'"),
                Argument("?", parameter="1", has_parameter=True, parameters=("1",)),
                Argument("$2", "to_cut", "2", has_parameter=True, parameters=("2",)),
            ),
        ),
        FunctionRef("k2_changes", (Argument("'a'"), Argument("[1, 2][1]"), Argument("f(b, ',')")), "c"),
    ]


def test_a_subquery_takes_the_place_of_a_call(parser: duckdb.DuckDBPyConnection) -> None:
    tree = tree_of("SELECT k2_changes.a, c.b FROM k2_changes('ü', ?) JOIN k2_changes('y') AS c(b) USING (x)", parser)
    found = rewritten(tree, lambda ref: f"FROM t{len(ref.arguments)}" if isinstance(ref, FunctionRef) else None)
    assert found == 'SELECT k2_changes.a, c.b FROM (FROM t2) AS "k2_changes" JOIN (FROM t1) AS c(b) USING (x)'


def test_parameters_stay_in_number_and_order(parser: duckdb.DuckDBPyConnection) -> None:
    tree = tree_of("SELECT ?, * FROM k2_changes('t', ?, ?) WHERE a = ?", parser)
    (ref,) = functions_of(tree)
    found = rewritten(tree, lambda ref: with_parameters("SELECT 1 AS a", ref) if isinstance(ref, FunctionRef) else None)
    assert found.count("?") == 4
    assert parser.execute(found, [7, "x", None, 1]).fetchall() == [(7, 1)]
    assert text_of(ref.arguments[1], ref, parser, [7, "x", None, 1]) == "x"
    assert text_of(ref.arguments[2], ref, parser, [7, "x", None, 1]) is None


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("k2_changes('t')", {"table": "t"}),
        ("k2_changes('t', NULL)", {"table": "t", "from_cut": None}),
        ("k2_changes('t', 5, '6')", {"table": "t", "from_cut": "5", "to_cut": "6"}),
        ("k2_changes('t', to_cut => 'b' || 'c')", {"table": "t", "to_cut": "bc"}),
        (
            "k2_changes('t', TIMESTAMP '2026-01-01', TIMESTAMPTZ '2026-01-01 02:00:00+02')",
            {"table": "t", "from_cut": "2026-01-01T00:00:00.000000Z", "to_cut": "2026-01-01T00:00:00.000000Z"},
        ),
    ],
)
def test_arguments_say_what_they_say(
    parser: duckdb.DuckDBPyConnection, call: str, expected: dict[str, str | None]
) -> None:
    parser.execute("SET TimeZone = 'UTC'")
    (ref,) = functions_of(tree_of(f"FROM {call}", parser))
    assert {name: text_of(argument, ref, parser, ()) for name, argument in by_name(ref).items()} == expected


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("k2_changes('t', 'a', 'b', 'c')", "takes table, from_cut, to_cut"),
        ("k2_changes('t', since => 'a')", "takes table, from_cut, to_cut"),
        ("k2_changes('t', 'a', from_cut => 'b')", "takes table, from_cut, to_cut"),
    ],
)
def test_arguments_that_it_does_not_take(parser: duckdb.DuckDBPyConnection, call: str, says: str) -> None:
    (ref,) = functions_of(tree_of(f"FROM {call}", parser))
    with pytest.raises(InvalidStatement, match=says):
        by_name(ref)


@pytest.mark.parametrize("argument", ["(SELECT 1)", "a", "1 +", "now()", "current_date", "f(?)", "error('x')"])
def test_what_is_no_constant_is_refused(parser: duckdb.DuckDBPyConnection, argument: str) -> None:
    if argument == "1 +":
        with pytest.raises(InvalidStatement):
            tree_of(f"FROM k2_changes('t', {argument})", parser)
        return
    (ref,) = functions_of(tree_of(f"FROM k2_changes('t', {argument})", parser))
    with pytest.raises(Exception, match=r"no constant|no subquery|stay the same|stand by itself"):
        text_of(ref.arguments[1], ref, parser, ["x"])
