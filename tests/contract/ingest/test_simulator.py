"""The simulator as a websocket client sees it."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from common.clock import ManualClock
from common.errors import FeedProtocolError, SettingsError
from ingest.market import Market
from ingest.simulator import Simulator
from tests.contract.ingest.ingest_support import PATIENCE_S, eventually, line, made_up, trade_line

Start = Callable[..., Any]


class PacedClock(ManualClock):
    """A clock that a paced simulator moves by waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.slept_s: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.advance(seconds)
        await asyncio.sleep(0)


def client(source: Simulator, *streams: str) -> ClientConnection:
    query = f"?streams={'/'.join(streams)}" if streams else ""
    return connect(f"{source.url}/stream{query}", compression=None, proxy=None, close_timeout=0.1)


def receive(connection: ClientConnection, count: int) -> list[dict[str, Any]]:
    return [json.loads(connection.recv(PATIENCE_S)) for _ in range(count)]


def trade_ids(messages: list[dict[str, Any]]) -> list[int]:
    return [message["data"]["t"] for message in messages]


def test_only_the_streams_of_the_url_are_sent_byte_for_byte(tmp_path: Path, simulator: Start) -> None:
    capture = made_up(tmp_path / "c", trades=200)
    source = simulator([capture.path])
    with client(source, "btcusdt@trade", "dogeusdt@trade") as one:
        first = one.recv(PATIENCE_S)
        assert first == trade_line(0, "BTCUSDT", 1).partition(b" ")[2].decode().strip()
        assert trade_ids(receive(one, 199)) == list(range(2, 201))
        assert source.finished.wait(PATIENCE_S)
        assert source.stats().frames_sent == 200
        with pytest.raises(TimeoutError):
            one.recv(0.05)  # quiet, and still open
        one.send('{"method":"LIST_SUBSCRIPTIONS","id":1}')
        assert receive(one, 1) == [{"result": ["btcusdt@trade", "dogeusdt@trade"], "id": 1}]


def test_streams_subscribed_later_are_sent_from_then_on(tmp_path: Path, simulator: Start) -> None:
    source = simulator([made_up(tmp_path / "c", trades=3).path])
    with client(source) as one:
        one.send('{"method":"SUBSCRIBE","params":["ethbtc@trade"],"id":1}')
        assert receive(one, 1) == [{"result": None, "id": 1}]
        assert trade_ids(receive(one, 3)) == [1_000_001, 1_000_002, 1_000_003]


def test_each_connection_gets_the_whole_replay(tmp_path: Path, simulator: Start) -> None:
    source = simulator([made_up(tmp_path / "c", trades=5).path])
    for _ in range(2):
        with client(source, "btcusdt@trade") as one:
            assert trade_ids(receive(one, 5)) == [1, 2, 3, 4, 5]
    assert source.stats().connections == 2
    eventually(lambda: source.stats().clients == 0, "both have gone")


def test_a_resumed_replay_goes_on_with_the_next_connection(tmp_path: Path, simulator: Start) -> None:
    clock = PacedClock()
    capture = made_up(tmp_path / "c", trades=3_000, every_ns=1_000_000)
    source = simulator([capture.path], resume=True, speed=1.0, clock=clock, sleep=clock.sleep)
    with client(source, "btcusdt@trade") as one:
        early = trade_ids(receive(one, 5))
        source.drop_connections()
        with pytest.raises(ConnectionClosed):
            while True:
                early += trade_ids(receive(one, 1))
    with client(source, "btcusdt@trade") as two:
        late = trade_ids(receive(two, 1))
        while late[-1] < 3_000:
            late += trade_ids(receive(two, 1))
    assert early == list(range(1, len(early) + 1))
    assert early[-1] < late[0]
    assert late == list(range(late[0], 3_001))
    assert source.finished.is_set()


@pytest.mark.parametrize(("speed", "seconds"), [(1.0, 9.0), (10.0, 0.9)])
def test_the_pace_is_the_captures_own_times_the_speed(
    tmp_path: Path, simulator: Start, speed: float, seconds: float
) -> None:
    clock = PacedClock()
    capture = made_up(tmp_path / "c", trades=10, every_ns=1_000_000_000)
    source = simulator([capture.path], speed=speed, clock=clock, sleep=clock.sleep)
    with client(source, "btcusdt@trade") as one:
        assert trade_ids(receive(one, 10)) == list(range(1, 11))
    assert sum(clock.slept_s) == pytest.approx(seconds)
    assert len(clock.slept_s) == 9


def test_at_most_speed_nothing_is_waited_for(tmp_path: Path, simulator: Start) -> None:
    clock = PacedClock()
    capture = made_up(tmp_path / "c", trades=10, every_ns=1_000_000_000)
    source = simulator([capture.path], clock=clock, sleep=clock.sleep)
    with client(source, "btcusdt@trade") as one:
        receive(one, 10)
    assert clock.slept_s == []


def test_several_captures_run_side_by_side(tmp_path: Path, simulator: Start) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(trade_line(0, "BTCUSDT", 1) + trade_line(20, "BTCUSDT", 2))
    two.write_bytes(trade_line(10**15, "ETHBTC", 7) + trade_line(10**15 + 10, "ETHBTC", 8))
    with client(simulator([one, two]), "btcusdt@trade", "ethbtc@trade") as connection:
        assert trade_ids(receive(connection, 4)) == [1, 7, 8, 2]


def test_a_malformed_line_inside_ends_the_simulator_with_file_and_line(tmp_path: Path, simulator: Start) -> None:
    path = tmp_path / "c"
    path.write_bytes(trade_line(0, "BTCUSDT", 1) + b"garbage\n" + trade_line(1, "BTCUSDT", 2))
    source = simulator([path])
    with client(source, "btcusdt@trade") as one, pytest.raises(ConnectionClosed):
        receive(one, 2)
    eventually(lambda: source.failure is not None, "the failure")
    assert isinstance(source.failure, FeedProtocolError)
    assert f"line 2 of the capture {path} is malformed" in str(source.failure)
    assert not source.finished.is_set()


@pytest.mark.parametrize("content", [b"", b"garbage\n", b'1 {"lastUpdateId":1}\n'])
def test_a_capture_that_is_none_is_refused_at_start(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c"
    path.write_bytes(content)
    with pytest.raises(FeedProtocolError, match=str(path)):
        Simulator.replay([path]).start()
    with pytest.raises(SettingsError, match="nowhere cannot be read"):
        Simulator.replay([tmp_path / "nowhere"]).start()


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    path = made_up(tmp_path / "c", trades=1).path
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{port} .*choose another port"):
            Simulator.replay([path], port=port).start()


@pytest.mark.parametrize(
    ("path", "status"),
    [("/ws/btcusdt@trade", 404), ("/", 404), ("/stream?streams=btcusdt", 400), ("/stream?streams=BTCUSDT@trade", 400)],
)
def test_a_wrong_path_is_refused_with_a_reason(tmp_path: Path, simulator: Start, path: str, status: int) -> None:
    source = simulator([made_up(tmp_path / "c", trades=1).path])
    with pytest.raises(InvalidStatus) as raised:
        connect(source.url + path, proxy=None)
    assert raised.value.response.status_code == status
    assert raised.value.response.body


def test_an_announced_shutdown_reaches_every_client(tmp_path: Path, simulator: Start) -> None:
    source = simulator([made_up(tmp_path / "c", trades=1).path])
    with client(source, "dogeusdt@trade") as one, client(source, "dogeusdt@trade") as two:
        eventually(lambda: source.stats().clients == 2, "both are there")
        source.announce_shutdown()
        for connection in (one, two):
            (message,) = receive(connection, 1)
            assert (message["stream"], message["data"]["e"]) == ("!serverShutdown", "serverShutdown")


def test_a_random_market_is_one_for_all_and_its_ids_go_on_over_a_reconnect() -> None:
    clock = PacedClock()
    source = Simulator.random_market(Market(["BTCUSDT"], seed=1), trades_per_s=1_000, clock=clock, sleep=clock.sleep)
    source.start()
    try:
        with client(source, "btcusdt@trade") as one:
            early = trade_ids(receive(one, 50))
        assert early == list(range(1, 51))
        eventually(lambda: source.stats().clients == 0, "the client has gone")
        with client(source, "btcusdt@trade") as two, client(source, "btcusdt@trade", "btcusdt@bookTicker") as three:
            late = trade_ids(receive(two, 50))
            other = trade_ids([m for m in receive(three, 100) if m["stream"] == "btcusdt@trade"])
        assert late == list(range(late[0], late[0] + 50))
        assert late[0] > 50
        assert other == list(range(other[0], other[0] + len(other)))
    finally:
        source.stop()
    assert source.failure is None


def test_the_random_markets_rate_is_kept_by_its_clock() -> None:
    clock = PacedClock()
    source = Simulator.random_market(Market(["BTCUSDT"], seed=1), trades_per_s=400, clock=clock, sleep=clock.sleep)
    source.start()
    try:
        with client(source, "btcusdt@trade") as one:
            messages = receive(one, 401)
    finally:
        source.stop()
    seconds = (messages[400]["data"]["E"] - messages[0]["data"]["E"]) / 1_000
    assert seconds == pytest.approx(1.0, abs=0.01)


def test_stop_is_idempotent_and_stop_before_start_is_nothing(tmp_path: Path) -> None:
    source = Simulator.replay([made_up(tmp_path / "c", trades=1).path])
    source.stop()
    source = Simulator.replay([made_up(tmp_path / "c", trades=1).path])
    source.start()
    source.stop()
    source.stop()
    assert source.failure is None


def test_frames_are_never_sent_to_a_client_that_asked_for_others(tmp_path: Path, simulator: Start) -> None:
    path = tmp_path / "c"
    path.write_bytes(line(0, "btcusdt@depth@100ms", {}) + line(1, "btcusdt@trade", {"t": 1}))
    with client(simulator([path]), "btcusdt@trade") as one:
        assert receive(one, 1) == [{"stream": "btcusdt@trade", "data": {"t": 1}}]


def test_a_market_that_goes_on_trades_while_nobody_listens_and_not_any_more_once_it_is_closed() -> None:
    market = Market(["BTCUSDT"], seed=1)
    source = Simulator.random_market(market, trades_per_s=500, goes_on=True)
    source.start()
    try:
        eventually(lambda: market.last_trade[1] >= 20, "it trades")
        with client(source, "btcusdt@trade") as one:
            assert trade_ids(receive(one, 1))[0] > 20
        before = market.last_trade[1]
        eventually(lambda: market.last_trade[1] >= before + 20, "it goes on")
        source.close_market()
        looks = [-1]

        def stands_still() -> bool:
            """In 50 looks, some 100 ms, it would have made 50 trades."""
            looks.append(market.last_trade[1])
            return len(looks) > 50 and len(set(looks[-50:])) == 1

        eventually(stands_still, "it stands still")
        with urllib.request.urlopen(f"http{source.url[2:]}/api/v3/historicalTrades?symbol=BTCUSDT&limit=1") as response:
            assert [one["id"] for one in json.load(response)] == [market.last_trade[1]]
        assert source.failure is None
    finally:
        source.stop()
