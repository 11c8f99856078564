"""What a change is of, where it goes, and the text that runs on scratch: read off its words, checked by DuckDB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import K2Error, PermissionDenied, Unsupported
from flight_server.engine.changes import Change, Verb, change_of
from flight_server.engine.parameter_types import parameter_types
from flight_server.engine.tokens import outermost, tokens_of


@pytest.fixture(scope="module")
def duck() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:") as connection:
        yield connection


def change(duck: duckdb.DuckDBPyConnection, text: str) -> Change:
    (statement,) = duck.extract_statements(text)
    return change_of(text, statement.type)


CHANGES: list[tuple[str, Verb, tuple[str, ...], dict[str, Any]]] = [
    ("create table x as select 1 as a;", Verb.CREATE_TABLE, ("x",), {"body": " select 1 as a"}),
    ("CREATE OR REPLACE TABLE research.X AS FROM t", Verb.CREATE_TABLE, ("research", "x"), {"replace": True}),
    ('create temp table "My T" (a int)', Verb.CREATE_TABLE, ("My T",), {"temporary": True, "definition": "(a int)"}),
    ("create table if not exists x(a int)", Verb.CREATE_TABLE, ("x",), {"if_exists": True, "definition": "(a int)"}),
    ("create /* as */ table x -- as\n as select 1", Verb.CREATE_TABLE, ("x",), {"body": " select 1"}),
    ("create view v as select 1", Verb.CREATE_VIEW, ("v",), {}),
    ("insert into x values (1)", Verb.INSERT, ("x",), {"columns": None, "body": "values (1)"}),
    ('insert into k2.research.x (a, "B") select 1, 2', Verb.INSERT, ("k2", "research", "x"), {"columns": ("a", "B")}),
    ("insert into x (select 1)", Verb.INSERT, ("x",), {"columns": None, "body": "(select 1)"}),
    ("insert or replace into x values (1)", Verb.INSERT, ("x",), {"replace": True}),
    (
        "with c as (insert_ from t) insert into x from c",
        Verb.INSERT,
        ("x",),
        {"body": "with c as (insert_ from t) from c"},
    ),
    ("update a.b set c = 1", Verb.UPDATE, ("a", "b"), {}),
    ("delete from x where a in (select into_ from y)", Verb.DELETE, ("x",), {}),
    ("truncate x", Verb.DELETE, ("x",), {}),
    ("merge into x using y on true when matched then delete", Verb.MERGE, ("x",), {}),
    ("alter table if exists x add column b int", Verb.ALTER, ("x",), {"if_exists": True}),
    ("drop table if exists a.b", Verb.DROP_TABLE, ("a", "b"), {"if_exists": True}),
    ("drop view v", Verb.DROP_VIEW, ("v",), {}),
]


@pytest.mark.parametrize(("text", "verb", "target", "more"), CHANGES, ids=[case[0] for case in CHANGES])
def test_a_change_is_read(
    duck: duckdb.DuckDBPyConnection, text: str, verb: Verb, target: tuple[str, ...], more: dict[str, Any]
) -> None:
    if text.startswith("with"):
        text = text.replace("insert_", "select *")
    found = change(duck, text)
    if text.startswith("truncate"):
        assert found.verb in (Verb.TRUNCATE, Verb.DELETE)
    else:
        assert found.verb is verb
    assert found.target == target
    for name, value in more.items():
        assert getattr(found, name) == (value.replace("insert_", "select *") if isinstance(value, str) else value)


@pytest.mark.parametrize(
    "text",
    [
        "create table x as select 1 as a",
        "create or replace table x (a int, b varchar)",
        "create temporary table x (a int)",
        "create view x as select 1 as a",
        "CREATE OR REPLACE TEMP VIEW x AS SELECT 1 AS a",
    ],
)
def test_what_is_made_without_a_schema_is_temporary(text: str) -> None:
    with duckdb.connect(":memory:") as own:
        own.execute(change(own, text).scratch_text)
        assert own.execute("select count(*) from duckdb_tables() where not temporary").fetchone() == (0,)
        own.execute("from temp.main.x")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("create schema s", PermissionDenied),
        ("create macro m(a) as a", PermissionDenied),
        ("create secret (type s3)", PermissionDenied),
        ("drop schema s", PermissionDenied),
        ("alter sequence s owned by t", PermissionDenied),
        ("insert into x values (1) returning a", Unsupported),
    ],
)
def test_what_is_no_table_is_refused(duck: duckdb.DuckDBPyConnection, text: str, kind: type[K2Error]) -> None:
    with pytest.raises(kind):
        change(duck, text)


@given(st.text(alphabet="abé_ \n'\"-/*();$?,=.1", max_size=40))
def test_tokens_stand_where_they_say(text: str) -> None:
    data = text.encode()
    last = 0
    for token in tokens_of(text):
        assert last <= token.start <= token.end <= len(data)
        last = token.start
        if token.name is not None and not token.quoted:
            assert data[token.start : token.end].decode().lower() == token.name
    assert len(outermost(tokens_of(text))) <= len(tokens_of(text))


COLUMNS = {"a": "INTEGER", "b": "VARCHAR", "c": "DECIMAL(18,8)"}


@pytest.mark.parametrize(
    ("text", "types"),
    [
        ("insert into t values (?, ?, ?)", {"1": "INTEGER", "2": "VARCHAR", "3": "DECIMAL(18,8)"}),
        ("insert into t values ($2, $1, 5)", {"2": "INTEGER", "1": "VARCHAR"}),
        ("insert into t (c, a) values (?, ?)", {"1": "DECIMAL(18,8)", "2": "INTEGER"}),
        ("insert into t values (?, ?, ?), (?, ?, ?)", {"1": "INTEGER", "4": "INTEGER", "6": "DECIMAL(18,8)"}),
        ("insert into t values (? + 1, upper(?), c)", {}),
        ("update t set b = ? where a >= ? and c <> ?", {"1": "VARCHAR", "2": "INTEGER", "3": "DECIMAL(18,8)"}),
        ("delete from t where a = $id", {"id": "INTEGER"}),
        ("delete from t where other = ?", {}),
    ],
)
def test_parameters_have_the_types_of_the_columns_that_they_meet(
    duck: duckdb.DuckDBPyConnection, text: str, types: dict[str, str]
) -> None:
    found = parameter_types(text, change(duck, text), COLUMNS)
    assert types.items() <= found.items()
    if not types:
        assert not found
