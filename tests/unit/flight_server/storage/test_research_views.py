"""Views of research tables: what is committed is seen by the next transaction, whoever did it; nothing else moves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from common.errors import Unavailable
from common.settings import FlightSettings, LakeSettings
from flight_server.storage.database import Database
from flight_server.storage.research import ResearchTables, WriteMode
from flight_server.storage.research_views import ResearchViews

SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False, metadata={"doc": "the key"}), ("name", pa.string())])


class Server:
    """A database with its research tables, and another server's on the same catalog."""

    def __init__(self, folder: Path) -> None:
        settings = LakeSettings.load(data_dir=folder)
        self.database = Database(FlightSettings.load(threads=1, memory_bytes_max=256 * 1024**2), settings)
        self.tables = ResearchTables(settings)
        self.other = ResearchTables(settings)
        self.views = ResearchViews(self.database, self.tables)

    def put(self, name: str, *ids: int, mode: WriteMode = WriteMode.CREATE_APPEND, other: bool = False) -> None:
        write = (self.other if other else self.tables).begin_write(name, SCHEMA, mode)
        write.write(pa.table({"id": list(ids), "name": [f"n{number}" for number in ids]}).cast(SCHEMA))
        write.commit()

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        with self.database.cursor() as cursor:
            return list(cursor.execute(sql).fetchall())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.database.close()


def test_what_is_committed_is_seen_after_its_publication(server: Server) -> None:
    server.views.publish()
    assert server.views.schemas() == {}
    server.put("mine", 1, 2)
    server.put("theirs", 3, other=True)
    server.views.publish()
    assert server.ask("SELECT id FROM research.mine ORDER BY id") == [(1,), (2,)]
    assert server.ask('SELECT name FROM k2.research."THEIRS"') == [("n3",)]
    server.put("mine", 4, mode=WriteMode.REPLACE, other=True)
    assert server.ask("SELECT count(*) FROM research.mine") == [(2,)]
    server.views.publish()
    assert server.ask("SELECT id FROM research.mine") == [(4,)]
    server.other.drop("mine")
    server.views.publish()
    assert server.ask("SELECT view_name FROM duckdb_views() WHERE schema_name = 'research'") == [("theirs",)]
    assert list(server.views.schemas()) == ["theirs"]


def test_columns_are_those_of_a_query_with_what_iceberg_knows(server: Server) -> None:
    server.put("t", 1)
    schema = pa.schema([("u", pa.uuid()), ("l", pa.large_list(pa.large_string())), ("t", pa.timestamp("s", "UTC"))])
    server.tables.begin_write("types", schema, WriteMode.CREATE).commit()
    server.views.publish()
    known = server.views.schemas()
    assert not known["t"].field("id").nullable
    assert known["t"].field("id").metadata == {b"doc": b"the key"}
    with server.database.cursor() as cursor:
        for name, schema in known.items():
            given = cursor.execute(f"FROM research.{name}").to_arrow_reader(10).schema
            assert schema.types == given.types and schema.names == given.names


def test_an_empty_table_has_its_columns(server: Server) -> None:
    server.put("t")
    server.views.publish()
    assert server.ask("SELECT * FROM research.t") == []
    assert server.ask("SELECT typeof(max(id)) FROM research.t") == [("BIGINT",)]


def test_the_version_moves_with_tables_and_columns_only(server: Server) -> None:
    versions = [server.views.version]

    def moved() -> bool:
        server.views.publish()
        versions.append(server.views.version)
        return versions[-1] != versions[-2]

    assert not moved()
    server.put("t", 1)
    assert moved()
    server.put("t", 2)
    assert not moved()
    assert server.ask("SELECT count(*) FROM research.t") == [(2,)]
    server.tables.begin_write("t", pa.schema([("other", pa.int32())]), WriteMode.REPLACE).commit()
    assert moved()
    server.tables.drop("t")
    assert moved()
    assert len(set(versions)) == 4


def test_a_transaction_keeps_what_it_began_with(server: Server) -> None:
    server.put("t", 1)
    server.views.publish()
    with server.database.cursor() as cursor:
        cursor.execute("BEGIN TRANSACTION READ ONLY")
        assert cursor.execute("SELECT count(*) FROM research.t").fetchall() == [(1,)]
        server.put("t", 2)
        server.put("new", 1)
        server.views.publish()
        assert cursor.execute("SELECT count(*) FROM research.t").fetchall() == [(1,)]
        server.tables.drop("t")
        server.views.publish()
        assert cursor.execute("SELECT count(*) FROM research.t").fetchall() == [(1,)]
        cursor.execute("COMMIT")
        assert cursor.execute("SELECT count(*) FROM research.new").fetchall() == [(1,)]


def test_a_table_that_duckdb_cannot_read_hides_no_other(server: Server, tmp_path: Path) -> None:
    for name in ("a", "broken", "c"):
        server.put(name, 1)
    (listed,) = (path for path in tmp_path.rglob("snap-*.avro") if "broken" in str(path))
    listed.write_bytes(b"no avro")
    server.views.publish()
    assert server.ask("SELECT (SELECT id FROM research.a) + (SELECT id FROM research.c)") == [(2,)]
    version = server.views.version
    server.views.publish()
    assert server.views.version == version
    server.put("broken", 5, mode=WriteMode.REPLACE)
    server.views.publish()
    assert server.ask("SELECT id FROM research.broken") == [(5,)]


def test_names_that_sql_cannot_tell_apart_show_the_first(server: Server) -> None:
    server.put("t", 1)
    catalog = server.other._catalog()
    catalog.create_table(("research", "T"), SCHEMA)
    server.views.publish()
    assert len(server.views.schemas()) == 1


def test_it_says_when_the_server_stops(server: Server) -> None:
    server.put("t", 1)
    server.database.close()
    with pytest.raises(Unavailable):
        server.views.publish()


def test_publishing_beside_the_publisher_and_readers(server: Server) -> None:
    """The two writers have nothing in common: neither ever fails because of the other, and readers see whole states."""
    database, failed = server.database, []
    with database.publication():
        relation = database.create_segment("s0", {"id": "BIGINT"})
        database.replace_view("market.trades", f"SELECT * FROM {relation}")
    server.put("t", *range(10))
    server.views.publish()
    ending = threading.Event()

    def guarded(step: Any) -> None:
        number = 0
        try:
            while not ending.is_set():
                number += 1
                step(number)
        except BaseException as error:  # noqa: BLE001  (carried to the test's thread)
            failed.append(error)

    def publisher(number: int) -> None:
        nonlocal relation
        with database.publication():
            before, relation = relation, database.create_segment(f"s{number}", {"id": "BIGINT"})
            database.insert(relation, pa.table({"id": [number] * 10}))
            database.replace_view("market.trades", f"SELECT * FROM {relation}")
            database.drop_segment(before)
            database.set_positions(number, [], [])

    def reader(_number: int) -> None:
        with database.cursor() as cursor:
            cursor.execute("BEGIN TRANSACTION READ ONLY")
            generation, _ = database.positions(cursor)
            (rows,) = cursor.execute("SELECT [count(*), max(id)] FROM market.trades").fetchone() or ([],)
            assert generation == 0 or rows == [10, generation]
            (count,) = cursor.execute("SELECT count(*) FROM research.t").fetchone() or (None,)
            assert count % 10 == 0

    threads = [threading.Thread(target=guarded, args=(step,)) for step in (publisher, reader, reader)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        server.put("t", *range(10))
        server.put("u", 1, mode=WriteMode.REPLACE)
        server.views.publish()
    ending.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert server.ask("SELECT count(*) FROM research.t") == [(160,)]
