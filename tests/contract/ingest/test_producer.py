"""The producer on a real broker: what a producer is told that was fenced, at whatever step it learns it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

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


class Refusing:
    """A producer's client whose commits end with an unknown error, and whose aborts with another one, or well."""

    def __init__(self, client: Any, aborting: int | None) -> None:
        self._client, self._aborting = client, aborting

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def commit_transaction(self, _timeout_s: float) -> None:
        raise KafkaException(KafkaError(KafkaError.UNKNOWN, "EndTxn commit failed"))

    def abort_transaction(self, timeout_s: float) -> None:
        if self._aborting is not None:
            raise KafkaException(KafkaError(self._aborting, "EndTxn abort failed"))
        self._client.abort_transaction(timeout_s)


@pytest.mark.parametrize(
    ("aborting", "expected", "says"),
    [
        (KafkaError._FENCED, IngestFenced, "another ingest took over"),
        (KafkaError.COORDINATOR_NOT_AVAILABLE, BrokerError, r"did not commit a transaction \(EndTxn commit failed"),
        (None, BrokerError, r"did not commit a transaction \(EndTxn commit failed"),
    ],
)
def test_a_commit_that_failed_for_an_unknown_reason_says_fenced_only_when_the_broker_does(
    kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch, aborting: int | None, expected: type[Exception], says: str
) -> None:
    """Apache Kafka has that answer for a commit that meets a successor in the middle of its fencing."""
    producer = producer_of(kafka)
    try:
        monkeypatch.setattr(producer, "_producer", Refusing(producer._producer, aborting))
        assert producer.send(TRADES, "BTCUSDT", b"a trade", [], 0)
        with pytest.raises(expected, match=says):
            asyncio.run(asyncio.wait_for(producer.run(), PATIENCE_S))
    finally:
        producer.close()


def test_behind_a_commit_nothing_is_sent_before_its_markers_are_written(
    kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka would tell it to come again later. What is taken meanwhile is kept, and begins the next transaction."""
    producer = producer_of(kafka, transaction_ms=10)
    to_broker: list[bytes] = []
    produce, sleep = producer._produce, asyncio.sleep
    waited_s: list[float] = []

    def noted(topic: str, value: bytes, *rest: Any, **named: Any) -> None:
        to_broker.append(value)
        produce(topic, value, *rest, **named)

    async def meanwhile(seconds: float) -> None:
        waited_s.append(seconds)
        if len(waited_s) == 1:
            assert producer.committed == 1
            assert producer.send(TRADES, "BTCUSDT", b"the second", [], 0)
            assert (to_broker, producer.queued) == ([b"the first"], 1)
        await sleep(0)

    async def send_and_commit() -> None:
        assert not await producer._commit()
        assert producer.send(TRADES, "BTCUSDT", b"the first", [], 0)
        assert await producer._commit()
        assert (to_broker, waited_s) == ([b"the first", b"the second"], [0.008])
        assert await producer._commit()

    monkeypatch.setattr(producer, "_produce", noted)
    monkeypatch.setattr(asyncio, "sleep", meanwhile)
    try:
        asyncio.run(asyncio.wait_for(send_and_commit(), PATIENCE_S))
        assert (producer.committed, producer.queued, producer.commits) == (2, 0, 2)
    finally:
        producer.close()
