"""Sessions: found by cookie or by connection, bounded, evicted when idle, with all that they hold."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest

from common.clock import ManualClock
from common.errors import InvalidStatement, LimitExceeded, PermissionDenied
from flight_server.engine.seam import Seen
from flight_server.engine.sessions import Caller, Sessions
from tests.support.fake_lake import FakeLake


@pytest.fixture(scope="module")
def lake() -> Iterator[FakeLake]:
    lake = FakeLake(10)
    yield lake
    lake.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def sessions(lake: FakeLake, clock: ManualClock) -> Iterator[Sessions]:
    sessions = Sessions(
        clock, lake.cursor, count_max=2, idle_s_max=100.0, transaction_idle_s_max=10.0, gathered_bytes_max=1_000
    )
    yield sessions
    sessions.close_all()


def caller(
    number: int = 1, *, principal: str = "ann", cookie: bool = True, channel: str = "here", is_admin: bool = False
) -> Caller:
    return Caller(principal, f"{number:032x}", is_admin, "peer", has_cookie=cookie, channel=channel)


def test_a_session_is_found_by_its_cookie_and_only_for_its_principal(sessions: Sessions) -> None:
    session = sessions.open(caller(1))
    assert sessions.open(caller(1)) is session and sessions.find(caller(1, channel="elsewhere")) is session
    assert sessions.find(caller(2)) is None
    assert sessions.find(caller(1, principal="bob")) is None
    assert session.public_id not in session.id


def test_without_cookies_it_is_found_by_the_connection(sessions: Sessions) -> None:
    session = sessions.open(caller(1, cookie=False))
    assert sessions.find(caller(2, cookie=False)) is session
    assert sessions.find(caller(3, cookie=False, channel="elsewhere")) is None
    assert sessions.find(caller(3, cookie=False, principal="bob")) is None


def test_the_first_call_of_a_client_with_cookies_has_none_and_its_session_is_kept(sessions: Sessions) -> None:
    session = sessions.open(caller(1, cookie=False))
    assert sessions.find(caller(1)) is session
    # From then on others on that connection, which a proxy may share, are not taken for it.
    assert sessions.find(caller(2, cookie=False)) is None


def test_the_bound_holds_and_idle_sessions_make_room(sessions: Sessions, clock: ManualClock) -> None:
    first = sessions.open(caller(1))
    sessions.open(caller(2))
    with pytest.raises(LimitExceeded, match="2 sessions are open"):
        sessions.open(caller(3))
    clock.advance(60)
    sessions.find(caller(1))
    clock.advance(60)
    sessions.open(caller(3))
    assert sessions.find(caller(1)) is first and sessions.find(caller(2)) is None


def begun(cursor: duckdb.DuckDBPyConnection) -> Seen:
    cursor.execute("BEGIN TRANSACTION READ ONLY")
    return Seen(1, "cut")


def test_an_idle_transaction_is_rolled_back_and_the_session_stays(sessions: Sessions, clock: ManualClock) -> None:
    session = sessions.open(caller(1))
    home = sessions.home_of(session)
    cursor = home.take(None, lambda: False)
    cursor.execute("CREATE TEMP TABLE kept AS SELECT 1 AS a")
    home.give_back()
    transaction = sessions.begin(session, from_sql=False)
    cursor = home.take(None, lambda: False)
    home.begin(begun)
    cursor.execute("CREATE TEMP TABLE gone AS SELECT 1 AS a")
    home.give_back()
    assert sessions.in_transaction(caller(1), transaction.id) is session
    with pytest.raises(InvalidStatement, match="not known"):
        sessions.in_transaction(caller(1, principal="bob"), transaction.id)
    clock.advance(11)
    sessions.expire()
    with pytest.raises(InvalidStatement, match="idle for too long"):
        sessions.in_transaction(caller(1), transaction.id)
    assert sessions.find(caller(1)) is session and home.scratch == {"kept"}
    clock.advance(101)
    sessions.expire()
    assert sessions.find(caller(1)) is None
    with pytest.raises(duckdb.Error):
        cursor.execute("SELECT 1")


def test_a_session_at_work_is_not_evicted(sessions: Sessions, clock: ManualClock) -> None:
    session = sessions.open(caller(1))
    home = sessions.home_of(session)
    home.take(None, lambda: False)
    clock.advance(1_000)
    sessions.expire()
    assert len(sessions) == 1
    home.give_back()
    sessions.expire()
    assert len(sessions) == 0


def test_what_was_staged_is_aborted_with_the_session(sessions: Sessions) -> None:
    class Staged:
        aborted = 0

        def commit(self) -> int:
            raise AssertionError("nobody committed")

        def abort(self) -> None:
            self.aborted += 1

    staged = Staged()
    session = sessions.open(caller(1))
    sessions.begin(session, from_sql=True).staged["t"] = staged
    with pytest.raises(InvalidStatement, match="open already"):
        sessions.begin(session, from_sql=False)
    sessions.close(session)
    sessions.close(session)
    assert staged.aborted == 1


def test_who_may_end_a_session(sessions: Sessions) -> None:
    session = sessions.open(caller(1))
    assert sessions.named(session.public_id, caller(2)) is session
    assert sessions.named(session.public_id, caller(2, principal="root", is_admin=True)) is session
    with pytest.raises(PermissionDenied):
        sessions.named(session.public_id, caller(2, principal="bob"))
    with pytest.raises(InvalidStatement):
        sessions.named(session.id, caller(1))
