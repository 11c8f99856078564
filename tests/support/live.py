"""K2 from the broker to the door in this process: a sink, a lake and a Flight SQL server on an embedded broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

import clients
from common.codec import Encoder
from common.datasets import TRADES
from common.log import KafkaLog
from common.registry import EmbeddedRegistry
from common.settings import FlightSettings, KafkaSettings, LakeSettings, SinkSettings
from flight_server.service.service import FlightService
from flight_server.storage.lake import Lake
from k2.broker import EmbeddedBroker
from sink.service import SinkService
from tests.support.kafka import eventually
from tests.support.records import trade

TOPIC = TRADES.topic(asset_class="crypto", exchange="binance")
ENCODER = Encoder(TRADES, EmbeddedRegistry(), topic=TOPIC)
COUNT = "select count(*) as n, max(trade_id) as last from market.trades"


class Live:
    """A broker, a sink, a lake and a server on it; trades with dense ids by hand."""

    def __init__(self, folder: Path, *, bars_interval_ms: int | None = None, **more: Any) -> None:
        """With `bars_interval_ms` the sink keeps bars; without, they are computed from the trades. `more` settings."""
        self._broker = EmbeddedBroker()
        kafka = self.kafka = KafkaSettings.load(bootstrap_servers=self._broker.__enter__().bootstrap_servers)
        KafkaLog(kafka).ensure_topics([TOPIC])
        lake_settings = self.lake_settings = LakeSettings.load(data_dir=folder)
        lake_settings.prepare()
        settings = FlightSettings(port=0, snapshot_refresh_ms=20, topic_refresh_ms=50, **{"pin_s_max": 0.05, **more})
        sink_settings = SinkSettings(
            commit_age_ms_max=50, bars=bars_interval_ms is not None, bars_interval_ms=bars_interval_ms or 10_000
        )
        self._sink = SinkService(kafka, lake_settings, sink_settings, datasets=(TRADES,))
        self._sink.start()
        self._lake = Lake(kafka, lake_settings, settings, datasets=(TRADES,))
        self._lake.start()
        self.service = FlightService(self._lake, settings)
        self.service.start()
        self._producer = Producer(kafka.client_config() | {"linger.ms": 1})
        self._next_id = 0
        self._client = clients.connect(self.service.uri)

    def grow(self, count: int, *, deleted: int = 0) -> dict[str, Any]:
        """More trades; returns once they are seen, with what COUNT then says. `deleted`: how many were, before."""
        self.grow_unseen(count)
        while True:
            row: dict[str, Any] = self._client.arrow(COUNT).to_pylist()[0]
            if row["n"] == self._next_id - deleted:
                return row

    @property
    def snapshot_id(self) -> int | None:
        """The snapshot that the server shows."""
        return self._lake.stats().snapshot_ids["trades"]

    def produce(self, records: Sequence[dict[str, Any]], partition: int = 0, *, encoder: Encoder = ENCODER) -> None:
        """These trades; returns once the broker has them. `grow` then waits for its own alone, and must not be used."""
        for record in records:
            self._producer.produce(TOPIC, encoder.encode(record), partition=partition)
        self._producer.flush()

    def grow_unseen(self, count: int) -> None:
        """More trades; returns once the broker has them."""
        for index, trade_id in enumerate(range(self._next_id, self._next_id + count)):
            self._producer.produce(TOPIC, ENCODER.encode(trade(trade_id)), partition=trade_id % 4)
            if index % 10_000 == 0:
                self._producer.poll(0)
        self._producer.flush()
        self._next_id += count

    def grow_at(self, count: int, rows_s: int) -> None:
        """More trades, at a steady pace; returns once the broker has them."""
        values = [ENCODER.encode(trade(trade_id)) for trade_id in range(self._next_id, self._next_id + count)]
        step = max(1, rows_s // 200)
        began_s = time.monotonic()
        for start in range(0, count, step):
            time.sleep(max(0.0, began_s + start / rows_s - time.monotonic()))
            for index in range(start, min(start + step, count)):
                self._producer.produce(TOPIC, values[index], partition=index % 4)
            self._producer.poll(0)
        self._producer.flush()
        self._next_id += count

    def count_published(self, tell: Callable[[int], None]) -> Callable[[], None]:
        """Have `tell` called after each publication with how many trades there are; returns what ends that."""
        cursor = self._lake.cursor()

        def count() -> None:
            publisher = self._lake._publisher
            assert publisher is not None
            tell(sum(publisher.published.cut(cursor).tables[TRADES.table].offsets.values()))

        return self._lake.listen(count)

    def settle(self) -> None:
        """Return once the sink has committed all and the server has taken the snapshot up."""
        eventually(lambda: not sum(self._lake.stats().tail_rows.values()), timeout_s=120, what="all is committed")

    def stop_sink(self) -> None:
        """From now on nothing is committed but by hand."""
        self._sink.stop()

    def stop(self) -> None:
        self._client.close()
        self.service.stop()
        self._lake.stop()
        self._sink.stop()
        self._broker.__exit__(None, None, None)
