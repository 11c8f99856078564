"""The producer on a real broker: what a producer is told that was fenced, at whatever step it learns it."""

from __future__ import annotations

import asyncio

import pytest

from common.datasets import TRADES
from common.errors import BrokerError, IngestFenced
from common.settings import KafkaSettings
from ingest.producer import EventProducer
from tests.contract.ingest.ingest_support import PATIENCE_S, producer_of, topic_of

#: When a transaction is just being ended, the embedded broker hangs up on it for ever (decision 0025).
ENDS = (IngestFenced, BrokerError)
SAYS = "another ingest took over|did not commit a transaction"


def test_a_fenced_producer_says_that_it_was_fenced_whichever_call_meets_it_first(kafka: KafkaSettings) -> None:
    """Between the broker's refusal and librdkafka's fatal error a message is refused as "Erroneous state" only."""
    producers = [producer_of(kafka, delivery_timeout_ms=3_000)]

    async def send_until_fenced(fenced: EventProducer) -> None:
        commits = asyncio.create_task(fenced.run())
        successor = asyncio.create_task(asyncio.to_thread(producer_of, kafka, delivery_timeout_ms=3_000))
        try:
            with pytest.raises(ENDS, match=SAYS):
                while True:
                    fenced.send(TRADES, "BTCUSDT", b"a trade", [], 0)
                    await asyncio.sleep(0.001)
            # Whatever is asked of it from now on has the same answer.
            with pytest.raises(ENDS, match=SAYS):
                await commits
            for ask in (lambda: fenced.send_to(topic_of(TRADES), "key", b"more"), fenced.poll):
                with pytest.raises(ENDS, match=SAYS):
                    ask()
        finally:
            producers.append(await successor)
            commits.cancel()
            await asyncio.gather(commits, return_exceptions=True)

    try:
        for _round in range(3):
            asyncio.run(asyncio.wait_for(send_until_fenced(producers[-1]), PATIENCE_S))
    finally:
        for producer in producers:
            producer.close()
