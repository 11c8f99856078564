"""Dead letters of the sink and of ingest: listed, shown, in SQL, kept elsewhere, and put back once, with real parts."""

from __future__ import annotations

import base64
import json
import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Producer

import clients
from common.codec import Encoder
from common.datasets import GAP_EVENTS, TRADES, dead_letter_topic
from common.dead_letters import all_letters
from common.errors import Refused, SettingsError
from common.log import KafkaLog
from common.registry import EmbeddedRegistry, KafkaRegistry, schema_id
from common.schemas.arrow import avro_schema_text
from common.settings import FlightSettings, KafkaSettings, LakeSettings, SinkSettings
from flight_server.service.service import FlightService
from flight_server.storage.lake import Lake
from k2.broker import EmbeddedBroker
from k2.dlq import dlq
from k2.seed import ledger_of_tables
from sink.service import SinkService
from tests.support.kafka import eventually
from tests.support.records import trade

TOPIC = TRADES.topic(asset_class="crypto", exchange="binance")
GAPS = GAP_EVENTS.topic(asset_class="crypto", exchange="binance")
SUBJECT = f"{TOPIC}-value"
#: The packaged schema in other words: an id of its own, which nobody knows before it is registered.
OTHER_SCHEMA = json.dumps(json.loads(avro_schema_text("trade")), indent=1)
ENCODE = Encoder(TRADES, EmbeddedRegistry(), topic=TOPIC).encode


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaSettings]:
    with EmbeddedBroker() as broker:
        settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, topic_partitions=2)
        KafkaLog(settings).ensure_topics([TOPIC, dead_letter_topic(TOPIC), GAPS])
        yield settings
        os.kill(broker.pid, signal.SIGKILL)  # it holds nothing worth a clean end, which takes it 2 s


@pytest.fixture
def command(kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    assert kafka.bootstrap_servers is not None
    monkeypatch.setenv("K2_KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    return lambda *arguments: CliRunner().invoke(dlq, arguments, catch_exceptions=False, obj=False)


@contextmanager
def sinking(kafka: KafkaSettings, lake: LakeSettings) -> Iterator[SinkService]:
    sink = SinkService(kafka, lake, SinkSettings(commit_age_ms_max=50, bars=False), datasets=(TRADES,), optional=())
    sink.start()
    try:
        yield sink
    finally:
        sink.stop()


def in_other_schema(trade_id: int) -> bytes:
    value = ENCODE(trade(trade_id))
    return value[:1] + struct.pack(">I", schema_id(OTHER_SCHEMA)) + value[5:]


def frame(trade_id: int, price: str) -> bytes:
    data = {
        "e": "trade", "E": 1_700_000_000_000, "s": "BTCUSDT", "t": trade_id, "p": price, "q": "0.5",
        "T": 1_700_000_000_000, "m": True, "M": True,
    }  # fmt: skip
    return json.dumps({"stream": "btcusdt@trade", "data": data}).encode()


def gap(state: str) -> bytes:
    """Trades 6 to 8 are missing, or were given up."""
    seen_us = 1_700_000_000_000_000
    closed_us = None if state == "open" else seen_us + 1
    record = {
        "message_id": state, "gap_id": "binance:BTCUSDT:6", "exchange": "binance", "symbol": "BTCUSDT", "first_id": 6,
        "last_id": 8, "state": state, "severity": "warning", "missing_ids": 3, "backfilled_ids": 0,
        "opened_time": seen_us, "updated_time": closed_us or seen_us, "closed_time": closed_us, "closed_by": None,
        "reason": None,
    }  # fmt: skip
    return Encoder(GAP_EVENTS, EmbeddedRegistry(), topic=GAPS).encode(record)


def ids_in_table(lake: LakeSettings) -> list[tuple[int, int]]:
    return [tuple(one) for one in ledger_of_tables(lake).trade_ids("binance", "BTCUSDT")]


def test_letters_of_sink_and_ingest(kafka: KafkaSettings, command: Callable[..., Result], tmp_path: Path) -> None:
    lake = LakeSettings(data_dir=tmp_path / "lake")
    lake.prepare()
    producer = Producer(kafka.client_config())
    for value in (ENCODE(trade(1)), in_other_schema(2), in_other_schema(3), b"\0broken"):
        producer.produce(TOPIC, value, partition=1)
    producer.produce(TOPIC, ENCODE(trade(3)), partition=1)  # as a backfill would bring it
    for broken in (frame(4, "4.5"), frame(5, "much"), frame(6, "6.5")):
        headers = {"k2-reason": "an older K2 says no", "k2-topic": TOPIC, "k2-exchange": "binance"}
        producer.produce(dead_letter_topic(TOPIC), broken, headers=headers | {"k2-receive-time-us": "1700000000000000"})
    producer.produce(GAPS, gap("open"))
    producer.flush()
    with sinking(kafka, lake) as sink:
        eventually(lambda: len(all_letters(kafka)) == 6, what=str(sink.stats()))
        eventually(lambda: ids_in_table(lake) == [(1, 1), (3, 3)])

    listed = [json.loads(line) for line in command("list", "--json").stdout.splitlines()]
    assert len(listed) == 6
    by_offset = {one["kafka_offset"]: one for one in listed if one["kafka_offset"] is not None}
    assert {one["kafka_partition"] for one in by_offset.values()} == {1}
    assert by_offset[1]["schema_id"] == schema_id(OTHER_SCHEMA)
    assert "magic byte" in by_offset[3]["reason"] or "schema id" in by_offset[3]["reason"]
    two, three, broken_id = (by_offset[offset]["letter_id"] for offset in (1, 2, 3))
    by_value = {base64.b64decode(one["value"]): one["letter_id"] for one in listed}
    four, five = by_value[frame(4, "4.5")], by_value[frame(5, "much")]
    assert command("list", "--reason", "older K2").stdout.count("binance") == 3

    # Nobody knows the schema yet: nothing of the sink's can go back, and nothing does.
    said = command("replay", "--all", "--dry-run").stdout
    assert said.count("would be put back") == 1
    assert said.count("still cannot be used") == 4
    assert not any(one.replays for one in all_letters(kafka))
    KafkaRegistry(kafka).register(SUBJECT, OTHER_SCHEMA)
    shown = command("show", two[:6]).stdout
    assert f"`k2 dlq replay {two}` puts it back" in shown
    assert f"00000000  00 {in_other_schema(2)[1:16].hex(' ')}" in shown

    done = {one["letter_id"]: one for one in map(json.loads, command("replay", "--all", "--json").stdout.splitlines())}
    assert {letter_id for letter_id, one in done.items() if one["put_back"]} == {two, four}
    assert done[three]["why_not"] == "the log has this record already"
    assert "still cannot be used" in done[broken_id]["why_not"]
    assert "'p'" in done[five]["why_not"]
    assert "asks the exchange for it" in done[by_value[frame(6, "6.5")]]["why_not"]
    # Once: all that wait are tried again, and those two do not wait.
    assert two not in command("replay", "--all").stdout
    with pytest.raises(Refused, match="none of these"):
        command("replay", two)
    producer.produce(GAPS, gap("lost"))
    producer.flush()
    command("replay", "--all")
    with sinking(kafka, lake):
        eventually(lambda: ids_in_table(lake) == [(1, 4), (6, 6)])
    rows = rows_of(kafka, lake, "SELECT trade_id, source, price::VARCHAR AS p FROM market.trades ORDER BY trade_id")
    assert [row["trade_id"] for row in rows] == [1, 2, 3, 4, 6]
    assert rows[3]["p"] == "4.50000000"

    # What is put back again on purpose is there twice, and its letter says so.
    assert f"{two} {TOPIC}: put back" in command("replay", two, "--again").stdout
    (marked,) = [one for one in all_letters(kafka) if one.letter.id == two]
    assert marked.replays == 2

    shown_in_sql = rows_of(
        kafka,
        lake,
        "SELECT letter_id, topic, kafka_partition AS p, kafka_offset AS o, schema_id, reason, value, replays, "
        "replayed_at IS NOT NULL AS back, written_at > TIMESTAMPTZ '2020-01-01' AS late "
        "FROM ops.dead_letters ORDER BY o",
    )
    assert len(shown_in_sql) == 6
    assert shown_in_sql[0] == {
        "letter_id": two,
        "topic": TOPIC,
        "p": 1,
        "o": 1,
        "schema_id": schema_id(OTHER_SCHEMA),
        "reason": by_offset[1]["reason"],
        "value": in_other_schema(2),
        "replays": 2,
        "back": True,
        "late": True,
    }
    file = tmp_path / "letters.jsonl"
    command("export", "--output", str(file))
    exported = {one["letter_id"]: one for one in map(json.loads, file.read_text().splitlines())}
    assert base64.b64decode(exported[broken_id]["value"]) == b"\0broken"
    assert exported[four]["headers"]["k2-exchange"] == "binance"


def rows_of(kafka: KafkaSettings, settings: LakeSettings, sql: str) -> list[dict[str, Any]]:
    """What a server answers."""
    flight = FlightSettings(port=0)
    lake = Lake(kafka, settings, flight, datasets=(TRADES,), optional=())
    lake.start()
    service = FlightService(lake, flight)
    service.start()
    try:
        with clients.connect(service.uri) as connection:
            rows: list[dict[str, Any]] = connection.arrow(sql).to_pylist()
            return rows
    finally:
        service.stop()
        lake.stop()


def test_what_is_chosen_wrongly_is_said(command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="nothing is chosen"):
        command("replay")
    for letter_id in ("ffffffffffff", "a"):
        with pytest.raises(SettingsError, match=f"begins with '{letter_id}'"):
            command("show", letter_id)
    monkeypatch.delenv("K2_KAFKA_BOOTSTRAP_SERVERS")
    with pytest.raises(SettingsError, match="K2_KAFKA_BOOTSTRAP_SERVERS is not set"):
        command("list")
