"""Simulator -> feed -> ledger -> producer -> a real broker, and the log read back."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from prometheus_client import CollectorRegistry, generate_latest

from common.codec import Encoder
from common.datasets import INSTRUMENTS, QUOTES, TRADES
from common.errors import BrokerError, FeedClosed, SettingsError
from common.offsets import PartitionOffsets
from common.registry import EmbeddedRegistry
from common.settings import KafkaSettings
from common.telemetry import CORRELATION_KEY
from ingest.checkpoint import Checkpoint, StateDirectory
from ingest.gaps import GapLimits
from ingest.ledger import Ledger
from ingest.normaliser import Normaliser
from ingest.service import IngestService
from ingest.simulator import Simulator
from ingest.venues.binance import TradeEvent
from k2.broker import EmbeddedBroker
from tests.contract.ingest.ingest_support import (
    dead_letters_of,
    dropped,
    eventually,
    handled,
    ids,
    line,
    made_up,
    quick,
    raw_messages,
    rows,
    topic_of,
    trade_line,
)

Start = Callable[..., Any]


def test_each_trade_quote_and_instrument_is_in_the_log_once_and_in_order(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    capture = made_up(tmp_path / "c", trades=500)
    service = ingest(simulator([capture.path]).url)
    handled(service, capture.frames)
    assert ids(kafka, TRADES) == capture.trades
    assert ids(kafka, QUOTES) == capture.quotes
    assert sorted(ids(kafka, INSTRUMENTS)) == ["BTCUSDT", "ETHBTC"]
    stats = service.stats()
    assert (stats.trades, stats.quotes, stats.instruments, stats.ignored, stats.dead_letters) == (1000, 1000, 2, 0, 0)
    assert stats.acknowledged == stats.produced == 2002
    assert (stats.queued, stats.gaps, stats.reconnects) == (0, 0, 0)
    assert stats.connected


def test_a_row_is_what_the_frame_said(tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start) -> None:
    capture = made_up(tmp_path / "c", trades=2, first=3)
    handled(ingest(simulator([capture.path]).url), capture.frames)
    row = next(row for row in rows(kafka, TRADES) if row["message_id"] == "binance:BTCUSDT:3")
    assert (row["price"], row["quantity"], row["side"]) == (Decimal("3.25"), Decimal("0.5"), "BUY")
    assert (row["currency"], row["asset_class"], row["source"]) == ("USDT", "crypto", "stream")
    assert row["event_time"].timestamp() == 1_700_000_000.003


def test_messages_are_keyed_by_symbol_and_carry_their_connections_correlation_id(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    capture = made_up(tmp_path / "c", trades=10)
    handled(ingest(simulator([capture.path]).url), capture.frames)
    messages = raw_messages(kafka, topic_of(TRADES), 20)
    assert {message.key() for message in messages} == {b"BTCUSDT", b"ETHBTC"}
    assert len({(message.key(), message.partition()) for message in messages}) == 2
    correlation_ids = {dict(message.headers())[CORRELATION_KEY] for message in messages}
    assert len(correlation_ids) == 1
    assert len(correlation_ids.pop()) == 16


def test_a_replay_repeated_after_lost_connections_doubles_nothing(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    capture = made_up(tmp_path / "c", trades=3_000)
    source = simulator([capture.path])
    service = ingest(source.url)
    for frames in (1_000, 5_000, 9_000):
        eventually(lambda frames=frames: service.stats().frames >= frames, "some frames")
        source.drop_connections()
        eventually(lambda: not service.stats().connected or service.stats().reconnects > 0, "the loss is seen")
    eventually(lambda: source.finished.is_set() and service.stats().connected, "a whole replay")
    eventually(lambda: service.stats().trades == 6_000 and service.stats().quotes == 6_000, "everything taken")
    assert service.flush()
    assert service.stats().reconnects >= 1
    assert sum(service.stats().duplicates_dropped.values()) > 0
    assert ids(kafka, TRADES) == capture.trades
    assert ids(kafka, QUOTES) == capture.quotes


def test_a_restart_after_a_clean_stop_reads_nothing_and_drops_everything(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    capture = made_up(tmp_path / "c", trades=300)
    source = simulator([capture.path])
    first = ingest(source.url, state_dir=tmp_path / "state")
    handled(first, capture.frames)
    first.stop()
    assert first.stats().checkpoints == 1
    second = ingest(source.url, state_dir=tmp_path / "state")
    handled(second, capture.frames)
    assert second.stats().log_messages_read == 0
    assert dropped(second) == {"trades": 600, "quotes": 600, "instruments": 2}
    assert (second.stats().trades, second.stats().produced) == (0, 0)
    assert ids(kafka, TRADES) == capture.trades


def test_without_a_state_directory_the_whole_log_is_read(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    capture = made_up(tmp_path / "c", trades=300)
    source = simulator([capture.path])
    first = ingest(source.url)
    handled(first, capture.frames)
    first.stop()
    second = ingest(source.url)
    handled(second, capture.frames)
    assert second.stats().log_messages_read == 1202
    assert second.stats().produced == 0


CRASH = """
import os, sys
from pathlib import Path
from common.settings import KafkaSettings
from ingest.service import IngestService
from tests.contract.ingest.ingest_support import eventually, quick
servers, url, state, frames, flush, interval_s = sys.argv[1:]
service = IngestService(
    ["BTCUSDT", "ETHBTC"],
    kafka=KafkaSettings(bootstrap_servers=servers, topic_partitions=2),
    settings=quick(checkpoint_interval_s=float(interval_s)),
    url=url,
    state_dir=Path(state),
)
service.start()
eventually(lambda: service.stats().frames >= int(frames), "frames handled")
if flush == "flush":
    service.flush()
if float(interval_s) < 1:
    eventually(lambda: service.stats().checkpoints > 0, "a checkpoint")
print(service.stats().checkpoints, flush=True)
os.kill(os.getpid(), 9)
"""


def crash(
    kafka: KafkaSettings, url: str, state_dir: Path, *, frames: int, flush: bool, interval_s: float = 3600.0
) -> None:
    """Run an ingest in a process of its own and kill it once it has handled so many frames."""
    assert kafka.bootstrap_servers is not None
    words = [kafka.bootstrap_servers, url, str(state_dir), str(frames), "flush" if flush else "no", str(interval_s)]
    done = subprocess.run([sys.executable, "-c", CRASH, *words], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_crash_between_acknowledgement_and_checkpoint_doubles_nothing(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    short, whole = made_up(tmp_path / "short", trades=100), made_up(tmp_path / "whole", trades=400)
    before = ingest(simulator([short.path]).url, state_dir=tmp_path / "state")
    handled(before, short.frames)
    before.stop()
    source = simulator([whole.path])
    crash(kafka, source.url, tmp_path / "state", frames=whole.frames, flush=True)
    after = ingest(source.url, state_dir=tmp_path / "state")
    assert after.stats().log_messages_read == whole.frames - short.frames
    handled(after, whole.frames)
    assert after.stats().produced == 0
    assert ids(kafka, TRADES) == whole.trades
    assert ids(kafka, QUOTES) == whole.quotes


@pytest.mark.parametrize(("frames", "interval_s"), [(1, 3600.0), (3_000, 3600.0), (3_000, 0.01), (7_000, 0.03)])
def test_a_crash_with_messages_in_flight_loses_and_doubles_nothing(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start, frames: int, interval_s: float
) -> None:
    capture = made_up(tmp_path / "c", trades=2_000)
    source = simulator([capture.path])
    crash(kafka, source.url, tmp_path / "state", frames=frames, flush=False, interval_s=interval_s)
    after = ingest(source.url, state_dir=tmp_path / "state")
    handled(after, capture.frames)
    assert ids(kafka, TRADES) == capture.trades
    assert ids(kafka, QUOTES) == capture.quotes
    assert after.stats().gaps == 0


def test_checkpoints_are_kept_while_running(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    capture = made_up(tmp_path / "c", trades=200)
    service = ingest(
        simulator([capture.path]).url, state_dir=tmp_path / "s", settings=quick(checkpoint_interval_s=0.001)
    )
    handled(service, capture.frames)
    eventually(lambda: service.stats().checkpoints >= 2, "two checkpoints")
    assert ids(kafka, TRADES) == capture.trades


def test_a_seed_stands_for_a_log_that_is_gone(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    capture = made_up(tmp_path / "c", trades=100)
    seed = Ledger()
    seed.take_trades("binance", "BTCUSDT", [(1, 60)])
    seed.take_quote("binance", "BTCUSDT", 90)
    service = ingest(simulator([capture.path]).url, seed=seed)
    handled(service, capture.frames)
    assert dropped(service) == {"trades": 60, "quotes": 30}
    assert ids(kafka, TRADES) == {**capture.trades, "BTCUSDT": list(range(61, 101))}
    assert ids(kafka, QUOTES)["BTCUSDT"] == [3 * number for number in range(31, 101)]


def test_a_checkpoint_of_another_cluster_is_not_used(tmp_path: Path, simulator: Start) -> None:
    capture = made_up(tmp_path / "c", trades=50)
    source = simulator([capture.path])
    for _ in range(2):
        with EmbeddedBroker() as broker:
            kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, topic_partitions=2)
            service = IngestService(
                ["BTCUSDT", "ETHBTC"], kafka=kafka, settings=quick(), url=source.url, state_dir=tmp_path / "state"
            )
            service.start()
            handled(service, capture.frames)
            service.stop()
            assert service.failure is None
            assert service.stats().trades == 100
            assert ids(kafka, TRADES) == capture.trades
            os.kill(broker.pid, signal.SIGKILL)


def test_a_checkpoint_that_covers_more_than_the_log_holds_is_not_used(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    """As when a cluster came back from an older backup: what the log does not hold must be taken again."""
    capture = made_up(tmp_path / "c", trades=20)
    source = simulator([capture.path])
    first = ingest(source.url, symbols=["ETHBTC"], state_dir=tmp_path / "state")
    handled(first, 40)
    first.stop()
    with StateDirectory(tmp_path / "state") as state:
        kept = state.load(GapLimits(0.5, 10, 100))
        assert kept is not None
        kept.ledger.take_trades("binance", "BTCUSDT", [(1, 20)])
        ahead = PartitionOffsets({partition: offset + 50 for partition, offset in kept.covered.items()})
        state.save(Checkpoint(ahead, kept.ledger, kept.gaps).to_text())
    second = ingest(source.url, state_dir=tmp_path / "state")
    assert second.stats().log_messages_read == 41
    handled(second, capture.frames)
    assert ids(kafka, TRADES) == capture.trades


def test_records_of_another_writer_are_seen_at_the_next_start(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    early, late = made_up(tmp_path / "a", trades=5), made_up(tmp_path / "b", trades=12)
    first = ingest(simulator([early.path]).url, state_dir=tmp_path / "state")
    handled(first, early.frames)
    topic = topic_of(TRADES)
    encoder = Encoder(TRADES, EmbeddedRegistry(), topic=topic)
    event = TradeEvent("BTCUSDT", 6, Decimal(6), Decimal(1), 1_000_000, 1_000_000, True, 1_000_000)
    foreign = Producer(kafka.client_config() | {"partitioner": "murmur2_random"})
    foreign.produce(
        topic, encoder.encode(Normaliser(exchange="binance", asset_class="crypto").trade(event)), b"BTCUSDT"
    )
    assert foreign.flush(10) == 0
    first.stop()
    second = ingest(simulator([late.path]).url, state_dir=tmp_path / "state")
    assert second.stats().log_messages_read == 1
    handled(second, late.frames)
    second.stop()
    assert ids(kafka, TRADES) == late.trades


def test_a_frame_that_cannot_be_used_is_kept_with_its_reason_and_its_neighbours_land(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    bad_trade = json.loads(trade_line(0, "BTCUSDT", 2).partition(b" ")[2])["data"] | {"p": "NaN"}
    bad_quote = {"u": "x", "s": "BTCUSDT", "b": "1", "B": "1", "a": "1", "A": "1"}
    path = tmp_path / "c"
    bad = [line(1, "btcusdt@trade", bad_trade), line(2, "btcusdt@bookTicker", bad_quote)]
    path.write_bytes(b"".join([trade_line(0, "BTCUSDT", 1), *bad, trade_line(3, "BTCUSDT", 3)]))
    service = ingest(simulator([path]).url, symbols=["BTCUSDT"])
    handled(service, 4)
    assert ids(kafka, TRADES) == {"BTCUSDT": [1, 3]}
    assert (service.stats().dead_letters, service.stats().gaps) == (2, 1)
    for dataset, raw, field in ((TRADES, bad[0], "'p'"), (QUOTES, bad[1], "'u'")):
        (letter,) = raw_messages(kafka, dead_letters_of(dataset), 1)
        headers = dict(letter.headers())
        assert letter.value() == raw.strip().partition(b" ")[2]
        assert field in headers["k2-reason"].decode()
        assert headers["k2-topic"].decode() == topic_of(dataset)
        assert headers["k2-exchange"] == b"binance"
        assert headers["k2-receive-time-us"].isdigit()
        assert len(headers[CORRELATION_KEY]) == 16


def test_a_full_queue_makes_the_socket_wait_and_drops_nothing(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    capture = made_up(tmp_path / "c", trades=3_000)
    service = ingest(simulator([capture.path]).url, settings=quick(queue_messages_max=1000, linger_ms=50))
    queued: list[int] = []

    def done() -> bool:
        queued.append(service.stats().queued)
        return service.stats().frames == capture.frames

    eventually(done, "everything handled")
    handled(service, capture.frames)
    assert 0 < max(queued) < 1_100  # reports and requests on their way count too
    assert ids(kafka, TRADES) == capture.trades
    assert ids(kafka, QUOTES) == capture.quotes


def test_a_broker_that_goes_away_ends_the_service_and_no_checkpoint_says_otherwise(
    tmp_path: Path, simulator: Start
) -> None:
    capture = made_up(tmp_path / "c", trades=5_000, every_ns=10_000_000)
    source = simulator([capture.path], speed=1.0)
    with EmbeddedBroker() as broker:
        kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, topic_partitions=2, request_timeout_ms=1_000)
        service = IngestService(
            ["BTCUSDT", "ETHBTC"],
            kafka=kafka,
            settings=quick(delivery_timeout_ms=3_000),
            url=source.url,
            state_dir=tmp_path / "state",
        )
        service.start()
        eventually(lambda: service.failure is not None or service.stats().acknowledged > 10, "some are acknowledged")
        assert service.failure is None
    eventually(lambda: service.failure is not None, lambda: f"the failure is seen: {service.stats()}")
    service.stop()
    assert isinstance(service.failure, BrokerError)
    assert "\n" not in str(service.failure)
    assert not (tmp_path / "state" / "ledger.json").exists()


def test_a_broker_that_is_down_is_one_sentence_at_start() -> None:
    kafka = KafkaSettings(bootstrap_servers="127.0.0.1:1", request_timeout_ms=300)
    service = IngestService(["BTCUSDT"], kafka=kafka, settings=quick(), url="ws://127.0.0.1:1")
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1") as raised:
        service.start()
    assert "\n" not in str(raised.value)
    service.stop()


def test_an_exchange_that_is_down_is_one_sentence_at_start_and_lets_the_state_go(
    tmp_path: Path, kafka: KafkaSettings
) -> None:
    for _ in range(2):
        service = IngestService(
            ["BTCUSDT"], kafka=kafka, settings=quick(), url="ws://127.0.0.1:1", state_dir=tmp_path / "state"
        )
        with pytest.raises(FeedClosed, match=r"127\.0\.0\.1:1 cannot be reached .*; check the URL and the network"):
            service.start()
        service.stop()


def test_a_second_ingest_on_the_state_directory_is_refused(
    tmp_path: Path, kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    source = simulator([made_up(tmp_path / "c", trades=1).path])
    ingest(source.url, state_dir=tmp_path / "state")
    with pytest.raises(SettingsError, match=rf"another ingest \(process {os.getpid()}\)"):
        ingest(source.url, state_dir=tmp_path / "state")


def test_the_counters_are_there_for_prometheus(tmp_path: Path, simulator: Start, ingest: Start) -> None:
    registry = CollectorRegistry()
    capture = made_up(tmp_path / "c", trades=5)
    handled(ingest(simulator([capture.path]).url, registry=registry), capture.frames)
    text = generate_latest(registry).decode()
    assert "k2_ingest_frames_total 20.0" in text
    assert 'k2_ingest_records_total{dataset="trades"} 10.0' in text
    assert "k2_ingest_connected 1.0" in text


def test_stop_is_idempotent_and_stop_before_start_is_nothing(
    kafka: KafkaSettings, tmp_path: Path, simulator: Start
) -> None:
    source = simulator([made_up(tmp_path / "c", trades=1).path])
    service = IngestService(["BTCUSDT"], kafka=kafka, settings=quick(), url=source.url)
    service.stop()
    service = IngestService(["BTCUSDT"], kafka=kafka, settings=quick(), url=source.url)
    service.start()
    service.stop()
    service.stop()
    assert service.failure is None
    assert not service.stats().connected


def test_the_real_captures_land_whole(
    captures: dict[str, Path], kafka: KafkaSettings, simulator: Start, ingest: Start
) -> None:
    """Against an oracle that reads the files directly and knows nothing of ours."""
    paths = [path for name, path in sorted(captures.items()) if "usdt" in name]
    trades: dict[str, list[tuple[int, Decimal, Decimal]]] = {}
    quotes: dict[str, list[int]] = {}
    for path in paths:
        with gzip.open(path) as lines:
            for raw in lines:
                message = json.loads(raw.partition(b" ")[2])
                data, stream = message.get("data", {}), message.get("stream", "")
                if stream.endswith("@trade"):
                    trades.setdefault(data["s"], []).append((data["t"], Decimal(data["p"]), Decimal(data["q"])))
                elif stream.endswith("@bookTicker"):
                    quotes.setdefault(data["s"], []).append(data["u"])
    assert (sum(map(len, trades.values())), sum(map(len, quotes.values()))) == (16_253, 69_211)
    source = simulator(paths)
    service = ingest(source.url, symbols=["BTCUSDT", "ETHUSDT"])
    handled(service, 16_253 + 69_211)
    found: dict[str, list[tuple[int, Decimal, Decimal]]] = {}
    for row in rows(kafka, TRADES):
        found.setdefault(row["symbol"], []).append((row["trade_id"], row["price"], row["quantity"]))
    assert found == trades
    assert ids(kafka, QUOTES) == quotes
    assert service.stats().gaps == 0
    assert source.stats().frames_sent == 85_464
    assert isinstance(source, Simulator)
