"""Kafka to committed Iceberg: a preloaded topic on the embedded broker, one sink in this process."""

from __future__ import annotations

import contextlib
import resource
import tempfile
import threading
import time
from pathlib import Path

from confluent_kafka import Producer

from common.datasets import INSTRUMENTS, QUOTES, TRADES
from common.log import KafkaLog
from common.settings import IngestSettings, KafkaSettings, LakeSettings, SinkSettings
from ingest.service import IngestService
from ingest.simulator import Simulator
from k2.broker import EmbeddedBroker
from sink.service import SinkService
from sink.table import IcebergTable
from tests.performance.figures import Figure
from tests.performance.market_data import messages

_ROWS = 2_000_000
#: Where a checkout has the recordings beside it.
_CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "data" / "binance"


def run(scale: float) -> list[Figure]:
    count = int(_ROWS * scale)
    topic = TRADES.topic(asset_class="crypto", exchange="binance")
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory(prefix="k2-bench-") as folder:
        kafka = KafkaSettings.load(bootstrap_servers=broker.bootstrap_servers)
        log = KafkaLog(kafka)
        log.ensure_topics([topic])
        _preload(kafka, topic, count)
        ends = log.end_offsets(log.topics(TRADES.topic_pattern).values())
        assert sum(ends.values()) == count
        lake = LakeSettings.load(data_dir=Path(folder))
        lake.prepare()
        service = SinkService(kafka, lake, SinkSettings.load(bars=False), datasets=(TRADES,))
        cpu_before, begin_s = time.process_time(), time.perf_counter()
        service.start()
        waiter = threading.Event()
        while not service.drained(ends) and service.failure is None:
            waiter.wait(0.005)
        taken_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - cpu_before
        stats = service.stats()[TRADES.name]
        service.stop()
    assert service.failure is None
    assert stats.rows_committed == count
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent = {"poll": stats.poll_s, "decode": stats.decode_s, "write": stats.write_s, "commit": stats.commit_s}
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in spent.items())
    return [
        Figure("sink", "Kafka to committed Iceberg", count / taken_s, "rows/s", f"{stats.commits} commits; {parts}"),
        Figure("sink", "per CPU second", count / cpu_s, "rows/s", "this process; the broker has its own"),
        Figure("sink", "peak memory", peak_mib, "MiB", "of the whole benchmark process"),
        *_compression(),
    ]


def _compression() -> list[Figure]:
    """The recorded Binance feeds through ingest, broker and sink: the Avro bytes that the sink read, against its files.

    Nothing where the recordings are not. They come at full speed, so receive times are closer together than in life.
    """
    captures = sorted(_CAPTURES.glob("*.gz"))
    if not captures:
        return []
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory(prefix="k2-bench-") as folder:
        kafka = KafkaSettings.load(bootstrap_servers=broker.bootstrap_servers)
        simulator = Simulator.replay(captures, resume=True)
        with contextlib.ExitStack() as running:
            simulator.start()
            running.callback(simulator.stop)
            ingest = IngestService(
                ["BTCUSDT", "ETHUSDT"], kafka=kafka, settings=IngestSettings.load(connections=1), url=simulator.url
            )
            ingest.start()
            running.callback(ingest.stop)
            waiter = threading.Event()
            while not (
                simulator.finished.is_set()
                and ingest.stats().frames >= simulator.stats().frames_sent
                and not ingest.stats().queued
            ):
                waiter.wait(0.05)
        lake = LakeSettings.load(data_dir=Path(folder))
        lake.prepare()
        log = KafkaLog(kafka)
        ends = log.end_offsets(log.topics(r"^market\.").values())
        settings = SinkSettings.load(commit_age_ms_max=5_000, bars=False)
        service = SinkService(kafka, lake, settings, datasets=(TRADES, QUOTES, INSTRUMENTS))
        service.start()
        while not service.drained(ends) and service.failure is None:
            waiter.wait(0.05)
        service.stop()
        assert service.failure is None
        figures = []
        for dataset in (TRADES, QUOTES):
            snapshot = IcebergTable.open(lake, dataset).iceberg_table.current_snapshot()
            assert snapshot is not None
            assert snapshot.summary is not None
            nbytes, avro = int(snapshot.summary["total-files-size"] or 0), service.stats()[dataset.name].bytes_read
            files, rows = snapshot.summary["total-data-files"], snapshot.summary["total-records"]
            beside = f"{avro:,} bytes of Avro, {nbytes:,} in {files} files of {rows} rows"
            figures.append(Figure("sink", f"recorded {dataset.name}, Avro bytes a byte", avro / nbytes, "to 1", beside))
        return figures


def _preload(kafka: KafkaSettings, topic: str, count: int) -> None:
    values = messages(20_000)
    producer = Producer(kafka.client_config() | {"linger.ms": 20, "queue.buffering.max.messages": 1_000_000})
    for number in range(count):
        while True:
            try:
                producer.produce(topic, values[number % len(values)], partition=number % kafka.topic_partitions)
                break
            except BufferError:
                producer.poll(0.05)
        if number % 10_000 == 0:
            producer.poll(0)
    producer.flush()
