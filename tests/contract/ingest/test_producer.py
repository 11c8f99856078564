"""The producer on a real broker: what a producer is told that was fenced, at whatever step it learns it."""

from __future__ import annotations

import asyncio

import pytest

from common.clock import SystemClock
from common.datasets import TRADES
from common.errors import IngestFenced
from common.log import KafkaLog
from common.registry import open_registry
from common.settings import KafkaSettings
from ingest.producer import EventProducer
from tests.contract.ingest.ingest_support import PATIENCE_S, quick, topic_of


def producer_of(kafka: KafkaSettings) -> EventProducer:
    """A producer that has fenced those before it."""
    log = KafkaLog(kafka)
    log.ensure_topics([topic_of(TRADES)])
    fresh = EventProducer(
        kafka,
        quick(delivery_timeout_ms=5_000),
        open_registry(kafka.schema_registry_url),
        topics={TRADES.name: log.topics(f"^{topic_of(TRADES)}$")[topic_of(TRADES)]},
        transactional_id="one-id",
        clock=SystemClock(),
        timed=lambda seconds: None,
    )
    fresh.fence()
    return fresh


def test_a_fenced_producer_says_that_it_was_fenced_whichever_call_meets_it_first(kafka: KafkaSettings) -> None:
    """Between the broker's refusal and librdkafka's fatal error a message is refused as "Erroneous state" only."""

    async def send_until_fenced(fenced: EventProducer) -> None:
        commits = asyncio.create_task(fenced.run())
        successor = asyncio.create_task(asyncio.to_thread(lambda: producers.append(producer_of(kafka))))
        try:
            with pytest.raises(IngestFenced):
                while True:
                    fenced.send(TRADES, "BTCUSDT", b"a trade", [], 0)
                    await asyncio.sleep(0.001)
            await successor
            # Whatever is asked of it from now on has the same answer.
            for ask in (lambda: fenced.send_to(topic_of(TRADES), "key", b"more"), fenced.poll):
                with pytest.raises(IngestFenced):
                    ask()
            with pytest.raises(IngestFenced):
                await commits
        finally:
            commits.cancel()
            await asyncio.gather(commits, successor, return_exceptions=True)

    producers = [producer_of(kafka)]
    try:
        for _round in range(3):
            asyncio.run(asyncio.wait_for(send_until_fenced(producers[-1]), PATIENCE_S))
    finally:
        for producer in producers:
            producer.close()
