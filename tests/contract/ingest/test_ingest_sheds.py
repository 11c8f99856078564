"""A broker that stalls: fields and quotes go first, no trade is lost, and `ops.shed` tells what was left out."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import clients
from common.datasets import DATASETS, QUOTES, SHED, TRADES
from common.degradation import Level
from common.log import KafkaLog
from common.settings import FlightSettings, KafkaSettings, LakeSettings, SinkSettings
from flight_server.service.service import FlightService
from flight_server.storage.lake import Lake
from ingest.market import Market, market_symbols
from ingest.service import IngestService
from ingest.simulator import Simulator
from k2.broker import EmbeddedBroker
from sink.service import SinkService
from tests.contract.ingest.ingest_support import eventually, quick, rows

SYMBOLS = market_symbols(4)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process does nothing meanwhile, and its connections stay open."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_broker_that_stalls_costs_quotes_and_no_trade(tmp_path: Path) -> None:
    simulator = Simulator.random_market(Market(SYMBOLS, seed=1), trades_per_s=2_000)
    simulator.start()
    settings = quick(
        queue_messages_max=1_000,
        gap_grace_s=0.05,
        shed=True,
        shed_after_s=0.0,
        shed_recover_after_s=0.1,
        priority_symbols=SYMBOLS[:1],
    )
    with EmbeddedBroker() as broker:
        kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, topic_partitions=2, request_timeout_ms=5_000)
        service = IngestService(SYMBOLS, kafka=kafka, settings=settings, url=simulator.url)
        try:
            service.start()
            eventually(lambda: service.stats().trades > 400, lambda: f"trades come: {service.stats()}")
            with stopped(broker.pid):
                eventually(lambda: service.stats().shed.get(TRADES.name, 0) > 50, lambda: f"shed: {service.stats()}")
                assert service.stats().level is Level.CIRCUIT_BREAK
                assert service.stats().queued <= 1_000
            taken = service.stats().trades

            def is_whole() -> bool:
                stats = service.stats()
                done = stats.level is Level.NORMAL and stats.trades > taken + 2_000 and stats.records[SHED.name]
                return service.failure is not None or bool(done and not stats.gaps and not stats.gaps_open)

            eventually(is_whole, lambda: f"all is well again: {service.stats()}")
            simulator.stop()
            eventually(is_whole, lambda: f"all is well at the end: {service.stats()}")
            assert service.failure is None
            stats = service.stats()
            assert service.flush()
        finally:
            service.stop()
            simulator.stop()
        told = rows(kafka, SHED)
        without = Counter(row["symbol"] for row in rows(kafka, QUOTES) if row["vendor_data"] is None)
        assert all(row["vendor_data"] for row in rows(kafka, TRADES)), "a trade is whole"
        assert stats.lost_ids == 0 and stats.backfilled > 50
        asked = _asked(kafka, tmp_path)
    assert 0 < sum(without.values()) == stats.thinned[QUOTES.name]
    by_dataset = {name: sum(row["records"] for row in told if row["dataset"] == name) for name in stats.shed}
    assert by_dataset == stats.shed
    assert asked["shed"] == [{"dataset": name, "n": count} for name, count in sorted(stats.shed.items())]
    assert [row for row in asked["trades"] if not row["n"] == row["ids"] == row["span"]] == []
    assert len(asked["trades"]) == len(SYMBOLS)
    assert asked["gaps"] == [{"state": "filled"}]
    first = {row["symbol"]: row for row in told if row["dataset"] == "quotes"}
    assert first[SYMBOLS[0]]["first_time"] >= min(first[symbol]["first_time"] for symbol in SYMBOLS[1:])


def _asked(kafka: KafkaSettings, folder: Path) -> dict[str, list[dict[str, object]]]:
    """What SQL says at the end."""
    lake_settings = LakeSettings.load(data_dir=folder / "lake")
    lake_settings.prepare()
    sink = SinkService(kafka, lake_settings, SinkSettings(commit_age_ms_max=100, bars=False))
    sink.start()
    log = KafkaLog(kafka)
    ends = log.end_offsets([one for d in DATASETS.values() for one in log.topics(d.topic_pattern).values()])
    eventually(lambda: sink.drained(ends), lambda: f"all is committed: {sink.stats()}")
    sink.stop()
    lake = Lake(kafka, lake_settings, FlightSettings(port=0))
    lake.start()
    flight = FlightService(lake, FlightSettings(port=0))
    flight.start()
    try:
        with clients.connect(flight.uri) as connection:
            return {
                "shed": connection.arrow(
                    "SELECT dataset, CAST(sum(records) AS BIGINT) AS n FROM ops.shed GROUP BY ALL ORDER BY dataset"
                ).to_pylist(),
                "trades": connection.arrow(
                    "SELECT symbol, count(*) AS n, count(DISTINCT trade_id) AS ids, "
                    "max(trade_id) - min(trade_id) + 1 AS span FROM market.trades GROUP BY symbol"
                ).to_pylist(),
                "gaps": connection.arrow("SELECT DISTINCT state FROM ops.gaps").to_pylist(),
            }
    finally:
        flight.stop()
        lake.stop()
