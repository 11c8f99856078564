"""K2 through ADBC, as most programs will meet it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import adbc_driver_flightsql.dbapi as dbapi
import adbc_driver_manager
import duckdb
import pyarrow as pa
import pytest
from conftest import ROWS, Served

from common.schemas.arrow import table_schema


@pytest.mark.flight_sql("CreatePreparedStatement", "CommandPreparedStatementQuery", client="adbc")
def test_a_query(connection: dbapi.Connection) -> None:
    with connection.cursor() as cursor:
        cursor.execute("select symbol, count(*) n, sum(price) s from market.trades group by symbol")
        assert [column[0] for column in cursor.description] == ["symbol", "n", "s"]
        assert cursor.fetchall() == [("BTCUSDT", ROWS, Decimal("104995.00000000"))]
        cursor.execute("select 1 a, 2 a")
        assert cursor.fetchall() == [(1, 2)]


@pytest.mark.flight_sql("CommandPreparedStatementQuery", client="adbc")
def test_parameters(connection: dbapi.Connection) -> None:
    instant = datetime(2024, 8, 9, 12, 0, 0, 123456, tzinfo=UTC)
    with connection.cursor() as cursor:
        cursor.execute(
            "select trade_id from market.trades where price > ? and symbol = ? order by 1 limit 2",
            (Decimal("100.5"), "BTCUSDT"),
        )
        assert cursor.fetchall() == [(51,), (52,)]
        cursor.execute(
            "select ? a, ? b, ? c, ? d, ? e, ? f", (instant, None, True, b"\x00\xff", "it's", Decimal("-0.00000001"))
        )
        assert cursor.fetchone() == (instant, None, True, b"\x00\xff", "it's", Decimal("-0.00000001"))
        for symbol, count in (("BTCUSDT", ROWS), ("none", 0), ("BTCUSDT", ROWS)):
            cursor.execute("select count(*) from market.trades where symbol = ?", (symbol,))
            assert cursor.fetchone() == (count,)


@pytest.mark.flight_sql(
    "CreatePreparedStatement", "CommandPreparedStatementQuery", "ClosePreparedStatement", client="adbc"
)
def test_prepared_by_hand(connection: dbapi.Connection, served: Served) -> None:
    with adbc_driver_manager.AdbcStatement(connection.adbc_connection) as statement:
        statement.set_sql_query("select trade_id from market.trades where trade_id < ? order by 1")
        statement.prepare()
        described = statement.get_parameter_schema()
        assert pa.Schema._import_from_c(described.address).types == [pa.int64()]
        for bound in (pa.record_batch({"a": [2]}), pa.record_batch({"a": [1, 3]})):
            statement.bind(*exported(bound))
            handle, _ = statement.execute_query()
            got = pa.RecordBatchReader._import_from_c(handle.address).read_all().column(0).to_pylist()
            assert got == [number for limit in bound.column(0).to_pylist() for number in range(limit)]
        assert served.service.stats().prepared_statements == 1
    assert served.service.stats().prepared_statements == 0


def exported(batch: pa.RecordBatch) -> tuple[Any, Any]:
    array, schema = adbc_driver_manager.ArrowArrayHandle(), adbc_driver_manager.ArrowSchemaHandle()
    batch._export_to_c(array.address, schema.address)
    return array, schema


def test_record_batches_stream(connection: dbapi.Connection) -> None:
    with connection.cursor() as cursor:
        cursor.execute("select range a, 'x' || range b from range(300000)")
        reader = cursor.fetch_record_batch()
        batches = list(reader)
        assert sum(batch.num_rows for batch in batches) == 300_000 and len(batches) > 3
        cursor.execute("select * from market.trades where false")
        empty = cursor.fetch_arrow_table()
        assert empty.num_rows == 0 and empty.column_names == table_schema("trade").names


def test_wide_rows_stay_below_the_message_limit(connection: dbapi.Connection) -> None:
    """60 MB in 60 rows: as one batch it would break ADBC's limit of 16 MiB."""
    with connection.cursor() as cursor:
        cursor.execute("select repeat('x', 1000000) v from range(60)")
        assert sum(len(value) for (value,) in cursor.fetchall()) == 60_000_000


@pytest.mark.flight_sql("CommandGetSqlInfo", client="adbc")
def test_what_the_server_says_of_itself(connection: dbapi.Connection) -> None:
    info = connection.adbc_get_info()
    assert info["vendor_name"] == "K2"
    assert info["vendor_version"] == f"duckdb v{duckdb.__version__}"


@pytest.mark.flight_sql("CommandGetCatalogs", client="adbc")
@pytest.mark.parametrize("depth", ["catalogs", "db_schemas", "tables", "all"])
def test_objects_at_every_depth(connection: dbapi.Connection, depth: Any) -> None:
    (catalog,) = connection.adbc_get_objects(depth=depth).read_all().to_pylist()
    assert catalog["catalog_name"] == "k2"
    if depth == "catalogs":
        return
    schema, ops, research = catalog["catalog_db_schemas"]
    assert ops["db_schema_name"] == "ops"
    assert schema["db_schema_name"] == "market" and research["db_schema_name"] == "research"
    if depth == "db_schemas":
        return
    tables = {table["table_name"]: table for table in schema["db_schema_tables"]}
    assert list(tables) == ["instruments", "quotes", "trades"]
    assert {table["table_type"] for table in tables.values()} == {"TABLE"}
    if depth == "tables":
        return
    columns = {column["column_name"]: column for column in tables["trades"]["table_columns"]}
    assert list(columns) == table_schema("trade").names
    assert columns["price"]["xdbc_type_name"] == "DECIMAL(18,8)"
    assert columns["price"]["xdbc_data_type"] == columns["price"]["xdbc_sql_data_type"]
    assert columns["price"]["xdbc_scope_table"] == "trades" and columns["price"]["xdbc_is_autoincrement"] is False


@pytest.mark.flight_sql("CommandGetDbSchemas", client="adbc")
@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"table_name_filter": "trad%"}, ["trades"]),
        ({"table_name_filter": "QUOTES"}, ["quotes"]),
        ({"db_schema_filter": "none"}, []),
        ({"catalog_filter": "k2", "table_types_filter": ["TABLE"]}, ["instruments", "quotes", "trades", "gap_events"]),
        ({"table_types_filter": ["VIEW"]}, []),
    ],
)
def test_objects_are_filtered(connection: dbapi.Connection, filters: dict[str, Any], expected: list[str]) -> None:
    found = connection.adbc_get_objects(depth="tables", **filters).read_all().to_pylist()
    names = [
        table["table_name"]
        for catalog in found
        for schema in catalog["catalog_db_schemas"] or []
        for table in schema["db_schema_tables"] or []
    ]
    assert names == expected


@pytest.mark.flight_sql("CommandGetTables", "CommandGetTableTypes", client="adbc")
def test_a_tables_schema_and_the_table_types(connection: dbapi.Connection) -> None:
    schema = connection.adbc_get_table_schema("trades", db_schema_filter="market")
    assert [(field.name, field.nullable) for field in schema] == [
        (field.name, field.nullable) for field in table_schema("trade")
    ]
    assert schema.types == table_schema("trade").types
    assert connection.adbc_get_table_types() == ["LOCAL TEMPORARY", "SYSTEM TABLE", "TABLE", "VIEW"]


ERRORS = [
    ("select *\nfrom market.nope", "NOT_FOUND", "LINE 2: from market.nope\n             ^"),
    ("selec 1", "INVALID_ARGUMENT", "LINE 1: selec 1\n        ^"),
    ("insert into market.trades values (1)", "UNAUTHORIZED", "market.trades is read-only"),
    ("select * from read_csv('/etc/passwd')", "UNAUTHORIZED", "read_csv"),
    ("select 1; select 2", "INVALID_ARGUMENT", "2 statements"),
    ("copy market.trades to 'x'", "UNAUTHORIZED", "K2 does not allow COPY"),
    ("select ?, ?", "INVALID_ARGUMENT", "takes 2 parameters and none was bound"),
]


@pytest.mark.parametrize(("sql", "status", "says"), ERRORS)
def test_errors_are_one_sentence_with_a_status(connection: dbapi.Connection, sql: str, status: str, says: str) -> None:
    with connection.cursor() as cursor, pytest.raises(dbapi.Error) as caught:
        cursor.execute(sql)
    told = str(caught.value)
    assert told.startswith(status) and says in told
    assert "Traceback" not in told and ".py" not in told
    assert told.count(says) == 1
    details = dict(caught.value.details)
    assert says in details[b"x-arrow-status-message-bin"].decode()


@pytest.mark.parametrize("size", [1, 3_000_000])
def test_an_error_inside_a_stream_keeps_its_words(connection: dbapi.Connection, size: int) -> None:
    with connection.cursor() as cursor, pytest.raises(Exception, match="Could not convert string 'x'") as caught:
        cursor.execute(f"select case when range >= {size // 2} then 'x' else '1' end::int v from range({size})")
        cursor.fetch_arrow_table()
    assert "InvalidArgument" in str(caught.value) and "Traceback" not in str(caught.value)


def test_a_wrong_parameter_count(connection: dbapi.Connection) -> None:
    with (
        connection.cursor() as cursor,
        pytest.raises(dbapi.ProgrammingError, match="takes 1 parameter and 2 were bound"),
    ):
        cursor.execute("select ?", (1, 2))


def test_what_may_not_be_changed_is_refused(connection: dbapi.Connection) -> None:
    with connection.cursor() as cursor:
        with pytest.raises(dbapi.Error, match=r"market\.trades is read-only"):
            cursor.executescript("delete from market.trades")
        with pytest.raises(dbapi.Error, match="run it as a query"):
            cursor.executescript("select 1")


@pytest.mark.flight_sql("Handshake", client="adbc")
def test_a_client_with_a_password_is_let_in(served: Served) -> None:
    with (
        dbapi.connect(served.uri, db_kwargs={"username": "a", "password": "b"}, autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("select 1")
        assert cursor.fetchone() == (1,)


def test_cancel_ends_the_statement(connection: dbapi.Connection, served: Served) -> None:
    with connection.cursor() as cursor:
        cursor.execute("select a.range from range(1000000) a, range(1000000) b")
        cursor.fetchone()
        assert served.service.stats().open_statements == 1
        cursor.adbc_cancel()
    wait_until_idle(served)
    with connection.cursor() as cursor:
        cursor.execute("select 1")
        assert cursor.fetchone() == (1,)


def test_many_clients_at_once(served: Served) -> None:
    outcomes: list[int] = []

    def work(number: int) -> None:
        with dbapi.connect(served.uri, autocommit=True) as connection, connection.cursor() as cursor:
            for _ in range(5):
                cursor.execute("select count(*) + ? from market.trades, range(200)", (number,))
                outcomes.append(cursor.fetchone()[0] - number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [ROWS * 200] * 40
    wait_until_idle(served)


def wait_until_idle(served: Served) -> None:
    """Every statement has given back what it held; a test that waits here in vain is stopped by its runner."""
    while served.service.stats().open_statements:
        threading.Event().wait(0.005)
