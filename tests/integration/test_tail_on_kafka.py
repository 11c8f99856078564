"""The tail on a real Apache Kafka: it sees of transactions what the sink sees, before the sink commits and after."""

from __future__ import annotations

from pathlib import Path

from confluent_kafka import Producer

from common.codec import Encoder
from common.datasets import TRADES
from common.log import KafkaLog
from common.registry import EmbeddedRegistry
from common.settings import FlightSettings, KafkaSettings, LakeSettings, SinkSettings
from flight_server.storage.lake import Lake
from sink.service import SinkService
from tests.support.kafka import eventually
from tests.support.records import trade

TOPIC = TRADES.topic(asset_class="crypto", exchange="binance")
ENCODER = Encoder(TRADES, EmbeddedRegistry(), topic=TOPIC)
SETTINGS = FlightSettings(threads=1, memory_bytes_max=256 * 1024**2, snapshot_refresh_ms=20, hot_window_bytes=0)


def shown(lake: Lake) -> list[int]:
    cursor = lake.cursor()
    try:
        return [number for (number,) in cursor.execute("SELECT trade_id FROM market.trades ORDER BY 1").fetchall()]
    finally:
        cursor.close()


def test_of_transactions_the_tail_shows_what_the_sink_commits(kafka: KafkaSettings, tmp_path: Path) -> None:
    KafkaLog(kafka).ensure_topics([TOPIC])
    settings = LakeSettings.load(data_dir=tmp_path / "lake")
    settings.prepare()
    producer = Producer(kafka.client_config() | {"transactional.id": "test-tail", "linger.ms": 0})
    producer.init_transactions(30)
    kept: list[int] = []

    def send(number: int, *, kept_back: bool) -> None:
        producer.begin_transaction()
        for trade_id in range(number * 10, number * 10 + 10):
            producer.produce(TOPIC, ENCODER.encode(trade(trade_id)), partition=trade_id % 4)
        if kept_back:
            producer.flush(30)
            producer.abort_transaction(30)
        else:
            producer.commit_transaction(30)
            kept.extend(range(number * 10, number * 10 + 10))

    for number in range(6):
        send(number, kept_back=number % 3 == 1)
    lake = Lake(kafka, settings, SETTINGS, datasets=(TRADES,))
    sink = SinkService(kafka, settings, SinkSettings.load(commit_age_ms_max=50), datasets=(TRADES,))
    lake.start()
    try:
        # From the tail alone. A broker answers a commit before the markers are written that let readers see it.
        eventually(lambda: shown(lake) == kept)
        sink.start()
        eventually(lambda: lake.stats().snapshot_ids["trades"] is not None and not sum(lake.stats().tail_rows.values()))
        assert shown(lake) == kept, "from the table alone"
        for number in range(6, 9):
            send(number, kept_back=number % 3 == 1)
        eventually(lambda: shown(lake) == kept)
    finally:
        lake.stop()
        sink.stop()
    fresh = Lake(kafka, settings, SETTINGS, datasets=(TRADES,))
    fresh.start()
    try:
        assert shown(fresh) == kept
    finally:
        fresh.stop()
