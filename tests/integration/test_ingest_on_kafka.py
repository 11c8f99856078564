"""Ingest on a real Apache Kafka: its transactions, and that the broker refuses a predecessor."""

from __future__ import annotations

from pathlib import Path

from common.datasets import GAP_EVENTS, TRADES
from common.errors import IngestFenced
from common.settings import IngestSettings, KafkaSettings
from ingest.market import Market, market_symbols
from ingest.service import IngestService
from ingest.simulator import Simulator
from tests.contract.ingest.ingest_support import eventually, ids, rows

SYMBOLS = market_symbols(3)


def test_a_successor_fences_its_predecessor_and_no_trade_is_lost_or_doubled(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    settings = IngestSettings(gap_grace_s=0.05, heartbeat_s=0.2, connections=1, backoff_s_first=0.01)
    simulator = Simulator.random_market(Market(SYMBOLS, seed=5), trades_per_s=300)
    simulator.start()
    first, second = (
        IngestService(SYMBOLS, kafka=kafka, settings=settings, url=simulator.url, state_dir=tmp_path / name)
        for name in ("a", "b")
    )
    try:
        first.start()
        eventually(lambda: first.stats().trades > 200, "the first one takes trades")
        second.start()
        eventually(lambda: first.failure is not None, "the first one ends")
        assert isinstance(first.failure, IngestFenced)
        taken = second.stats().trades
        eventually(lambda: second.stats().trades > taken + 200, "the second one goes on")
        # A checkpoint covers the log over the markers of commits: a restart reads next to nothing.
        second.stop()
        third = IngestService(SYMBOLS, kafka=kafka, settings=settings, url=simulator.url, state_dir=tmp_path / "b")
        third.start()
        try:
            assert third.stats().log_messages_read < 10
            eventually(lambda: third.stats().trades > 100, "the third one takes trades")
            simulator.stop()
            eventually(lambda: not third.stats().gaps and not third.stats().gaps_open, lambda: str(third.stats()))
            assert third.flush()
        finally:
            third.stop()
    finally:
        first.stop()
        second.stop()
        simulator.stop()
    found = ids(kafka, TRADES)
    assert len(found) == len(SYMBOLS)
    for of in found.values():
        assert sorted(of) == list(range(min(of), min(of) + len(of)))
    last = {(row["symbol"], row["first_id"]): row["state"] for row in rows(kafka, GAP_EVENTS)}
    assert set(last.values()) <= {"filled"}
