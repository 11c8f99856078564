"""A transaction that is gone on in sees what a new one would see, and is gone on in only then."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from common.clock import ManualClock
from common.errors import TailGap
from common.settings import FlightSettings
from flight_server.engine.engine import Engine
from flight_server.engine.requests import Request
from flight_server.engine.sessions import Caller
from tests.support.fake_lake import FakeLake, trades

CALLER = Caller("anonymous", "0" * 32, channel="test")
COUNT = "SELECT count(*) AS n FROM market.trades"


@pytest.fixture
def lake() -> Iterator[FakeLake]:
    settings = FlightSettings(threads=1, result_cache_bytes_max=0)
    lake = FakeLake(10, settings)
    yield lake
    lake.close()


@pytest.fixture
def engine(lake: FakeLake) -> Iterator[Engine]:
    settings = FlightSettings(threads=1, result_cache_bytes_max=0)
    engine = Engine(lake, settings, clock=ManualClock(), registry=CollectorRegistry())
    engine.start()
    yield engine
    engine.stop()


def ask(engine: Engine, sql: str) -> tuple[object, str | None]:
    announced = engine.announce(Request(sql), CALLER)
    running = engine.execute(Request(sql, id=announced.id, cut=announced.cut), CALLER)
    ((value,),) = [tuple(row.values()) for batch in running for row in batch.to_pylist()]
    return value, running.cut


def begun(lake: FakeLake, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number more for each transaction that is opened."""
    opened: list[int] = []
    begin = lake.begin

    def counted(cursor: object) -> object:
        opened.append(len(opened))
        return begin(cursor)

    monkeypatch.setattr(lake, "begin", counted)
    return opened


def test_statements_share_a_transaction_while_nothing_is_published(
    lake: FakeLake, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = begun(lake, monkeypatch)
    assert [ask(engine, COUNT) for _ in range(5)] == [(10, "generation 1")] * 5
    assert len(opened) == 1


def test_what_was_published_is_seen_by_the_next_statement(lake: FakeLake, engine: Engine) -> None:
    for number in range(1, 4):
        assert ask(engine, COUNT) == (10 * number, f"generation {number}")
        lake.publish(trades(range(10 * number, 10 * number + 10)))


def test_what_is_published_while_a_statement_runs_is_seen_by_the_next(lake: FakeLake, engine: Engine) -> None:
    announced = engine.announce(Request(COUNT), CALLER)
    lake.publish(trades(range(10, 20)))
    running = engine.execute(Request(COUNT, id=announced.id, cut=announced.cut), CALLER)
    assert [batch.to_pylist() for batch in running] == [[{"n": 10}]]
    assert ask(engine, COUNT)[0] == 20


@pytest.mark.parametrize(
    "sql", ["SELECT now() FROM market.trades LIMIT 1", "SELECT current_timestamp FROM market.trades LIMIT 1"]
)
def test_the_time_is_of_a_transaction_of_its_own(engine: Engine, sql: str) -> None:
    ask(engine, COUNT)
    assert ask(engine, sql)[0] < ask(engine, sql)[0]  # type: ignore[operator]


def test_a_statement_that_failed_leaves_no_transaction(
    lake: FakeLake, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = begun(lake, monkeypatch)
    failing = "SELECT error('no') FROM market.trades"
    for _ in range(2):
        with pytest.raises(Exception, match="no"):
            ask(engine, failing)
    assert ask(engine, COUNT)[0] == 10
    assert len(opened) == 3


def test_a_gap_refuses_also_where_a_transaction_stands(lake: FakeLake, engine: Engine) -> None:
    ask(engine, COUNT)
    lake.gap = TailGap("there is a gap; try again")
    with pytest.raises(TailGap):
        ask(engine, COUNT)
    lake.gap = None
    assert ask(engine, COUNT)[0] == 10


def test_old_states_are_let_go(lake: FakeLake, engine: Engine) -> None:
    ask(engine, COUNT)
    standing = engine._standing
    assert len(standing) == 1
    engine.expire()
    assert len(standing) == 1
    lake.publish(trades(range(10, 20)))
    engine.expire()
    assert len(standing) == 0
