"""clients.K2 while its server, a process of its own, is killed and started again on the same log: each row once."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

import clients
from common.codec import Encoder
from common.datasets import QUOTES, TRADES, Dataset
from common.log import KafkaLog
from common.registry import EmbeddedRegistry
from common.settings import KafkaSettings
from k2.broker import EmbeddedBroker
from tests.support.kafka import eventually, produce
from tests.support.processes import Process
from tests.support.records import EPOCH, quote, trade

COUNT, FACTOR = 250, 2_000
#: 8 MB in an order that the statement says: more than lies between server and client, so that a kill hits it half-way.
LARGE = f"SELECT trade_id, range AS n FROM market.trades, range({FACTOR}) ORDER BY trade_id, n"


class Server:
    """`k2 serve` at one address, over and over, and the log that it reads."""

    def __init__(self, folder: Path) -> None:
        self._broker = EmbeddedBroker()
        kafka = KafkaSettings.load(bootstrap_servers=self._broker.__enter__().bootstrap_servers)
        self._kafka = kafka
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.uri = f"grpc://127.0.0.1:{port}"
        self._arguments = ("serve", "--port", str(port), "--data-dir", str(folder))
        self._env = {"K2_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers or "", "K2_SINK_BARS": "false"}
        for dataset in (TRADES, QUOTES):
            KafkaLog(kafka).ensure_topics([dataset.topic(asset_class="crypto", exchange="binance")])
        self.trades = 0
        self.grow(COUNT)
        self._produce(QUOTES, [quote(number) for number in range(10)])
        self.process = self.start()

    def start(self) -> Process:
        self.process = Process(*self._arguments, env=self._env)
        self.process.wait_for("Flight SQL at ", timeout_s=300.0)
        return self.process

    def kill_and_start(self) -> None:
        """And let trades come meanwhile."""
        self.process.kill()
        self.grow(50)
        self.start()

    def grow(self, count: int) -> None:
        self._produce(TRADES, [trade(number) for number in range(self.trades, self.trades + count)])
        self.trades += count

    def stop(self) -> None:
        self.process.stop()
        self._broker.__exit__(None, None, None)

    def _produce(self, dataset: Dataset, records: list[dict[str, object]]) -> None:
        topic = dataset.topic(asset_class="crypto", exchange="binance")
        encoder = Encoder(dataset, EmbeddedRegistry(), topic=topic)
        produce(self._kafka, topic, [encoder.encode(record) for record in records])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("lake"))
    yield server
    server.stop()


@pytest.fixture
def k2(server: Server) -> Iterator[clients.K2]:
    with clients.K2(server.uri, resume_s_max=300.0) as k2:
        eventually(lambda: k2.sql("SELECT count(*) AS n FROM market.trades").rows() == [{"n": server.trades}])
        yield k2


async def read_whole(uri: str, begun: threading.Event) -> tuple[int, clients.Result]:
    """How many trades there are at an instant, and the large result then; `begun` once it is asked for."""
    async with clients.AsyncK2(uri, resume_s_max=300.0) as k2:
        then = await k2.now()
        (row,) = (await then.sql("SELECT count(*) AS n FROM market.trades")).rows()
        begun.set()
        return row["n"], await then.sql(LARGE)


def test_a_server_that_is_killed_costs_no_row_and_doubles_none(server: Server, k2: clients.K2) -> None:
    """One kill, and all that a client may be doing then."""
    there = server.trades
    pairs = [(number, n) for number in range(there) for n in range(FACTOR)]
    with (
        ThreadPoolExecutor(1) as threads,
        k2.stream(LARGE) as ordered,
        k2.stream(LARGE.partition("ORDER BY")[0] + "ORDER BY random()") as unordered,
    ):
        first = [next(ordered)]
        next(unordered)
        begun = threading.Event()
        whole = threads.submit(asyncio.run, read_whole(server.uri, begun))
        assert begun.wait(120)
        server.kill_and_start()

        # A stream goes on where it broke.
        batches = first + list(ordered)
        assert rows_of(pa.Table.from_batches(batches)) == pairs
        assert k2.reconnects == 1
        assert ordered.cut is not None
        # One whose order is another one now ends with an error.
        with pytest.raises(
            clients.QueryError, match="came in another order; let the statement end in an ORDER"
        ) as caught:
            list(unordered)
        assert caught.value.code == "ABORTED"
        # A whole result is read again at its cut, whenever it was hit.
        count, result = whole.result()
        assert rows_of(result.arrow()) == [(number, n) for number in range(count) for n in range(FACTOR)]
    # What came meanwhile is seen by what is asked now, and by nothing that was asked before.
    now = "SELECT count(*) AS n FROM market.trades"
    eventually(lambda: k2.sql(now).rows() == [{"n": there + 50}])
    assert k2.at(ordered.cut).sql(now).rows() == [{"n": there}]


def test_quotes_of_a_span(k2: clients.K2) -> None:
    found = k2.quotes("BTCUSDT", EPOCH, EPOCH + timedelta(milliseconds=3), columns=["quote_id", "bid_price"])
    assert found.rows() == [{"quote_id": number, "bid_price": quote(number)["bid_price"]} for number in range(3)]
    (trade_7,) = k2.asof("BTCUSDT", EPOCH + timedelta(milliseconds=7), EPOCH + timedelta(milliseconds=8)).rows()
    assert (trade_7["trade_id"], trade_7["quote_id"], trade_7["bid_price"]) == (7, 7, quote(7)["bid_price"])
    (marked,) = k2.markouts("BTCUSDT", EPOCH, EPOCH + timedelta(milliseconds=1), ["1ms"]).rows()
    assert (marked["horizon_us"], marked["mid"], marked["later_mid"]) == (
        1_000,
        quote(0)["bid_price"] + Decimal("0.05"),
        quote(0)["bid_price"] + Decimal("0.05"),
    )
    with pytest.raises(clients.ClientError, match="horizons is a list"):
        k2.markouts("BTCUSDT", horizons="1s")
    with pytest.raises(clients.ClientError, match=r"market.quotes has nothing of X; its symbols are BTCUSDT"):
        k2.quotes("X")


def rows_of(table: pa.Table) -> list[tuple[int, int]]:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))
