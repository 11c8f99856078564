"""A soak in seconds: a market with a fault every half second and an ingest that is taken over in the middle; at the end
every trade is in the table once, and every gap closed.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import clients
from common.datasets import DATASETS
from common.errors import BrokerError, IngestFenced
from common.log import KafkaLog
from common.settings import FlightSettings, KafkaSettings, LakeSettings, SinkSettings
from flight_server.service.service import FlightService
from flight_server.storage.lake import Lake
from ingest.faults import FaultPlan
from ingest.market import Market, market_symbols
from ingest.service import IngestService
from ingest.simulator import Simulator
from sink.service import SinkService
from tests.contract.ingest.ingest_support import eventually, quick

SYMBOLS = market_symbols(8)
SECONDS = 10.0


@pytest.mark.parametrize("seed", [1])
def test_whatever_the_exchange_does_every_trade_is_there_once(seed: int, tmp_path: Path, kafka: KafkaSettings) -> None:
    others = set(threading.enumerate())
    plan = FaultPlan.seeded(seed, seconds=SECONDS, every_s=0.5)
    simulator = Simulator.random_market(Market(SYMBOLS, seed=seed), trades_per_s=400, faults=plan)
    simulator.start()
    settings = quick(gap_grace_s=0.2, checkpoint_interval_s=0.5, stale_after_s=2.0, delivery_timeout_ms=20_000)
    first, second = (
        IngestService(SYMBOLS, kafka=kafka, settings=settings, url=simulator.url, state_dir=tmp_path / name)
        for name in ("a", "b")
    )
    lake_settings = LakeSettings.load(data_dir=tmp_path / "lake")
    lake_settings.prepare()
    sink = SinkService(kafka, lake_settings, SinkSettings(commit_age_ms_max=500))
    try:
        first.start()
        sink.start()
        eventually(lambda: first.stats().trades > SECONDS / 2 * 400 * 0.8, lambda: f"half of it: {first.stats()}")
        second.start()
        eventually(lambda: first.failure is not None, "the first one is fenced")
        assert isinstance(first.failure, IngestFenced | BrokerError)  # the embedded broker may hang up on it
        eventually(lambda: second.stats().trades > SECONDS / 2 * 400, lambda: f"the rest of it: {second.stats()}")

        def is_whole() -> bool:
            stats = second.stats()
            return second.failure is not None or not (stats.gaps or stats.gaps_open or stats.lost_ids)

        eventually(is_whole, lambda: f"no gap: {second.stats()}")
        simulator.close_market()
        eventually(is_whole, lambda: f"no gap: {second.stats()}")
        assert second.failure is None
        second.stop()
        log = KafkaLog(kafka)
        ends = log.end_offsets([t for d in DATASETS.values() for t in log.topics(d.topic_pattern).values()])
        eventually(lambda: sink.drained(ends), lambda: f"all is committed: {sink.stats()}")
    finally:
        for service in (first, second, sink):
            service.stop()
        simulator.stop()
    assert second.failure is None
    assert not [
        thread.name for thread in threading.enumerate() if thread.name.startswith("k2-") and thread not in others
    ]
    lake = Lake(kafka, lake_settings, FlightSettings(port=0))
    lake.start()
    flight = FlightService(lake, FlightSettings(port=0))
    flight.start()
    try:
        with clients.connect(flight.uri) as connection:
            per_symbol = connection.arrow(
                "SELECT symbol, count(*) AS n, count(DISTINCT trade_id) AS ids, "
                "max(trade_id) - min(trade_id) + 1 AS span FROM market.trades GROUP BY symbol"
            ).to_pylist()
            gaps = connection.arrow("SELECT state, count(*) AS n FROM ops.gaps GROUP BY state").to_pylist()
            complete = connection.arrow("SELECT bool_and(complete) AS complete FROM ops.completeness").to_pylist()
    finally:
        flight.stop()
        lake.stop()
    assert len(per_symbol) == len(SYMBOLS)
    assert [row for row in per_symbol if not row["n"] == row["ids"] == row["span"]] == []
    assert [row["state"] for row in gaps] == ["filled"]
    assert gaps[0]["n"] > 0
    assert complete == [{"complete": True}]
