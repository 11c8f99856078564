"""Ingest on a real Apache Kafka: its transactions, and that the broker refuses a predecessor."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from common.datasets import GAP_EVENTS, TRADES
from common.errors import IngestFenced
from common.log import KafkaLog, KafkaLogReader
from common.offsets import PartitionOffsets
from common.settings import IngestSettings, KafkaSettings
from ingest.market import Market, market_symbols
from ingest.service import IngestService
from ingest.simulator import Simulator
from tests.contract.ingest.ingest_support import eventually, ids, producer_of, rows, topic_of, trades_topic

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
            simulator.close_market()
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


def test_a_transaction_that_a_dead_ingest_left_holds_readers_up_for_its_delivery_timeout_only(
    kafka: KafkaSettings,
) -> None:
    """Another shard's records in the same partition wait for it. The one that was dead for so long writes no more."""
    trades, log = trades_topic(kafka), KafkaLog(kafka)
    dead = producer_of(kafka, "shard-a", delivery_timeout_ms=3_000)
    starts = log.start_offsets([trades])
    dead.covers(starts)
    assert dead.send(TRADES, "BTCUSDT", b"never committed", [], 0)

    def is_in_the_log() -> bool:
        dead.poll()
        return dead.covered_offsets() != starts

    eventually(is_in_the_log, "its record is in the log, uncommitted")
    other = producer_of(kafka, "shard-b")
    assert other.send(TRADES, "BTCUSDT", b"committed", [], 0)

    with pytest.raises(TimeoutError):  # it commits until it is cancelled
        asyncio.run(asyncio.wait_for(other.run(), 1))
    assert not other.queued
    found: list[bytes | None] = []
    with contextlib.closing(KafkaLogReader(kafka)) as reader:
        reader.assign(PartitionOffsets(starts), {trades.topic_id: topic_of(TRADES)})

        def reads() -> bool:
            found.extend(value for batch in reader.poll(10, 0.1) for value in batch.values)
            return bool(found)

        eventually(reads, "the broker ends the transaction of the dead one")
    assert found == [b"committed"]
    with pytest.raises(IngestFenced, match="or the broker gave up a transaction of this one that was open for 3 s"):
        asyncio.run(dead.run())
    dead.close()
    other.close()
