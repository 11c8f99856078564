"""The sink as a service, on the embedded broker and a SQLite catalog: all real, in one process."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from common.codec import Encoder
from common.datasets import CORE_DATASETS, INSTRUMENTS, QUOTES, TRADES, Dataset
from common.degradation import Level
from common.errors import BrokerError, CatalogError
from common.log import KafkaLog
from common.registry import EmbeddedRegistry
from common.settings import KafkaSettings, LakeSettings, SinkSettings
from k2.broker import EmbeddedBroker
from sink.service import SinkService
from sink.table import IcebergTable
from tests.support.kafka import eventually, produce, read_all
from tests.support.records import instrument, quote, trade

REGISTRY = EmbeddedRegistry()
QUICK = SinkSettings.load(commit_age_ms_max=50)
HOLDING = SinkSettings.load(commit_age_ms_max=3_600_000)
BAD = b"\x00\x00\x00\x00\x07 no schema of that id"


def topic_of(dataset: Dataset) -> str:
    return dataset.topic(asset_class="crypto", exchange="binance")


def encoded(dataset: Dataset, records: list[dict[str, Any]]) -> list[bytes]:
    encoder = Encoder(dataset, REGISTRY, topic=topic_of(dataset))
    return [encoder.encode(record) for record in records]


def trades(first: int, count: int) -> list[bytes]:
    return encoded(TRADES, [trade(i) for i in range(first, first + count)])


def ids(lake: LakeSettings) -> Counter[int]:
    table = IcebergTable.open(lake, TRADES)
    return Counter(i for batch in table.scan(("trade_id",)) for i in batch.column("trade_id").to_pylist())


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


@pytest.fixture
def kafka(broker: EmbeddedBroker) -> KafkaSettings:
    settings = KafkaSettings.load(bootstrap_servers=broker.bootstrap_servers, request_timeout_ms=3_000)
    KafkaLog(settings).ensure_topics([topic_of(dataset) for dataset in CORE_DATASETS])
    return settings


@pytest.fixture
def lake(tmp_path: Path) -> LakeSettings:
    return LakeSettings.load(data_dir=tmp_path / "lake")


@pytest.fixture
def sinks() -> Iterator[list[SinkService]]:
    started: list[SinkService] = []
    yield started
    for sink in started:
        sink.stop()


def start(sinks: list[SinkService], *arguments: Any, **options: Any) -> SinkService:
    sink = SinkService(*arguments, **options)
    sinks.append(sink)
    sink.start()
    return sink


def end_offsets(kafka: KafkaSettings) -> Any:
    log = KafkaLog(kafka)
    return log.end_offsets(log.topics(r"^market\.").values())


def test_three_datasets_land_in_three_tables(
    kafka: KafkaSettings, lake: LakeSettings, sinks: list[SinkService]
) -> None:
    produce(kafka, topic_of(TRADES), trades(0, 500))
    produce(kafka, topic_of(QUOTES), encoded(QUOTES, [quote(i) for i in range(300)]))
    produce(kafka, topic_of(INSTRUMENTS), encoded(INSTRUMENTS, [instrument("BTCUSDT", "a")]))
    metrics = CollectorRegistry()
    sink = start(sinks, kafka, lake, QUICK, registry=metrics)
    end = end_offsets(kafka)
    eventually(lambda: sink.drained(end), what="all is committed")
    sink.stop()
    assert sink.failure is None
    assert {d.name: IcebergTable.open(lake, d).rows for d in CORE_DATASETS} == {
        "trades": 500,
        "quotes": 300,
        "instruments": 1,
        "gap_events": 0,
    }
    committed = IcebergTable.open(lake, TRADES).committed_offsets()
    assert committed == sink.stats()["trades"].committed
    assert sum(committed.values()) == 500
    assert sink.stats()["trades"].snapshot_id == IcebergTable.open(lake, TRADES).snapshot_id
    text = generate_latest(metrics).decode()
    assert 'k2_sink_rows_committed_total{dataset="trades"} 500.0' in text
    assert 'k2_sink_rows_committed_total{dataset="quotes"} 300.0' in text
    assert "k2_sink_running 1.0" in text


def test_stop_commits_what_is_held_and_the_next_sink_goes_on_from_there(
    kafka: KafkaSettings, lake: LakeSettings, sinks: list[SinkService]
) -> None:
    produce(kafka, topic_of(TRADES), trades(0, 40))
    first = start(sinks, kafka, lake, HOLDING, datasets=(TRADES,))
    eventually(lambda: first.stats()["trades"].rows_held == 40, what="all is read and nothing due")
    assert not ids(lake)
    first.stop()
    first.stop()
    assert ids(lake) == Counter(range(40))
    produce(kafka, topic_of(TRADES), trades(40, 10))
    second = start(sinks, kafka, lake, HOLDING, datasets=(TRADES,))
    eventually(lambda: second.stats()["trades"].rows_held == 10)
    second.stop()
    assert second.stats()["trades"].rows_read == 10
    assert ids(lake) == Counter(range(50))


def test_a_bad_record_is_found_in_the_dead_letter_topic_with_its_bytes_and_reason(
    kafka: KafkaSettings, lake: LakeSettings, sinks: list[SinkService]
) -> None:
    truncated = trades(99, 1)[0][:-3]
    produce(kafka, topic_of(TRADES), [*trades(0, 3), BAD, None, b"", truncated, *trades(3, 3)], partitions=1)
    sink = start(sinks, kafka, lake, QUICK, datasets=(TRADES,))
    end = end_offsets(kafka)
    eventually(lambda: sink.drained(end))
    assert ids(lake) == Counter(range(6))
    letters = read_all(kafka, f"dead-letter.{topic_of(TRADES)}", 4)
    assert len(letters) == 4
    found = {int(dict(letter.headers())["k2-offset"]): letter for letter in letters}
    # Tansu 0.6 gives an empty value back as none.
    assert {offset: letter.value() or b"" for offset, letter in found.items()} == {3: BAD, 4: b"", 5: b"", 6: truncated}
    for letter in letters:
        headers = {name: value.decode() for name, value in letter.headers()}
        assert headers["k2-topic"] == topic_of(TRADES)
        assert headers["k2-partition"] == "0"
        assert headers["k2-reason"]
    assert dict(found[3].headers())["k2-schema-id"] == b"7"
    assert "k2-schema-id" not in dict(found[4].headers())
    assert sink.stats()["trades"].dead_letters == 4


def test_a_topic_made_while_it_runs_is_picked_up(
    kafka: KafkaSettings, lake: LakeSettings, sinks: list[SinkService]
) -> None:
    sink = start(sinks, kafka, lake, QUICK, datasets=(TRADES,))
    other = TRADES.topic(asset_class="crypto", exchange="elsewhere")
    KafkaLog(kafka).ensure_topics([other])
    produce(kafka, other, encoded(TRADES, [trade(i, exchange="elsewhere") for i in range(7)]))
    eventually(lambda: sink.stats()["trades"].rows_committed == 7)
    assert ids(lake) == Counter(range(7))


def test_a_broker_that_is_down_at_the_start_is_one_clear_sentence(lake: LakeSettings) -> None:
    nowhere = KafkaSettings.load(bootstrap_servers="127.0.0.1:1", request_timeout_ms=300)
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1 .*K2_KAFKA_BOOTSTRAP_SERVERS"):
        SinkService(nowhere, lake, QUICK).start()


def test_a_catalog_that_is_unusable_at_the_start_is_one_clear_sentence(kafka: KafkaSettings, tmp_path: Path) -> None:
    lake = LakeSettings.load(data_dir=tmp_path)
    (tmp_path / "catalog.db").write_bytes(b"no database" * 1000)
    with pytest.raises(CatalogError, match="could not open the catalog k2"):
        SinkService(kafka, lake, QUICK).start()


def test_a_new_broker_on_the_same_port_is_a_new_source(lake: LakeSettings, sinks: list[SinkService]) -> None:
    first = EmbeddedBroker().start()
    kafka = KafkaSettings.load(bootstrap_servers=first.bootstrap_servers, request_timeout_ms=1_000)
    try:
        KafkaLog(kafka).ensure_topics([topic_of(TRADES)])
        produce(kafka, topic_of(TRADES), trades(0, 20))
        sink = start(sinks, kafka, lake, QUICK, datasets=(TRADES,))
        eventually(lambda: sink.stats()["trades"].rows_committed == 20)
    finally:
        first.stop()
    with EmbeddedBroker(port=first.port) as second:
        assert second.cluster_id != first.cluster_id
        KafkaLog(kafka).ensure_topics([topic_of(TRADES)])
        produce(kafka, topic_of(TRADES), trades(20, 20))
        eventually(lambda: sink.stats()["trades"].rows_committed == 40, what="the new broker's records are taken in")
        sink.stop()
    assert sink.failure is None
    assert ids(lake) == Counter(range(40))
    assert {partition.cluster_id for partition in sink.stats()["trades"].committed} == {
        first.cluster_id,
        second.cluster_id,
    }


def test_snapshots_do_not_pile_up(
    kafka: KafkaSettings, lake: LakeSettings, sinks: list[SinkService], monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.clock import SystemClock

    class LaterClock(SystemClock):
        """Ten minutes ahead, so that every snapshot is old."""

        def now_us(self) -> int:
            return super().now_us() + 600_000_000

    settings = SinkSettings.load(commit_rows_max=1, poll_messages_max=1, snapshots_kept_min=3)
    produce(kafka, topic_of(TRADES), trades(0, 41))
    sink = start(sinks, kafka, lake, settings, datasets=(TRADES,), clock=LaterClock())
    eventually(lambda: sink.stats()["trades"].rows_committed == 41)
    sink.stop()
    table = IcebergTable.open(lake, TRADES)
    assert len(table.iceberg_table.metadata.snapshots) == 4
    assert ids(lake) == Counter(range(41))


def test_while_memory_is_short_quotes_wait_in_the_log_trades_land_and_later_every_quote_lands_once(
    kafka: KafkaSettings, lake: LakeSettings, sinks: list[SinkService], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sink.service._LOAD_INTERVAL_S", 0.02)
    monkeypatch.setattr("sink.service._DISCOVERY_INTERVAL_S", 0.1)
    may_have = 1_048_576
    memory = {"rss_bytes": may_have * 91 // 100}
    settings = QUICK.model_copy(
        update={"bars": False, "memory_bytes_max": may_have, "load_after_s": 0.0, "load_recover_after_s": 0.1}
    )
    metrics = CollectorRegistry()
    sink = start(
        sinks, kafka, lake, settings, datasets=(TRADES, QUOTES), rss_bytes=lambda: memory["rss_bytes"], registry=metrics
    )
    eventually(lambda: sink.stats()["quotes"].resting, what="quotes wait")
    produce(kafka, topic_of(QUOTES), encoded(QUOTES, [quote(i) for i in range(300)]))
    produce(kafka, topic_of(TRADES), trades(0, 300))
    eventually(lambda: sink.stats()["trades"].rows_committed == 300, what="trades land")
    behind = re.compile(r'behind_records{dataset="quotes"} [1-9]')  # Tansu 0.6 says where the last batch began
    eventually(lambda: behind.search(generate_latest(metrics).decode()) is not None, what="it is told of the quotes")
    assert sink.load_level is Level.AGGRESSIVE
    memory["rss_bytes"] = may_have
    eventually(lambda: sink.load_level is Level.CIRCUIT_BREAK, what="everything waits")
    produce(kafka, topic_of(TRADES), trades(300, 50))
    eventually(lambda: sink.stats()["trades"].rows_committed == 350, what="it is tried once in a while")
    assert (sink.stats()["quotes"].rows_read, IcebergTable.open(lake, QUOTES).rows) == (0, 0)
    memory["rss_bytes"] = 0
    end = end_offsets(kafka)
    eventually(lambda: sink.drained(end) and sink.load_level is Level.NORMAL, what="all is as before")
    sink.stop()
    assert sink.failure is None
    quote_ids = [i for b in IcebergTable.open(lake, QUOTES).scan(("quote_id",)) for i in b.column(0).to_pylist()]
    assert Counter(quote_ids) == Counter(range(300))
    assert ids(lake) == Counter(range(350))
    assert {one.recoveries for one in sink.stats().values()} == {0}
