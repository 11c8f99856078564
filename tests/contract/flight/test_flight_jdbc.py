"""K2 through the official Flight SQL JDBC driver, as DBeaver, Tableau and everything else on the JVM will meet it.

What the driver (18.3.0) cannot do is held here, too, so that a newer one that can is noticed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import jpype
import pytest
from conftest import ROWS, Served

from common.schemas.arrow import table_schema
from flight_server.protocol import FlightSql_pb2 as sql
from tests.support import jdbc
from tests.support.missing import MissingTool, skip_or_fail


@pytest.fixture(scope="module", autouse=True)
def _jvm() -> None:
    try:
        jdbc.start_jvm()
    except MissingTool as why:
        skip_or_fail(why)


@pytest.fixture
def java(served: Served) -> Iterator[Any]:
    """A java.sql.Connection of its own."""
    with jdbc.connected(served.uri) as connection:
        yield connection


@pytest.fixture
def table(java: Any) -> str:
    """A table of the session's own, empty."""
    execute(java, "create table t (i integer, s varchar, d decimal(18, 8), ts timestamptz)")
    return "t"


def execute(java: Any, sql: str) -> int:
    """Run something that returns no rows; how many it changed."""
    with jdbc.statement_of(java) as statement:
        assert not statement.execute(sql)
        return int(statement.getUpdateCount())


def rows(java: Any, sql: str) -> list[Any]:
    return jdbc.query(java, sql)[1]


def big(text: str) -> Any:
    return jpype.JClass("java.math.BigDecimal")(text)


def timestamp(text: str) -> Any:
    return jpype.JClass("java.sql.Timestamp").valueOf(text)


# -- what there is, as DBeaver asks for it


@pytest.mark.flight_sql("CommandGetSqlInfo", client="jdbc")
def test_what_the_driver_learns_of_the_server(java: Any) -> None:
    about = java.getMetaData()
    assert str(about.getDatabaseProductName()) == "K2"
    assert str(about.getDatabaseProductVersion()).startswith("duckdb v")
    assert (str(about.getDriverVersion()), bool(about.isReadOnly())) == (jdbc.VERSION, False)
    assert (str(about.getIdentifierQuoteString()), str(about.getSearchStringEscape())) == ('"', "\\")
    assert [str(about.getCatalogTerm()), str(about.getSchemaTerm())] == ["catalog", "schema"]
    assert "QUALIFY" in str(about.getSQLKeywords()) and "abs" in str(about.getNumericFunctions())
    assert "lower" in str(about.getStringFunctions()) and "date_trunc" in str(about.getStringFunctions())
    assert about.supportsTransactions() and about.supportsBatchUpdates() and not about.supportsSavepoints()
    # Repeatable read by Flight SQL's numbers, which the driver passes on as if they were JDBC's.
    assert about.getDefaultTransactionIsolation() == sql.SQL_TRANSACTION_REPEATABLE_READ
    assert about.supportsUnionAll() and about.supportsFullOuterJoins() and about.nullsAreSortedAtEnd()


@pytest.mark.flight_sql("CommandGetCatalogs", "CommandGetDbSchemas", "CommandGetTableTypes", client="jdbc")
def test_the_tree_of_catalogs_and_schemas(java: Any) -> None:
    about = java.getMetaData()
    assert "k2" in [row["TABLE_CAT"] for row in jdbc.records(about.getCatalogs())]
    schemas = {(row["TABLE_CATALOG"], row["TABLE_SCHEM"]) for row in jdbc.records(about.getSchemas())}
    assert ("k2", "market") in schemas
    assert [row["TABLE_SCHEM"] for row in jdbc.records(about.getSchemas("k2", "mark%"))] == ["market"]
    assert jdbc.records(about.getSchemas("none", None)) == []
    assert "TABLE" in [row["TABLE_TYPE"] for row in jdbc.records(about.getTableTypes())]


@pytest.mark.flight_sql("CommandGetTables", client="jdbc")
@pytest.mark.parametrize(
    ("schema", "pattern", "types", "expected"),
    [
        ("market", "%", None, ["instruments", "quotes", "trades"]),
        ("market", "t_ad%", None, ["trades"]),
        ("market", "%", ["TABLE"], ["instruments", "quotes", "trades"]),
        ("market", "%", ["LOCAL TEMPORARY"], []),
        ("none", "%", None, []),
    ],
)
def test_tables_by_pattern_and_type(
    java: Any, schema: str, pattern: str, types: list[str] | None, expected: list[str]
) -> None:
    found = jdbc.records(java.getMetaData().getTables(None, schema, pattern, types))
    assert [row["TABLE_NAME"] for row in found] == expected
    assert {(row["TABLE_CAT"], row["TABLE_SCHEM"], row["TABLE_TYPE"]) for row in found} <= {("k2", "market", "TABLE")}


@pytest.mark.flight_sql("CommandGetTables", client="jdbc")
def test_columns_with_types_sizes_and_remarks(java: Any) -> None:
    columns = jdbc.records(java.getMetaData().getColumns(None, "market", "trades", "%"))
    schema = table_schema("trade")
    assert [row["COLUMN_NAME"] for row in columns] == schema.names
    assert [row["ORDINAL_POSITION"] for row in columns] == list(range(1, len(schema) + 1))
    assert [row["IS_NULLABLE"] for row in columns] == ["YES" if field.nullable else "NO" for field in schema]
    by_name = {row["COLUMN_NAME"]: row for row in columns}
    price = by_name["price"]
    assert (price["TYPE_NAME"], price["DATA_TYPE"]) == ("DECIMAL(18,8)", 3)
    assert (price["COLUMN_SIZE"], price["DECIMAL_DIGITS"], price["NUM_PREC_RADIX"]) == (18, 8, 10)
    assert price["REMARKS"] == "Price per unit, in currency."
    assert by_name["event_time"]["TYPE_NAME"] == "TIMESTAMP WITH TIME ZONE"
    assert by_name["trade_id"]["TYPE_NAME"] == "BIGINT"
    one = jdbc.records(java.getMetaData().getColumns("k2", "market", "t%", "pri%"))
    assert [row["COLUMN_NAME"] for row in one] == ["price"]


@pytest.mark.flight_sql(
    "CommandGetPrimaryKeys",
    "CommandGetImportedKeys",
    "CommandGetExportedKeys",
    "CommandGetCrossReference",
    client="jdbc",
)
def test_tables_have_no_keys_and_say_so(java: Any) -> None:
    about = java.getMetaData()
    for ask in (about.getPrimaryKeys, about.getImportedKeys, about.getExportedKeys):
        assert jdbc.records(ask(None, "market", "trades")) == []
    assert jdbc.records(about.getCrossReference(None, "market", "trades", None, "market", "quotes")) == []


def test_what_the_driver_answers_by_itself_is_empty(java: Any) -> None:
    """DBeaver asks for these as well; the driver never sends them to a server."""
    about = java.getMetaData()
    assert jdbc.records(about.getTypeInfo()) == []
    assert jdbc.records(about.getIndexInfo(None, "market", "trades", False, True)) == []
    assert jdbc.records(about.getProcedures(None, None, "%")) == []
    assert jdbc.records(about.getFunctions(None, None, "%")) == []
    assert jdbc.records(about.getBestRowIdentifier(None, "market", "trades", 1, True)) == []


@pytest.mark.flight_sql("CommandGetTables", client="jdbc")
def test_a_sessions_own_tables_are_shown_to_it_alone(java: Any, table: str, served: Served) -> None:
    def local(connection: Any) -> list[str]:
        found = jdbc.records(connection.getMetaData().getTables(None, None, "%", ["LOCAL TEMPORARY"]))
        return [row["TABLE_NAME"] for row in found]

    assert local(java) == [table]
    columns = jdbc.records(java.getMetaData().getColumns(None, None, table, "%"))
    assert [row["COLUMN_NAME"] for row in columns] == ["i", "s", "d", "ts"]
    with jdbc.connected(served.uri) as other:
        assert local(other) == []


# -- statements


def test_the_columns_of_a_result_have_precision_and_scale(java: Any) -> None:
    with jdbc.statement_of(java) as statement:
        result = statement.executeQuery(
            "select price, quantity, price * 2 as twice, trade_id from market.trades limit 1"
        )
        about = result.getMetaData()
        sizes = [(int(about.getPrecision(i)), int(about.getScale(i))) for i in range(1, 5)]
        assert sizes == [(18, 8), (28, 8), (18, 8), (0, 0)]
        result.close()


@pytest.mark.flight_sql("CommandPreparedStatementQuery", "CreatePreparedStatement", client="jdbc")
@pytest.mark.flight_sql("ClosePreparedStatement", client="jdbc")
def test_execute_and_execute_query(java: Any, served: Served) -> None:
    """The driver prepares everything. It closes what a Statement prepared last; the rest goes when it is idle."""
    before = served.service.stats().prepared_statements
    with jdbc.statement_of(java) as statement:
        assert statement.execute("select count(*) as n from market.trades")
        assert jdbc.read(statement.getResultSet()) == (["n"], [[ROWS]])
        assert served.service.stats().prepared_statements == before + 1
    assert served.service.stats().prepared_statements == before
    with jdbc.statement_of(java) as statement:
        assert jdbc.records(statement.executeQuery("select 1 as a, 'x' as b")) == [{"a": 1, "b": "x"}]
        assert jdbc.records(statement.executeQuery("select 2 as a")) == [{"a": 2}]
    assert served.service.stats().open_statements == 0


@pytest.mark.flight_sql("CommandPreparedStatementUpdate", client="jdbc")
def test_updates_tell_how_many_rows_they_changed(java: Any) -> None:
    with jdbc.statement_of(java) as statement:
        assert not statement.execute("create table t as select range::integer as i from range(10)")
        assert statement.executeUpdate("update t set i = i + 100 where i < 3") == 3
        assert statement.executeLargeUpdate("delete from t where i >= 100") == 3
        assert statement.executeUpdate("insert into t values (1), (2)") == 2
        with pytest.raises(jpype.JException, match="did not return a result set"):
            statement.executeQuery("insert into t values (3)")
    assert rows(java, "select count(*) from t") == [[10]]
    assert execute(java, "drop table t") == 0


def test_max_rows_and_the_drivers_own_timeout(java: Any, served: Served) -> None:
    with jdbc.statement_of(java) as statement:
        statement.setMaxRows(2)
        assert jdbc.read(statement.executeQuery("select range as i from range(5)"))[1] == [[0], [1]]
    with jdbc.statement_of(java) as statement:
        statement.setQueryTimeout(1)
        with pytest.raises(jpype.JException, match="Query timed out"):
            jdbc.read(statement.executeQuery("select count(*) from range(100000000) a, range(100000) b"))
    wait_until_idle(served)


def test_errors_carry_the_servers_sentence(java: Any) -> None:
    with pytest.raises(jpype.JException) as caught:
        rows(java, "select *\nfrom market.nope")
    assert "Table with name nope does not exist" in str(caught.value) and "LINE 2: from market.nope" in str(
        caught.value
    )
    assert "Traceback" not in str(caught.value) and ".py" not in str(caught.value)
    with pytest.raises(jpype.JException, match=r"market\.trades is read-only"):
        execute(java, "delete from market.trades")


# -- prepared statements

SETTERS = [
    ("varchar", "setString", "ü'", "ü'"),
    ("tinyint", "setByte", -128, -128),
    ("smallint", "setShort", -32768, -32768),
    ("integer", "setInt", -(2**31), -(2**31)),
    ("bigint", "setLong", 2**63 - 1, 2**63 - 1),
    ("double", "setDouble", 0.1, 0.1),
    ("float", "setFloat", 1.25, 1.25),
    ("boolean", "setBoolean", True, True),
    ("decimal(18, 8)", "setBigDecimal", lambda: big("-0.00000001"), "-0.00000001"),
    ("decimal(38, 0)", "setBigDecimal", lambda: big("9" * 38), "9" * 38),
    ("hugeint", "setBigDecimal", lambda: big("-" + "9" * 38), "-" + "9" * 38),
    ("blob", "setBytes", lambda: jpype.JArray(jpype.JByte)([0, -1]), "0x00ff"),
    ("date", "setDate", lambda: jpype.JClass("java.sql.Date").valueOf("2024-02-29"), "2024-02-29"),
    ("time", "setTime", lambda: jpype.JClass("java.sql.Time").valueOf("12:34:56"), "12:34:56"),
    ("timestamp", "setTimestamp", lambda: timestamp("2024-02-29 12:34:56.789"), "2024-02-29T12:34:56.789"),
    ("timestamptz", "setTimestamp", lambda: timestamp("1969-12-31 23:59:59.999"), "1969-12-31T23:59:59.999Z"),
    ("timestamp_s", "setTimestamp", lambda: timestamp("2024-02-29 12:34:56"), "2024-02-29T12:34:56"),
    ("timestamp_ns", "setTimestamp", lambda: timestamp("2024-02-29 12:34:56.789"), "2024-02-29T12:34:56.789"),
    ("uuid", "setString", "01234567-89ab-cdef-0123-456789abcdef", "01234567-89ab-cdef-0123-456789abcdef"),
    ("integer", "setObject", lambda: jpype.JClass("java.lang.Integer")(5), 5),
    ("varchar", "setObject", lambda: jpype.JClass("java.lang.String")("x"), "x"),
]


@pytest.mark.flight_sql("CommandPreparedStatementQuery", client="jdbc")
@pytest.mark.parametrize(("sql_type", "setter", "value", "expected"), SETTERS)
def test_each_setter(java: Any, sql_type: str, setter: str, value: Any, expected: Any) -> None:
    with jdbc.prepared(java, f"select ?::{sql_type} as v") as statement:
        assert statement.getParameterMetaData().getParameterCount() == 1
        getattr(statement, setter)(1, value() if callable(value) else value)
        assert jdbc.read(statement.executeQuery())[1] == [[expected]]
        statement.setNull(1, 0)
        assert jdbc.read(statement.executeQuery())[1] == [[None]]


@pytest.mark.flight_sql("CommandPreparedStatementQuery", client="jdbc")
def test_a_query_is_bound_again_and_again(java: Any) -> None:
    with jdbc.prepared(java, "select count(*) from market.trades where price >= ? and event_time < ?") as statement:
        assert [str(statement.getMetaData().getColumnLabel(1))] == ["count_star()"]
        for price, expected in (("100.00000000", 500), ("102.50000000", 250), ("999.00000000", 0)):
            statement.setBigDecimal(1, big(price))
            # Trade 500 came half a second after the first.
            statement.setTimestamp(2, timestamp("2024-08-08 06:53:20.5"))
            assert jdbc.read(statement.executeQuery())[1] == [[expected]]


@pytest.mark.flight_sql("CommandPreparedStatementUpdate", client="jdbc")
def test_a_batch_is_one_update_of_many_rows(java: Any, table: str) -> None:
    with jdbc.prepared(java, f"insert into {table} values (?, ?, ?, ?)") as statement:
        for number in range(3):
            statement.setInt(1, number)
            statement.setString(2, f"s{number}")
            statement.setBigDecimal(3, big("1.25000000"))
            statement.setTimestamp(4, timestamp("2024-02-29 12:34:56.5"))
            statement.addBatch()
        # One number for the whole batch: the driver sends it as one message.
        assert list(statement.executeBatch()) == [3]
        statement.setInt(1, 9)
        statement.setString(2, None)
        statement.setBigDecimal(3, big("0E-8"))
        statement.setNull(4, 0)
        assert statement.executeUpdate() == 1
    assert rows(java, f"select * from {table} order by i") == [
        *([number, f"s{number}", "1.25000000", "2024-02-29T12:34:56.5Z"] for number in range(3)),
        [9, None, "0.00000000", None],
    ]
    with jdbc.prepared(java, f"update {table} set s = ? where i = ?") as statement:
        for number in (0, 9):
            statement.setString(1, "new")
            statement.setInt(2, number)
            statement.addBatch()
        assert list(statement.executeBatch()) == [2]
    assert rows(java, f"select i from {table} where s = 'new' order by i") == [[0], [9]]


@pytest.mark.parametrize(
    ("sql", "setter", "value", "says"),
    [
        ("select ?::decimal(18, 8)", "setBigDecimal", lambda: big("1.5"), "scale must equal"),
        ("select ?::integer", "setString", "5", "not yet supported"),
        ("select ?", "setInt", 5, "NullVector"),
    ],
)
def test_what_the_driver_cannot_bind(served: Served, sql: str, setter: str, value: Any, says: str) -> None:
    """Decimals need the parameter's scale, values its type, and a parameter without a type needs a cast."""
    # The driver does not free the buffers of what it failed to bind, and complains at close.
    with contextlib.suppress(jpype.JException), jdbc.connected(served.uri) as java:
        with jdbc.prepared(java, sql) as statement:
            getattr(statement, setter)(1, value() if callable(value) else value)
            with pytest.raises(jpype.JException, match=says):
                statement.executeQuery()
        statement = None
    assert statement is None


# -- transactions, sessions, cancel


def test_a_transaction_is_begun_and_ended_in_sql(java: Any, table: str) -> None:
    """The driver's commit and rollback are empty stubs: its users write BEGIN, COMMIT and ROLLBACK themselves."""
    execute(java, "begin")
    assert execute(java, f"insert into {table} (i) values (1), (2)") == 2
    assert rows(java, f"select count(*) from {table}") == [[2]]
    execute(java, "rollback")
    assert rows(java, f"select count(*) from {table}") == [[0]]
    execute(java, "begin")
    execute(java, f"insert into {table} (i) values (3)")
    execute(java, "commit")
    assert rows(java, f"select i from {table}") == [[3]]


def test_the_drivers_own_rollback_does_nothing(java: Any, table: str) -> None:
    java.setAutoCommit(False)
    execute(java, f"insert into {table} (i) values (1)")
    java.rollback()
    assert rows(java, f"select count(*) from {table}") == [[1]]
    with pytest.raises(jpype.JException):
        java.setSavepoint()


@pytest.mark.flight_sql("SetSessionOptions", "CloseSession", client="jdbc")
def test_the_catalog_of_the_url_is_a_session_option(served: Served) -> None:
    before = served.service.stats().sessions
    # The driver closes a session twice, and finds its own channel gone the second time.
    with pytest.raises(jpype.JException, match="Channel shutdown"), jdbc.connected(served.uri, catalog="k2") as java:
        found = rows(java, "select current_catalog(), count(*) from trades")
    assert found == [["k2", ROWS]]
    assert served.service.stats().sessions == before
    with (
        pytest.raises(jpype.JException, match="Cannot set session option for catalog"),
        jdbc.connected(served.uri, catalog="nope"),
    ):
        pass


def test_unknown_parameters_of_the_url_are_harmless_headers(served: Served) -> None:
    with jdbc.connected(served.uri, ApplicationName="DBeaver", schema="market") as java:
        assert rows(java, "select 1") == [[1]]


def test_a_user_and_a_password_are_let_in_where_anybody_is(served: Served) -> None:
    with jdbc.connected(served.uri, {"user": "reader", "password": "any"}) as java:
        assert rows(java, "select count(*) from market.trades") == [[ROWS]]


def test_scratch_lives_as_long_as_the_connection(java: Any, table: str, served: Served) -> None:
    """The driver keeps cookies, so that its calls are one session."""
    execute(java, f"insert into {table} (i) values (1)")
    assert rows(java, f"select i from {table}") == [[1]]
    with jdbc.connected(served.uri) as other, pytest.raises(jpype.JException, match="does not exist"):
        rows(other, f"select i from {table}")


def test_cancel_ends_the_work_on_the_server(java: Any, served: Served) -> None:
    """The driver drops its stream, and the server notices; it sends no CancelFlightInfo."""
    with jdbc.statement_of(java) as statement:
        result = statement.executeQuery("select a.range from range(10000000) a, range(1000) b")
        assert result.next()
        assert served.service.stats().open_statements == 1
        statement.cancel()
        with pytest.raises(jpype.JException, match="cancel"):
            while result.next():
                pass
        result.close()
    wait_until_idle(served)
    assert rows(java, "select 1") == [[1]]


def test_cancel_from_another_thread_before_the_first_row(java: Any, served: Served) -> None:
    with jdbc.statement_of(java) as statement:

        def stop() -> None:
            while not served.service.stats().open_statements:
                threading.Event().wait(0.005)
            statement.cancel()

        stopper = threading.Thread(target=stop)
        stopper.start()
        with pytest.raises(jpype.JException, match=r"[Cc]ancel|closed"):
            jdbc.read(statement.executeQuery("select count(*) from range(100000000) a, range(100000) b"))
        stopper.join()
    wait_until_idle(served)


def test_what_the_driver_does_not_offer(java: Any) -> None:
    for ask in (
        lambda: java.prepareCall("call x"),
        lambda: java.nativeSQL("select 1"),
        lambda: java.prepareStatement("select 1", 1),
    ):
        with pytest.raises(jpype.JException, match="SQLFeatureNotSupportedException"):
            ask()
    with jdbc.statement_of(java) as statement:
        statement.addBatch("select 1")
        with pytest.raises(jpype.JException, match="NullPointerException"):
            statement.executeBatch()


def test_instants_as_java_knows_them(java: Any) -> None:
    """getObject without a class is not implemented for instants in the driver; these are."""
    with jdbc.statement_of(java) as statement:
        result = statement.executeQuery("select event_time from market.trades where trade_id = 7")
        assert result.next()
        expected = datetime(2024, 8, 8, 6, 53, 20, 7_000, tzinfo=UTC)
        assert str(result.getTimestamp(1)) == "2024-08-08 06:53:20.007"
        assert str(result.getString(1)) == "2024-08-08 06:53:20.007"
        for name, text in (
            ("java.time.Instant", "2024-08-08T06:53:20.007Z"),
            ("java.time.OffsetDateTime", "2024-08-08T06:53:20.007Z"),
            ("java.time.LocalDateTime", "2024-08-08T06:53:20.007"),
        ):
            assert str(result.getObject(1, jpype.JClass(name).class_)) == text
        assert int(result.getTimestamp(1).getTime()) == expected.timestamp() * 1000
        with pytest.raises(jpype.JException, match="not implemented"):
            result.getObject(1)
        result.close()


def wait_until_idle(served: Served) -> None:
    """Every statement has given back what it held; a test that waits here in vain is stopped by its runner."""
    while served.service.stats().open_statements:
        threading.Event().wait(0.005)


def test_the_cut_and_the_commits(java: Any, served: Served) -> None:
    """K2's own function and tables, as any others: the driver prepares each statement."""
    names, found = jdbc.query(java, "select k2_cut() as cut, count(*) as n from market.trades")
    assert names == ["cut", "n"] and found == [[f"generation {served.lake.generation}", ROWS]]
    assert rows(java, "select k2_cut()") == [[f"generation {served.lake.generation}"]]
    names, found = jdbc.query(java, "select * from ops.commits")
    assert names[:2] == ["table_name", "snapshot_id"] and names[-1] == "cut" and found == []
    assert rows(java, "select count(*) from k2_snapshots('market.trades')") == [[0]]
