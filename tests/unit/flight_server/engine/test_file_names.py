"""A path where a table may stand is refused; anywhere else it is a value, or a name."""

from __future__ import annotations

import pytest

from common.errors import PermissionDenied
from flight_server.engine.file_names import refuse_files
from flight_server.engine.tokens import tokens_of

FILES = [
    "'/w/x.parquet'",
    '"/w/x.parquet"',
    "'x.csv'",
    '"x.PARQUET"',
    "E'/w/x\\x2eparquet'",
    "$$/w/x.parquet$$",
    "'s3://b/x'",
]
PLACES = [
    "SELECT * FROM {}",
    "FROM {}",
    "FROM/**/{}",
    "FROM {} SELECT a",
    "SELECT * FROM t, {}",
    "SELECT * FROM t AS a JOIN u ON a.x = u.x, {} AS f",
    "SELECT * FROM t JOIN u USING (x), {}",
    "SELECT * FROM t JOIN {} ON true",
    "SELECT * FROM t POSITIONAL JOIN {}",
    "SELECT * FROM ({} AS a JOIN t ON true)",
    "SELECT * FROM (t JOIN {} ON true)",
    "SELECT * FROM f: {}",
    "SELECT (SELECT max(a) FROM {})",
    "WITH x AS (FROM {}) FROM x",
    "CREATE TEMP VIEW v AS SELECT * FROM {}",
    "CREATE TEMP TABLE v AS FROM {}",
    "INSERT INTO t FROM {}",
    "INSERT INTO t SELECT 1 FROM u, {}",
    "UPDATE t SET a = (SELECT max(a) FROM {})",
    "UPDATE t SET a = f.a FROM {} AS f",
    "DELETE FROM t USING {} AS f",
    "MERGE INTO t USING {} AS f ON true WHEN MATCHED THEN DELETE",
    "DESCRIBE {}",
    "SUMMARIZE {}",
    "DESCRIBE TABLE {}",
    "PIVOT {} ON a IN (1) USING sum(b)",
    "SELECT trim((SELECT a FROM {}))",
    "SELECT * FROM query_table({})",
    "SELECT * FROM query_table([{}, 't'])",
    "SELECT * FROM query_table(['t', {}])",
]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("place", PLACES)
def test_files_in_the_place_of_tables_are_refused(place: str, file: str) -> None:
    with pytest.raises(PermissionDenied, match="stands where a table stands"):
        refuse_files(tokens_of(place.format(file)), is_change=False)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT '/w/x.parquet'",
        "SELECT 1, '/w/x.parquet', 2 FROM t",
        'SELECT a AS "a/b", "price/quantity" FROM t',
        'SELECT "price/quantity", "x.csv" FROM t',
        "SELECT * FROM t WHERE file IN ('/a.csv', '/b.csv')",
        "SELECT * FROM t WHERE a = '/a.csv' ORDER BY b, '/c.csv'",
        'SELECT * FROM t ORDER BY a, "b/c"',
        "SELECT * FROM (VALUES ('/a.csv', '/b.csv')) AS v(a, b)",
        "SELECT * FROM generate_series(1, 2), f('/a.csv', '/b.csv')",
        "SELECT * FROM t, unnest(['/a.csv', '/b.csv'])",
        "SELECT {'path': '/a.csv', 'other': '/b.csv'} FROM t",
        "SELECT m['/a.csv'] FROM t",
        "INSERT INTO t VALUES (1, '/a.csv'), (2, '/b.csv')",
        'INSERT INTO t ("a/b", c) VALUES (1, 2)',
        "UPDATE t SET a = '/a.csv', b = '/b.csv'",
        'SELECT * FROM t JOIN u USING (a, "b/c")',
        "SELECT * FROM 'trades'",
        'SELECT * FROM "my table"',
        "SELECT * FROM query_table('trades')",
        "SELECT * FROM query_table(['k2.market.trades', 'quotes'], true)",
        "SELECT * FROM t WHERE a LIKE '%/%' GROUP BY ALL",
        "SELECT trim(LEADING '/' FROM a) FROM t",
        "SELECT trim(BOTH '/' FROM '/a/'), extract(year FROM '2024/01/01'), substring(b FROM 2) FROM t",
        "CREATE TEMP TABLE x (a INTEGER DEFAULT 1, b VARCHAR DEFAULT '/a.csv')",
    ],
)
@pytest.mark.parametrize("is_change", [True, False])
def test_paths_as_values_and_names_are_not(text: str, is_change: bool) -> None:
    refuse_files(tokens_of(text), is_change=is_change)


@pytest.mark.parametrize(
    "argument",
    ["?", "$1", "'/w/' || 'x.parquet'", "concat('/w/', 'x')", "['t', ?]", "a", "chr(47) || 'w'", "(SELECT 't')"],
)
def test_what_query_table_would_be_given_must_be_plain_in_a_change(argument: str) -> None:
    tokens = tokens_of(f"CREATE TEMP TABLE x AS SELECT * FROM query_table({argument})")
    with pytest.raises(PermissionDenied):
        refuse_files(tokens, is_change=True)


@pytest.mark.parametrize(
    "text", ["", "FROM", "query_table", "query_table(", ", 'x/y'", "(", ": '/x'", "[ '/x'", "FROM ("]
)
@pytest.mark.parametrize("is_change", [True, False])
def test_scraps_of_statements_do_not_break_it(text: str, is_change: bool) -> None:
    refuse_files(tokens_of(text), is_change=is_change)
