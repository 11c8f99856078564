"""A second venue: only a session, an entry in the registry, and frames in the simulator; all else is as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.datasets import INSTRUMENTS, QUOTES, TRADES
from common.settings import KafkaSettings
from ingest.market import Market
from ingest.service import IngestService
from ingest.simulator import Simulator
from ingest.venues.registry import COINBASE
from tests.contract.ingest.ingest_support import eventually, ids, quick, rows

Start = Callable[..., Any]
PRODUCTS = ("BTC-USD", "ETH-EUR", "SOL-USD")


@pytest.fixture
def market() -> Iterator[Simulator]:
    source = Simulator.random_market(Market(PRODUCTS, seed=1), trades_per_s=1_000, venue="coinbase")
    source.start()
    yield source
    source.stop()
    assert source.failure is None


def test_coinbases_trades_come_once_over_two_connections_that_are_cut_and_symbols_come_from_a_file(
    tmp_path: Path, kafka: KafkaSettings, market: Simulator, ingest: Start
) -> None:
    (tmp_path / "symbols").write_text("btc-usd  # the first\n\nETH-EUR\n")
    service: IngestService = ingest(
        market.url,
        symbols=["BTC-USD", "ETH-EUR"],
        venue=COINBASE,
        settings=quick(connections=2),
        symbols_file=tmp_path / "symbols",
    )

    def goes_on() -> None:
        before = service.stats().trades
        eventually(lambda: service.stats().connections == 2 and service.stats().trades > before + 200, "trades")

    goes_on()
    market.drop_connections(1)
    eventually(lambda: service.stats().reconnects == 1, "the loss is seen")
    goes_on()
    (tmp_path / "symbols").write_text("not a product!\n")
    goes_on()
    (tmp_path / "symbols").write_text("BTC-USD, ETH-EUR\nSOL-USD\n")
    eventually(lambda: service.stats().instruments == 3, "the new symbol is known")
    goes_on()
    assert service.flush()
    service.stop()
    assert service.stats().dead_letters == 0
    found = ids(kafka, TRADES)
    assert set(found) == set(PRODUCTS)
    for symbol, got in found.items():
        assert sorted(got) == list(range(min(got), max(got) + 1)), symbol
    assert set(ids(kafka, QUOTES)) == set(PRODUCTS)
    instruments = {row["symbol"]: row for row in rows(kafka, INSTRUMENTS)}
    assert (instruments["ETH-EUR"]["base_currency"], instruments["ETH-EUR"]["quote_currency"]) == ("ETH", "EUR")
    assert instruments["ETH-EUR"]["exchange"] == "coinbase"
    [trade] = [row for row in rows(kafka, TRADES) if row["symbol"] == "ETH-EUR"][:1]
    assert (trade["currency"], trade["exchange"]) == ("EUR", "coinbase")
