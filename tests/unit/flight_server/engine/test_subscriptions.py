"""One subscription by itself, on the sealed database with rows by hand: how far it reads, waits, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from common.clock import ManualClock
from common.errors import InvalidStatement, K2Error, LimitExceeded, SnapshotExpired, TailGap, Unavailable
from common.offsets import PartitionOffsets
from common.settings import FlightSettings
from flight_server.engine.admission import Admission
from flight_server.engine.cursors import CursorPool
from flight_server.engine.rewrite import tree_of
from flight_server.engine.subscriptions import Followed, Subscription, Subscriptions
from flight_server.storage.read_view import Cut, TableCut
from tests.support.fake_lake import PARTITION, FakeLake, trades

ROWS = 1_000
TABLE = "market.trades"


class World:
    """A lake, what a subscription shares with statements, and how it ended."""

    def __init__(self) -> None:
        self.lake = FakeLake(ROWS)
        self.clock = ManualClock()
        self.admission = Admission(count_max=1, wait_s_max=0.0)
        self.cursors = CursorPool(self.lake.cursor)
        self.ends: list[tuple[str, int]] = []
        self.is_gone: Callable[[], bool] = lambda: False

    def is_client_gone(self) -> bool:
        return self.is_gone()

    def followed(self, sql: str) -> Followed:
        with self.cursors.lent() as cursor:
            schema = cursor.execute(f"{sql} LIMIT 0").to_arrow_table().schema
            return Followed(tree_of(sql, cursor), TABLE, (), schema)

    def subscription(
        self, sql: str = "SELECT trade_id FROM market.trades", *, start: int = 0, **more: Any
    ) -> Subscription:
        subscription = Subscription(
            self.followed(sql),
            TableCut(None, PartitionOffsets({PARTITION: start})),
            lake=self.lake,
            cursors=self.cursors,
            admission=self.admission,
            settings=FlightSettings(**({"subscription_keep_alive_s": 0.01} | more)),
            clock=self.clock,
            is_gone=self.is_client_gone,
            on_end=lambda status, rows, size: self.ends.append((status, rows)),
        )
        subscription.begin()
        return subscription


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    assert world.admission.held == 0, "a place among the statements was kept"
    assert world.lake._listeners == [], "a subscription that has ended still listens"
    world.cursors.close()
    world.lake.close()


def position(subscription: Subscription) -> int:
    return Cut.from_text(subscription.cut).tables[TABLE].offsets.next_offset(PARTITION)


def test_large_rows_come_in_batches_below_the_message_s_size(world: World) -> None:
    sql = "SELECT trade_id, rpad('', CAST(trade_id AS INTEGER), 'x') AS wide FROM market.trades"
    subscription = world.subscription(sql, batch_bytes_max=65_536)
    ids: list[int] = []
    sizes = []
    while (batch := subscription.advance()) is not None:
        ids += batch.column("trade_id").to_pylist()
        sizes.append(batch.nbytes)
        assert position(subscription) == len(ids)
    assert ids == [*range(ROWS)]
    assert max(sizes) <= 65_536
    assert len(sizes) > 5
    subscription.close()


def test_a_row_larger_than_a_message_comes_alone(world: World) -> None:
    sql = "SELECT trade_id, rpad('', 70000, 'x') AS wide FROM market.trades WHERE trade_id < 3"
    subscription = world.subscription(sql, batch_bytes_max=65_536)
    found = [batch.num_rows for batch in iter(subscription.advance, None)]
    assert [rows for rows in found if rows] == [1, 1, 1]
    subscription.close()


def test_where_little_matches_the_stretches_grow(world: World) -> None:
    subscription = world.subscription("SELECT trade_id FROM market.trades WHERE trade_id = 999", batch_rows_max=10)
    found = [batch.num_rows for batch in iter(subscription.advance, None)]
    assert sum(found) == 1
    assert len(found) < 20  # 100 of ten rows each
    assert position(subscription) == ROWS
    subscription.close()


def test_without_news_it_tells_that_it_lives(world: World) -> None:
    subscription = world.subscription(start=ROWS)

    def pass_time() -> bool:
        world.clock.advance(0.006)
        return False

    world.is_gone = pass_time
    assert [subscription.read().num_rows for _ in range(300)] == [0] * 300
    world.lake.publish(trades([ROWS]))
    assert subscription.read().column("trade_id").to_pylist() == [ROWS]
    assert position(subscription) == ROWS + 1
    subscription.close()


def test_a_gap_is_waited_for(world: World) -> None:
    subscription = world.subscription(start=ROWS - 5)
    world.lake.gap = TailGap("the tail is being read again")
    assert subscription.advance() is None
    world.lake.gap = None
    batch = subscription.advance()
    assert batch is not None
    assert batch.num_rows == 5
    subscription.close()
    assert world.ends == [("cancelled", 0)]


def test_what_ends_it_says_from_where_to_go_on(world: World) -> None:
    subscription = world.subscription()
    assert subscription.read().num_rows == ROWS
    world.lake.gap = Unavailable("the server is not running")
    world.lake.publish(trades([ROWS]))
    world.clock.advance(1.0)
    with pytest.raises(
        Unavailable, match="the server is not running; no row is lost: subscribe again FROM CUT"
    ) as caught:
        subscription.read()
    assert subscription.cut.replace("'", "''") in str(caught.value)
    assert world.ends == [("Unavailable", ROWS)]


def test_an_error_of_the_query_is_its_reader_s(world: World) -> None:
    subscription = world.subscription("SELECT CAST(symbol AS INTEGER) AS x FROM market.trades")
    with pytest.raises(InvalidStatement, match="Could not convert"):
        subscription.read()
    assert world.ends == [("InvalidStatement", 0)]


def test_files_that_went_away_are_read_again_from_the_next_snapshot(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stretch, gone = world.lake.stretch, [SnapshotExpired("a file is gone")] * 2

    def flaky(*arguments: Any) -> Any:
        if gone:
            raise gone.pop()
        return stretch(*arguments)

    monkeypatch.setattr(world.lake, "stretch", flaky)
    subscription = world.subscription()
    assert subscription.read().num_rows == ROWS
    gone += [SnapshotExpired("a file is gone")] * 3
    world.lake.publish(trades([ROWS]))
    world.clock.advance(1.0)
    with pytest.raises(SnapshotExpired, match="FROM CUT"):
        subscription.read()


def test_a_busy_server_is_waited_for(world: World) -> None:
    subscription = world.subscription()
    world.admission.acquire()
    assert subscription.advance() is None
    world.admission.release()
    batch = subscription.advance()
    assert batch is not None
    assert batch.num_rows == ROWS
    subscription.close()


def test_a_batch_that_nobody_takes_is_noticed(world: World) -> None:
    subscription = world.subscription(subscription_stall_s_max=60.0)
    assert subscription.late(1e9) is None, "nobody has asked for anything yet"
    subscription.read()
    given_s = world.clock.monotonic_s()
    assert subscription.late(given_s + 60.0) is None
    reason = subscription.late(given_s + 60.1)
    assert isinstance(reason, LimitExceeded)
    subscription.cancel(reason)
    assert world.ends == [("LimitExceeded", ROWS)], "all is given back while its reader still sleeps"
    with pytest.raises(LimitExceeded, match="K2_FLIGHT_SUBSCRIPTION_STALL_S_MAX"):
        subscription.read()


def test_only_who_was_up_to_date_can_fall_behind(world: World) -> None:
    subscription = world.subscription(subscription_rows_behind_max=10)
    assert subscription.read().num_rows == ROWS
    world.lake.publish(trades(range(ROWS, ROWS + 11)))
    world.clock.advance(1.0)
    with pytest.raises(LimitExceeded, match="11 rows behind"):
        subscription.read()


def test_the_first_reason_is_the_one(world: World) -> None:
    subscription = world.subscription()
    subscription.cancel(Unavailable("stopping"))
    subscription.cancel(K2Error("something else"))
    with pytest.raises(Unavailable, match="stopping"):
        subscription.read()
    assert len(world.ends) == 1


def test_there_is_room_for_so_many_and_again_when_one_ends(world: World) -> None:
    settings = FlightSettings(subscriptions_max=1)
    subscriptions = Subscriptions(world.lake, world.cursors, world.admission, settings, world.clock)
    followed = world.followed("SELECT trade_id FROM market.trades")
    start = Cut({TABLE: TableCut(None, PartitionOffsets())}).to_text()

    def opened() -> Subscription:
        return subscriptions.open(followed, start, is_gone=lambda: False, on_end=lambda *_: None)

    first = opened()
    with pytest.raises(Unavailable, match="1 subscriptions are open"):
        opened()
    first.close()
    second = opened()
    assert len(subscriptions) == 1
    subscriptions.cancel_all(Unavailable("stopping"))
    assert len(subscriptions) == 0
    with pytest.raises(Unavailable, match="stopping"):
        second.read()
