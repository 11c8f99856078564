"""The limits of the door: how many statements, sessions and bytes, and how long; each refusal says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import adbc_driver_flightsql.dbapi as dbapi
import pytest
from conftest import Served

from common.settings import FlightSettings

LONG = "select a.range from range(100000) a, range(1000) b, market.trades"


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def start(**settings: Any) -> Served:
        made.append(Served(FlightSettings(port=0, **settings)))
        return made[-1]

    yield start
    for served in made:
        served.stop()


def connect(served: Served) -> dbapi.Connection:
    return dbapi.connect(served.uri, autocommit=True)


def test_a_statement_that_gets_no_turn_is_refused(serve: Callable[..., Served]) -> None:
    served = serve(statements_max=1, statement_wait_s_max=0.05)
    with connect(served) as connection, connection.cursor() as first, connection.cursor() as second:
        first.execute(LONG)
        first.fetchone()
        with pytest.raises(dbapi.Error, match="1 statements are running and this one waited") as caught:
            second.execute("select 1")
            second.fetchone()
        assert "Unavailable" in str(caught.value) or "UNAVAILABLE" in str(caught.value)
        first.adbc_cancel()
        while served.service.stats().open_statements:
            pass
        second.execute("select 1")
        assert second.fetchone() == (1,)


def test_a_result_that_is_too_large_is_refused(serve: Callable[..., Served]) -> None:
    served = serve(result_bytes_max=1_000_000)
    with connect(served) as connection, connection.cursor() as cursor:
        cursor.execute("select range from range(1000)")
        assert len(cursor.fetchall()) == 1_000
        with pytest.raises(Exception, match="larger than the 1,000,000 bytes"):
            cursor.execute("select range from range(1000000)")
            cursor.fetchall()
    assert served.service.stats().open_statements == 0


def test_too_many_sessions_are_refused(serve: Callable[..., Served]) -> None:
    served = serve(sessions_max=2)
    connections = [connect(served) for _ in range(3)]
    cursors = [connection.cursor() for connection in connections]
    try:
        for cursor in cursors[:2]:
            cursor.execute("create table mine as select 1 as a")
        with pytest.raises(dbapi.Error, match="2 sessions are open"):
            cursors[2].execute("create table mine as select 1 as a")
        cursors[2].execute("select 1")
        assert cursors[2].fetchone() == (1,)
        cursors[0].close()
        connections[0].close()
        cursors[2].execute("create table mine as select 1 as a")
    finally:
        for cursor, connection in zip(cursors, connections, strict=True):
            cursor.close()
            connection.close()


def test_a_large_sort_spills_where_it_is_allowed(serve: Callable[..., Served], tmp_path: Any) -> None:
    text = "select count(*) from (select distinct hash(range)::varchar || 'padding' as a from range(8000000))"
    small = {"memory_bytes_max": 128 * 1024**2, "threads": 1}
    with (
        connect(serve(**small, spill_bytes_max=1024**2)) as connection,
        connection.cursor() as cursor,
        pytest.raises(Exception, match="K2_FLIGHT_MEMORY_BYTES_MAX"),
    ):
        cursor.execute(text)
        cursor.fetchone()
    with connect(serve(**small, spill_dir=tmp_path / "spill")) as connection, connection.cursor() as cursor:
        cursor.execute(text)
        assert cursor.fetchone() == (8_000_000,)


def test_long_texts_are_cut_below_what_grpc_takes(serve: Callable[..., Served]) -> None:
    with connect(serve()) as connection, connection.cursor() as cursor, pytest.raises(dbapi.Error) as caught:
        cursor.execute("select " + "x" * 100_000)
    assert "[...]" in str(caught.value) and len(str(caught.value)) < 8_192
