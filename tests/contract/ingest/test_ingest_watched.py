"""The whole ingest over two connections, and what its watchers find on the simulator."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from common.clock import SystemClock
from common.datasets import INSTRUMENTS, QUOTES, TRADES
from common.settings import KafkaSettings
from ingest.market import Market
from ingest.service import IngestService
from ingest.simulator import Simulator
from tests.contract.ingest.ingest_support import eventually, ids, made_up, quick, rows

Start = Callable[..., Any]
SYMBOLS = ("BTCUSDT", "ETHBTC", "BNBEUR")


class Apart(SystemClock):
    """A clock that is ahead of the machine's."""

    def __init__(self, ahead_us: int) -> None:
        self.ahead_us = ahead_us

    def now_us(self) -> int:
        return super().now_us() + self.ahead_us


@pytest.fixture
def market() -> Iterator[Simulator]:
    """An exchange whose clock is 1.27 s ahead of ours."""
    clock = Apart(1_270_000)
    source = Simulator.random_market(Market(SYMBOLS, seed=1), trades_per_s=2_000, clock=clock)
    source.start()
    yield source
    source.stop()
    assert source.failure is None


def value(registry: CollectorRegistry, name: str) -> float:
    found = re.search(rf"^k2_ingest_{name} (\S+)$", generate_latest(registry).decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


def test_two_connections_through_cuts_and_a_shutdown_give_each_trade_once(
    kafka: KafkaSettings, market: Simulator, ingest: Start
) -> None:
    registry = CollectorRegistry()
    service: IngestService = ingest(market.url, symbols=SYMBOLS, settings=quick(connections=2), registry=registry)

    def goes_on(trades: int = 500) -> None:
        before = service.stats().trades
        eventually(lambda: service.stats().connections == 2 and service.stats().trades > before + trades, "trades")

    goes_on()
    for lost in (1, 2, 3):
        market.drop_connections(1)
        eventually(lambda lost=lost: service.stats().reconnects == lost, "the loss is seen")
        goes_on()
    market.announce_shutdown()
    eventually(lambda: service.stats().rotations == 2, "both move")
    goes_on()
    assert service.flush()
    service.stop()
    stats = service.stats()
    assert stats.gaps == 0
    assert stats.echoes_dropped > stats.trades / 2, "most of the second connection is told by its bytes"
    handled = stats.trades + stats.quotes + stats.ignored + stats.dead_letters + stats.echoes_dropped
    assert stats.frames == handled + stats.duplicates_dropped["trades"] + stats.duplicates_dropped["quotes"]
    for symbol, found in ids(kafka, TRADES).items():
        assert sorted(found) == list(range(min(found), max(found) + 1)), symbol
    for found in ids(kafka, QUOTES).values():
        assert len(set(found)) == len(found)
    assert value(registry, "echoes_dropped_total") == stats.echoes_dropped
    assert value(registry, "resident_bytes") > 10e6
    assert value(registry, "leak_score") == 0


def test_the_exchanges_clock_is_known_before_the_first_trade_and_each_record_keeps_it(
    kafka: KafkaSettings, market: Simulator, ingest: Start
) -> None:
    registry = CollectorRegistry()
    service: IngestService = ingest(market.url, symbols=SYMBOLS, settings=quick(connections=2), registry=registry)
    eventually(lambda: service.stats().trades > 100, "trades")
    assert service.flush()
    service.stop()
    offset_s, error_s = value(registry, "clock_offset_seconds"), value(registry, "clock_offset_error_seconds")
    assert abs(offset_s - 1.27) <= error_s
    for row in rows(kafka, TRADES) + rows(kafka, QUOTES):
        [(name, text)] = row["vendor_data"]
        assert name == "clock_offset_ms"
        assert abs(int(text) - 1_270) <= error_s * 1_000 + 1
    assert value(registry, "event_latency_seconds_sum") / value(registry, "event_latency_seconds_count") < 1
    assert value(registry, "clock_jumps_total") == 0


def test_instruments_are_what_the_exchange_says(kafka: KafkaSettings, market: Simulator, ingest: Start) -> None:
    service = ingest(market.url, symbols=[*SYMBOLS, "NOPEUSDT"], settings=quick(connections=1))
    assert service.stats().instruments == 4
    found = {row["symbol"]: row for row in rows(kafka, INSTRUMENTS)}
    one = found["ETHBTC"]
    assert (one["base_currency"], one["quote_currency"], one["status"]) == ("ETH", "BTC", "TRADING")
    assert (one["tick_size"], one["lot_size"]) == (Decimal("0.00001"), Decimal("0.0001"))
    assert found["BNBEUR"]["quote_currency"] == "EUR"
    guessed = found["NOPEUSDT"]
    assert (guessed["base_currency"], guessed["quote_currency"], guessed["tick_size"]) == ("NOPE", "USDT", None)


def test_where_the_exchange_tells_nothing_what_the_log_knows_of_a_symbol_stays(
    tmp_path: Path, kafka: KafkaSettings, market: Simulator, ingest: Start
) -> None:
    first = ingest(market.url, symbols=SYMBOLS)
    first.stop()
    deaf = quick(binance_rest_url="http://127.0.0.1:1")
    second = ingest(market.url, symbols=[*SYMBOLS, "SOLUSDT"], settings=deaf)
    assert second.stats().instruments == 1
    second.stop()
    found = rows(kafka, INSTRUMENTS)
    assert sorted(row["symbol"] for row in found) == sorted([*SYMBOLS, "SOLUSDT"])
    assert next(row for row in found if row["symbol"] == "BNBEUR")["status"] == "TRADING"


def test_a_capture_s_symbols_are_known_to_its_simulator(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    ingest(simulator([made_up(tmp_path / "c", trades=3).path]).url)
    found = {row["symbol"]: row["status"] for row in rows(kafka, INSTRUMENTS)}
    assert found == {"BTCUSDT": "TRADING", "ETHBTC": "TRADING"}
