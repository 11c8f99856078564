"""The namespace `research` over the wire: what one session writes, every other one reads, as real Iceberg tables."""

from __future__ import annotations

from collections.abc import Iterator

import adbc_driver_flightsql.dbapi as dbapi
import pyarrow as pa
import pytest
from conftest import ROWS, Served


@pytest.fixture
def one(served: Served) -> Iterator[dbapi.Cursor]:
    with dbapi.connect(served.uri, autocommit=True) as connection, connection.cursor() as cursor:
        yield cursor


@pytest.fixture
def two(served: Served) -> Iterator[dbapi.Cursor]:
    with dbapi.connect(served.uri, autocommit=True) as connection, connection.cursor() as cursor:
        yield cursor


def rows(cursor: dbapi.Cursor, text: str) -> list[tuple[object, ...]]:
    cursor.execute(text)
    return list(cursor.fetchall())


def test_create_table_as_is_seen_by_others(served: Served, one: dbapi.Cursor, two: dbapi.Cursor) -> None:
    one.execute(
        "create table research.ctas as select trade_id, price, event_time from market.trades where trade_id < 10"
    )
    assert rows(two, "select count(*), sum(price) from research.ctas") == rows(
        one, "select count(*), sum(price) from market.trades where trade_id < 10"
    )
    assert rows(two, "select count(*) from ctas") == [(10,)]
    (stored,) = [table for table in served.lake.research.tables() if table.name == "ctas"]
    assert stored.owner == "anonymous" and stored.rows == 10
    with pytest.raises(dbapi.Error, match="exists already"):
        one.execute("create table research.ctas as select 1 as a")
    one.execute("create table if not exists research.ctas as select 1 as a")
    assert rows(two, "select count(*) from research.ctas") == [(10,)]
    one.execute("create or replace table research.ctas as select 1 as a")
    assert rows(two, "from research.ctas") == [(1,)]
    one.execute("drop table research.ctas")
    with pytest.raises(dbapi.Error, match="does not exist"):
        two.execute("from research.ctas")
    one.execute("drop table if exists research.ctas")


def test_insert_casts_to_the_tables_columns(one: dbapi.Cursor, two: dbapi.Cursor) -> None:
    one.execute("create table research.typed (a integer not null, b decimal(18, 8), c timestamptz, d varchar)")
    one.execute("insert into research.typed values (1, 1.5, '2024-08-08 12:00:00+00', 'x')")
    one.execute("insert into research.typed (d, a) select 'y', 2")
    one.executemany("insert into research.typed (a, b) values (?, ?)", [(3, 2), (4, 3)])
    assert rows(two, "select a, b::varchar, c::varchar, d from research.typed order by a") == [
        (1, "1.50000000", "2024-08-08 12:00:00+00", "x"),
        (2, None, None, "y"),
        (3, "2.00000000", None, None),
        (4, "3.00000000", None, None),
    ]
    with pytest.raises(dbapi.Error, match="no column 'e'"):
        one.execute("insert into research.typed (e) values (1)")
    with pytest.raises(dbapi.Error, match="Could not convert"):
        one.execute("insert into research.typed (a) values ('many')")
    with pytest.raises(dbapi.Error, match="does not offer UPDATE of research tables"):
        one.execute("update research.typed set a = 5")
    assert rows(two, "select count(*) from research.typed") == [(4,)]
    one.execute("drop table research.typed")


@pytest.mark.parametrize("schema", [None, "research"])
def test_ingest_lands_in_research(one: dbapi.Cursor, two: dbapi.Cursor, schema: str | None) -> None:
    data = pa.table({"a": pa.array(range(5_000)), "b": [str(number) for number in range(5_000)]})
    assert one.adbc_ingest("taken", data, mode="create", db_schema_name=schema) == 5_000
    with pytest.raises(dbapi.Error, match="exists already"):
        one.adbc_ingest("taken", data, mode="create", db_schema_name=schema)
    assert one.adbc_ingest("taken", data.slice(0, 10), mode="append", db_schema_name=schema) == 10
    assert rows(two, "select count(*), count(distinct b) from taken") == [(5_010, 5_000)]
    assert one.adbc_ingest("taken", data.slice(0, 7), mode="replace", db_schema_name=schema) == 7
    assert one.adbc_ingest("taken", data.slice(7, 1), mode="create_append", db_schema_name=schema) == 1
    two.execute("from research.taken order by a")
    assert two.fetch_arrow_table().cast(data.schema) == data.slice(0, 8)
    one.execute("drop table research.taken")
    with pytest.raises(dbapi.Error, match="does not exist"):
        one.adbc_ingest("taken", data, mode="append", db_schema_name=schema)


def test_ingest_elsewhere_is_refused(one: dbapi.Cursor) -> None:
    data = pa.table({"a": [1]})
    with pytest.raises(dbapi.Error, match="read-only"):
        one.adbc_ingest("trades", data, mode="append", db_schema_name="market")
    with pytest.raises(dbapi.Error, match="no catalog 'other'"):
        one.adbc_ingest("x", data, mode="create", catalog_name="other")


def test_a_transaction_lands_whole_or_not_at_all(served: Served, two: dbapi.Cursor) -> None:
    data = pa.table({"a": [1, 2, 3]})
    with dbapi.connect(served.uri) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("staged", data, mode="create")
        with pytest.raises(dbapi.Error, match="one research table"):
            cursor.execute("create table research.second as select 1 as a")
        with pytest.raises(dbapi.Error, match="does not exist"):
            two.execute("from research.staged")
        connection.rollback()
        with pytest.raises(dbapi.Error, match="does not exist"):
            two.execute("from research.staged")
        cursor.adbc_ingest("staged", data, mode="create")
        cursor.adbc_ingest("staged", data, mode="append")
        connection.commit()
        assert rows(two, "select count(*) from research.staged") == [(6,)]
        cursor.execute("drop table research.staged")
        cursor.execute("create table research.staged as select 'new' as b")
        assert rows(two, "select count(*) from research.staged") == [(6,)]
        connection.commit()
        assert rows(two, "from research.staged") == [("new",)]
        cursor.execute("drop table research.staged")
        connection.commit()
        with pytest.raises(dbapi.Error, match="does not exist"):
            two.execute("from research.staged")


def test_a_failed_statement_leaves_nothing(served: Served, one: dbapi.Cursor) -> None:
    with pytest.raises(dbapi.Error, match="Could not convert"):
        one.execute(
            "create table research.broken as "
            "select case when trade_id = 900 then 'x' else '1' end::integer as a from market.trades"
        )
    assert "broken" not in [table.name for table in served.lake.research.tables()]
    assert rows(one, "select count(*) from market.trades") == [(ROWS,)]


def test_what_iceberg_cannot_hold_is_named(one: dbapi.Cursor) -> None:
    with pytest.raises(dbapi.Error, match="span"):
        one.execute("create table research.odd as select interval '1 day' as span")


def test_research_tables_are_listed(served: Served, one: dbapi.Cursor) -> None:
    one.execute("create table research.listed as select 1::decimal(9, 2) as a")
    with dbapi.connect(served.uri, autocommit=True) as connection:
        schema = connection.adbc_get_table_schema("listed", db_schema_filter="research")
        assert schema.field("a").type == pa.decimal128(9, 2)
        assert schema.field("a").metadata[b"ARROW:FLIGHT:SQL:IS_READ_ONLY"] == b"0"
    one.execute("drop table research.listed")


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("'101'::bit", "column v is BIT"),
        ("interval 1 day", "column v is INTERVAL"),
        ("1::uhugeint", "column v is UHUGEINT"),
        ("union_value(a := 1)", "column v is UNION"),
        ("170141183460469231731687303715884105727::hugeint", "does not fit"),
        ("timestamp_ns '2024-01-01 00:00:00.000000001'", "would lose data"),
    ],
)
def test_what_iceberg_cannot_hold_is_refused_and_never_cut(one: dbapi.Cursor, expression: str, said: str) -> None:
    with pytest.raises(dbapi.Error, match=said):
        one.execute(f"create table research.refused as select {expression} as v")
    with pytest.raises(dbapi.Error, match="does not exist"):
        one.execute("from research.refused")


def test_a_column_of_a_type_that_iceberg_lacks_is_refused_before_any_row(one: dbapi.Cursor) -> None:
    with pytest.raises(dbapi.Error, match="column b is BIT"):
        one.execute("create table research.refused (a uuid, b bit)")


def test_a_uuid_stays_one(one: dbapi.Cursor, two: dbapi.Cursor) -> None:
    one.execute("create table research.ids as select ?::uuid as u", ("00112233-4455-6677-8899-aabbccddeeff",))
    one.execute("insert into research.ids values ('ffeeddcc-bbaa-9988-7766-554433221100')")
    assert rows(two, "select u::varchar, typeof(u) from research.ids order by 1") == [
        ("00112233-4455-6677-8899-aabbccddeeff", "UUID"),
        ("ffeeddcc-bbaa-9988-7766-554433221100", "UUID"),
    ]
    one.execute("drop table research.ids")
