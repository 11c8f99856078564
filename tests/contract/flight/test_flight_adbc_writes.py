"""K2 through ADBC where something is changed: transactions, updates, ingest, and the session's own options."""

from __future__ import annotations

import adbc_driver_flightsql.dbapi as dbapi
import adbc_driver_manager
import pyarrow as pa
import pytest
from conftest import Served


@pytest.mark.flight_sql("CommandStatementQuery", "TicketStatementQuery", client="adbc")
def test_a_query_that_is_not_prepared(connection: dbapi.Connection) -> None:
    with adbc_driver_manager.AdbcStatement(connection.adbc_connection) as statement:
        statement.set_sql_query("select 42 as a")
        stream, _ = statement.execute_query()
        assert pa.RecordBatchReader._import_from_c(stream.address).read_all().to_pydict() == {"a": [42]}


@pytest.mark.flight_sql("BeginTransaction", "EndTransaction", client="adbc")
def test_dbapi_begins_commits_and_rolls_back(served: Served) -> None:
    with dbapi.connect(served.uri) as connection, connection.cursor() as cursor:
        cursor.execute("create table t as select 1 as a")
        connection.commit()
        cursor.execute("insert into t values (2)")
        cursor.execute("select count(*) from t")
        assert cursor.fetchone() == (2,)
        connection.rollback()
        cursor.execute("select a from t")
        assert cursor.fetchall() == [(1,)]


@pytest.mark.flight_sql("CommandStatementUpdate", client="adbc")
def test_a_script_is_an_update(connection: dbapi.Connection) -> None:
    with connection.cursor() as cursor:
        cursor.executescript("create table t as select range as a from range(3)")
        cursor.execute("select sum(a)::integer from t")
        assert cursor.fetchone() == (3,)


@pytest.mark.flight_sql("CommandPreparedStatementUpdate", client="adbc")
def test_executemany_changes_once_per_row_of_parameters(connection: dbapi.Connection) -> None:
    with connection.cursor() as cursor:
        cursor.execute("create table t (a integer, b varchar)")
        cursor.executemany("insert into t values (?, ?)", [(number, f"b{number}") for number in range(100)])
        assert cursor.rowcount == 100
        cursor.executemany("delete from t where a = ?", pa.record_batch({"a": [1, 3, 1_000]}))
        assert cursor.rowcount == 2
        cursor.execute("select count(*), min(b) from t")
        assert cursor.fetchone() == (98, "b0")


@pytest.mark.flight_sql("CommandStatementIngest", client="adbc")
@pytest.mark.parametrize("mode", ["create", "append", "replace", "create_append"])
def test_ingest_in_each_mode(connection: dbapi.Connection, mode: str) -> None:
    data = pa.table({"a": [1, 2], "b": ["ü", None]})
    with connection.cursor() as cursor:
        if mode == "append":
            cursor.adbc_ingest("t", data, mode="create", temporary=True)
        assert cursor.adbc_ingest("t", data, mode=mode, temporary=True) == 2
        cursor.execute("select count(*) from t")
        assert cursor.fetchone() == (4 if mode == "append" else 2,)


@pytest.mark.flight_sql("GetSessionOptions", "SetSessionOptions", client="adbc")
def test_the_current_catalog_and_schema(connection: dbapi.Connection) -> None:
    assert (connection.adbc_current_catalog, connection.adbc_current_db_schema) == ("k2", "market")
    connection.adbc_current_db_schema = "research"
    assert connection.adbc_current_db_schema == "research"
    with connection.cursor() as cursor:
        cursor.execute("select current_schema()")
        assert cursor.fetchone() == ("research",)
