"""Schemas by id: the embedded registry, alone and at a broker, and Confluent's protocol against a small server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from common.clock import ManualClock
from common.codec import Decoder, Encoder
from common.datasets import TRADES
from common.errors import BrokerError, IncompatibleSchema
from common.log import ConsumerBatch, KafkaLog
from common.registry import (
    SCHEMAS_TOPIC,
    ConfluentRegistry,
    EmbeddedRegistry,
    KafkaRegistry,
    UnknownSchema,
    open_registry,
    schema_id,
)
from common.schemas.arrow import avro_schema_text
from common.settings import KafkaSettings
from k2.broker import EmbeddedBroker
from tests.support.kafka import produce
from tests.support.records import trade
from tests.support.schema_registry import schema_registry
from tests.support.versions import changed, trade_2_1, without

TRADE = avro_schema_text("trade")
SUBJECT = f"{TRADES.topic(asset_class='crypto', exchange='binance')}-value"
#: May follow the packaged schema, and not 2.1: the field has another type.
OTHER_2_1 = trade_2_1(type=["null", "long"])


def test_processes_agree_on_ids_without_talking() -> None:
    one, other = EmbeddedRegistry(), EmbeddedRegistry()
    schema_id = one.register(SUBJECT, TRADE)
    assert other.schema_text(schema_id) == TRADE
    assert 0 < schema_id < 2**31


def test_an_unknown_id_is_said() -> None:
    with pytest.raises(UnknownSchema, match="schema id 7"):
        EmbeddedRegistry().schema_text(7)


def test_a_schema_that_may_not_follow_is_refused_with_its_field() -> None:
    registry = EmbeddedRegistry()
    with pytest.raises(IncompatibleSchema, match=rf"{SUBJECT} may not follow the packaged one: the field 'price' is g"):
        registry.register(SUBJECT, without(TRADE, "price"))
    registry.register(SUBJECT, trade_2_1())
    with pytest.raises(IncompatibleSchema, match="its version 1: the field 'block_id' is null or long, and was s"):
        registry.register(SUBJECT, OTHER_2_1)
    with pytest.raises(UnknownSchema):
        registry.schema_text(schema_id(OTHER_2_1))


def test_the_topics_of_one_table_agree_on_its_columns() -> None:
    """Else the records of one of them would have no column, or that of another field."""
    registry = EmbeddedRegistry()
    registry.register(_subject("one"), trade_2_1())
    with pytest.raises(IncompatibleSchema, match="'block_id' is null or long, and null or string there"):
        registry.register(_subject("other"), OTHER_2_1)
    with pytest.raises(IncompatibleSchema, match="'auction' has the field-id 40 of 'block_id' there"):
        registry.register(_subject("other"), trade_2_1(name="auction"))
    with pytest.raises(IncompatibleSchema, match="'block_id' has the field-id 41, and 40 there"):
        registry.register(_subject("other"), trade_2_1(**{"field-id": 41}))
    assert registry.register(_subject("other"), TRADE) == schema_id(TRADE), "it need not have them all"
    assert registry.register(_subject("other"), trade_2_1(doc="In other words.")), "and the same is the same"
    assert registry.register("somebody.elses-value", OTHER_2_1), "which is of no table of ours"


# --- at a broker ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaSettings]:
    with EmbeddedBroker() as broker:
        yield KafkaSettings(bootstrap_servers=broker.bootstrap_servers)


def _subject(name: str) -> str:
    return f"market.crypto.trades.{name}-value"


def test_what_one_process_registers_all_know(kafka: KafkaSettings) -> None:
    one, other = open_registry(kafka), open_registry(kafka)
    number = one.register(_subject("one"), trade_2_1())
    assert other.schema_text(number) == trade_2_1()
    assert other.register(_subject("one"), TRADE) == schema_id(TRADE), "an older producer goes on"
    with pytest.raises(IncompatibleSchema, match="'block_id'"):
        open_registry(kafka).register(_subject("one"), OTHER_2_1)
    with pytest.raises(IncompatibleSchema, match=rf"does not go with that of {_subject('one')}"):
        open_registry(kafka).register(_subject("other"), OTHER_2_1)


def test_of_two_that_do_not_go_together_all_take_the_first(kafka: KafkaSettings) -> None:
    subject = _subject("race")
    early, late = KafkaRegistry(kafka), KafkaRegistry(kafka)
    late.register(_subject("race_before"), TRADE)
    write = late._write

    def write_after_the_other(schema_texts: object) -> None:
        early.register(subject, trade_2_1())
        write(schema_texts)  # type: ignore[arg-type]

    late._write = write_after_the_other  # type: ignore[method-assign, assignment]
    with pytest.raises(IncompatibleSchema, match="'block_id'"):
        late.register(subject, OTHER_2_1)
    with pytest.raises(UnknownSchema):
        KafkaRegistry(kafka).schema_text(schema_id(OTHER_2_1) ^ 1)
    with pytest.raises(IncompatibleSchema):
        KafkaRegistry(kafka).register(subject, OTHER_2_1)


def test_a_record_that_is_no_schema_counts_for_nobody(kafka: KafkaSettings) -> None:
    KafkaRegistry(kafka).register(_subject("noise"), TRADE)
    noise = [b"", b"{}", b"[]", b'{"subject": "s", "schema": "{"}', b'{"subject": "s", "schema": "7"}', None, b"\xff"]
    produce(kafka, SCHEMAS_TOPIC, noise)
    assert KafkaRegistry(kafka).register(_subject("noise"), changed(TRADE, "price", doc="Other words."))
    with pytest.raises(UnknownSchema, match="schema id 7"):
        KafkaRegistry(kafka).schema_text(7)


def test_a_schema_that_was_not_there_is_looked_for_again_with_later_messages(kafka: KafkaSettings) -> None:
    """Were its absence kept in mind, a sink that runs would refuse what a server that starts accepts."""
    KafkaRegistry(kafka).register(_subject("before"), TRADE)
    text = trade_2_1(doc="Of the one that comes late.")
    number = schema_id(text)
    clock = ManualClock()
    registry = KafkaRegistry(kafka, clock=clock)
    with pytest.raises(UnknownSchema):
        registry.schema_text(number, as_of_s=clock.monotonic_s())
    KafkaRegistry(kafka).register(_subject("late"), text)
    with pytest.raises(UnknownSchema):
        registry.schema_text(number, as_of_s=clock.monotonic_s())
    clock.advance(0.001)
    assert registry.schema_text(number, as_of_s=clock.monotonic_s()) == text


def test_one_look_is_enough_for_all_that_was_read_before_it(
    kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[KafkaLog] = []

    def look(settings: KafkaSettings) -> KafkaLog:
        looks.append(KafkaLog(settings))
        return looks[-1]

    monkeypatch.setattr("common.registry.KafkaLog", look)
    clock = ManualClock()
    registry = KafkaRegistry(kafka, clock=clock)
    for number in range(1, 50):
        with pytest.raises(UnknownSchema):
            registry.schema_text(number, as_of_s=clock.monotonic_s())
    assert len(looks) == 1
    clock.advance(5.0)
    with pytest.raises(UnknownSchema):
        registry.schema_text(7, as_of_s=clock.monotonic_s() - 5.0)
    assert len(looks) == 1
    with pytest.raises(UnknownSchema):
        registry.schema_text(7)
    assert len(looks) == 2


def test_those_who_refused_an_id_and_those_who_did_not_accept_it_once_it_is_registered(kafka: KafkaSettings) -> None:
    topic = TRADES.topic(asset_class="crypto", exchange="early")
    text = trade_2_1(doc="Written with before it was registered.")
    record = Encoder(TRADES, EmbeddedRegistry(), topic=topic, schema_text=text).encode(trade(1))
    batch = ConsumerBatch(topic, "c", "t", [0], [0], [record])
    sink, tail = (Decoder(TRADES, KafkaRegistry(kafka)) for _ in range(2))
    assert f"schema id {schema_id(text)}" in sink.decode(batch).errors[0].reason
    KafkaRegistry(kafka).register(f"{topic}-value", text)
    for decoder in (sink, tail):
        decoded = decoder.decode(batch)
        assert (decoded.record_batch.num_rows, decoded.errors) == (1, [])


def test_a_broker_that_is_away_is_a_broker_error() -> None:
    away = KafkaSettings(bootstrap_servers="127.0.0.1:1", request_timeout_ms=300)
    assert KafkaRegistry(away).schema_text(schema_id(TRADE)) == TRADE
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1"):
        KafkaRegistry(away).schema_text(7)


# --- Confluent's ------------------------------------------------------------------------------------------------------


@pytest.fixture
def url() -> Iterator[str]:
    with schema_registry() as url:
        yield url


def test_confluents_registry_registers_and_gives_back(url: str) -> None:
    registry = open_registry(KafkaSettings(schema_registry_url=url))
    number = registry.register("t-value", avro_schema_text("quote"))
    assert json.loads(ConfluentRegistry(url).schema_text(number)) == json.loads(avro_schema_text("quote"))


def test_confluents_registry_is_asked_for_all_versions_before_another_is_registered(url: str) -> None:
    registry = ConfluentRegistry(url)
    assert registry.register_all({SUBJECT: TRADE}) == {SUBJECT: 1}
    assert registry.register(SUBJECT, trade_2_1()) == 2
    assert ConfluentRegistry(url).register(SUBJECT, TRADE) == 1, "an older producer goes on"
    with pytest.raises(IncompatibleSchema, match=r"its version 2: the field 'block_id' is null or long"):
        ConfluentRegistry(url).register(SUBJECT, OTHER_2_1)
    with pytest.raises(UnknownSchema):
        ConfluentRegistry(url).schema_text(3)


def test_confluents_registry_is_asked_for_the_topics_of_the_same_table(url: str) -> None:
    ConfluentRegistry(url).register_all({SUBJECT: trade_2_1(), "somebody.elses-value": OTHER_2_1})
    with pytest.raises(IncompatibleSchema, match=f"does not go with that of {SUBJECT}"):
        ConfluentRegistry(url).register(_subject("other"), OTHER_2_1)
    assert ConfluentRegistry(url).register(_subject("other"), TRADE)


def test_a_refusal_of_confluents_registry_itself_is_said() -> None:
    with (
        schema_registry(refuses={SUBJECT}) as url,
        pytest.raises(IncompatibleSchema, match=f"{url} refuses the schema of {SUBJECT}"),
    ):
        ConfluentRegistry(url).register(SUBJECT, TRADE)


def test_confluents_unknown_id_is_said(url: str) -> None:
    with pytest.raises(UnknownSchema, match="schema id 99"):
        open_registry(KafkaSettings(schema_registry_url=url)).schema_text(99)


def test_a_registry_that_is_away_is_a_broker_error() -> None:
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1"):
        ConfluentRegistry("http://127.0.0.1:1").schema_text(1)
