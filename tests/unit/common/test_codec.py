"""The codec against fastavro, the oracle; and that no message, whatever its bytes, touches its neighbours."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.avro_writer import zigzag
from common.codec import HEADER_BYTES, Decoder, Encoder
from common.datasets import DATASETS, INSTRUMENTS, QUOTES, TRADES, Dataset
from common.errors import EncodeError
from common.log import ConsumerBatch, joined
from common.registry import EmbeddedRegistry
from common.schemas.arrow import avro_schema, avro_schema_text
from tests.support.records import trade

REGISTRY = EmbeddedRegistry()
ENCODERS = {name: Encoder(dataset, REGISTRY, topic=f"t.{name}") for name, dataset in DATASETS.items()}
DECODERS = {name: Decoder(dataset, REGISTRY) for name, dataset in DATASETS.items()}
PARSED = {name: fastavro.parse_schema(json.loads(avro_schema_text(d.schema_name))) for name, d in DATASETS.items()}

_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
_INSTANT = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999_999), timezones=st.just(UTC))
_LONG = st.integers(-(2**63), 2**63 - 1)


def _value(avro_type: Any) -> st.SearchStrategy[Any]:
    if isinstance(avro_type, list):
        return st.one_of(*(_value(branch) for branch in avro_type))
    if isinstance(avro_type, str):
        return {"null": st.none(), "string": _TEXT, "long": _LONG}[avro_type]
    if avro_type.get("logicalType") == "decimal":
        bound = 10 ** avro_type["precision"] - 1
        return st.integers(-bound, bound).map(lambda unscaled: Decimal(unscaled).scaleb(-avro_type["scale"]))
    if avro_type.get("logicalType") == "timestamp-micros":
        return _INSTANT
    return {
        "enum": lambda: st.sampled_from(avro_type["symbols"]),
        "array": lambda: st.lists(_value(avro_type["items"]), max_size=3),
        "map": lambda: st.dictionaries(_TEXT, _value(avro_type["values"]), max_size=3),
    }[avro_type["type"]]()


def records(dataset: Dataset) -> st.SearchStrategy[dict[str, Any]]:
    fields = avro_schema(dataset.schema_name)["fields"]
    return st.fixed_dictionaries({field["name"]: _value(field["type"]) for field in fields})


def batch(values: list[bytes | None], topic: str = "market.crypto.trades.binance") -> ConsumerBatch:
    return ConsumerBatch(
        topic, "cluster", "a-topic-id-12345678", [3] * len(values), list(range(100, 100 + len(values))), values
    )


def oracle(dataset: Dataset, value: bytes) -> dict[str, Any]:
    record: Any = fastavro.schemaless_reader(io.BytesIO(value[HEADER_BYTES:]), PARSED[dataset.name], None)
    return {name: list(item.items()) if isinstance(item, dict) else item for name, item in record.items()}


@pytest.mark.parametrize("dataset", [TRADES, QUOTES, INSTRUMENTS], ids=lambda d: d.name)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_decodes_as_fastavro_does(dataset: Dataset, data: st.DataObject) -> None:
    wanted = data.draw(st.lists(records(dataset), min_size=1, max_size=6))
    values: list[bytes | None] = [ENCODERS[dataset.name].encode(record) for record in wanted]
    decoded = DECODERS[dataset.name].decode(batch(values))
    assert decoded.errors == []
    decoded.record_batch.validate(full=True)
    rows = decoded.record_batch.to_pylist()
    assert [row["_kafka_offset"] for row in rows] == list(range(100, 100 + len(values)))
    assert {(row["_kafka_topic"], row["_kafka_partition"]) for row in rows} == {("12345678", 3)}
    for row, value in zip(rows, values, strict=True):
        assert value is not None
        assert {name: row[name] for name in row if not name.startswith("_kafka")} == oracle(dataset, value)


def _broken(value: bytes) -> st.SearchStrategy[bytes | None]:
    return st.one_of(
        st.none(),
        st.just(b""),
        st.integers(1, len(value) - 1).map(lambda cut: value[:cut]),
        st.binary(min_size=1, max_size=40).map(lambda more: value + more),
        st.just(value + b"\x00"),
        st.tuples(st.integers(0, len(value) - 1), st.integers(1, 255)).map(
            lambda flip: value[: flip[0]] + bytes([value[flip[0]] ^ flip[1]]) + value[flip[0] + 1 :]
        ),
        st.binary(max_size=60).map(lambda body: value[:HEADER_BYTES] + body),
        st.binary(max_size=60),
    )


@given(data=st.data(), count=st.integers(1, 12))
@settings(max_examples=400, deadline=None)
def test_a_broken_message_never_touches_its_neighbours(data: st.DataObject, count: int) -> None:
    """Whatever the bytes: each message comes out as it does alone, as one row or as one error at its own position."""
    good = [ENCODERS["trades"].encode(trade(n)) for n in range(count)]
    values: list[bytes | None] = list(good)
    for index in data.draw(st.sets(st.integers(0, count - 1), min_size=1)):
        values[index] = data.draw(_broken(good[index]))
    together = DECODERS["trades"].decode(batch(values))
    assert together.record_batch.num_rows + len(together.errors) == count
    rows = {row["_kafka_offset"]: row for row in together.record_batch.to_pylist()}
    errors = {error.offset: error for error in together.errors}
    for index, value in enumerate(values):
        alone = DECODERS["trades"].decode(batch([value]))
        if alone.errors:
            assert errors[100 + index].reason == alone.errors[0].reason
            assert errors[100 + index].topic == "market.crypto.trades.binance"
        else:
            assert rows[100 + index] | {"_kafka_offset": 100} == alone.record_batch.to_pylist()[0]
        if value == good[index]:
            assert 100 + index in rows


@given(value=st.binary(max_size=120))
@settings(max_examples=300, deadline=None)
def test_what_decodes_is_what_fastavro_says(value: bytes) -> None:
    header = ENCODERS["trades"].encode(trade(1))[:HEADER_BYTES]
    decoded = DECODERS["trades"].decode(batch([header + value]))
    for row in decoded.record_batch.to_pylist():
        assert {name: row[name] for name in row if not name.startswith("_kafka")} == oracle(TRADES, header + value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no value"),
        (b"", "magic byte"),
        (b"\x01\x00\x00\x00\x01", "magic byte"),
        (b"\x00\x00\x00\x00\x07abc", "schema id 7"),
        (ENCODERS["trades"].encode(trade(1)) + b"\x00", "1 bytes are left over"),
        (ENCODERS["trades"].encode(trade(1))[:-1], "cannot be decoded"),
        (ENCODERS["quotes"].encode({**{f["name"]: None for f in avro_schema("quote")["fields"]},
            "message_id": "m", "exchange": "x", "symbol": "S", "quote_id": 1, "asset_class": "crypto",
            "receive_time": 0, "currency": "USDT", "source": "stream"}), "cannot fill the table"),
    ],
)  # fmt: skip
def test_the_reason_says_what_is_wrong(value: bytes | None, reason: str) -> None:
    good = ENCODERS["trades"].encode(trade(1))
    decoded = DECODERS["trades"].decode(batch([good, value, good]))
    (error,) = decoded.errors
    assert reason in error.reason
    assert (error.partition, error.offset) == (3, 101)
    assert decoded.record_batch.column("_kafka_offset").to_pylist() == [100, 102]


def test_a_decimal_beyond_its_precision_is_a_record_error() -> None:
    """Avro bytes can hold any integer; a column cannot."""
    one = {"type": "record", "name": "Trade", "fields": [dict(f) for f in avro_schema("trade")["fields"]]}
    for field in one["fields"]:
        if field["name"] == "price":
            field["type"] = {"type": "bytes", "logicalType": "decimal", "precision": 36, "scale": 8}
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(one), trade(1) | {"price": Decimal("1e20")})
    good = ENCODERS["trades"].encode(trade(1))
    decoded = DECODERS["trades"].decode(batch([good, good[:HEADER_BYTES] + body.getvalue(), good]))
    assert [error.offset for error in decoded.errors] == [101]
    assert decoded.record_batch.num_rows == 2


def test_the_largest_price_and_quantity_fit() -> None:
    record = trade(1) | {"price": Decimal("1000000000.00000001"), "quantity": Decimal("1000000000000000.00000001")}
    decoded = DECODERS["trades"].decode(batch([ENCODERS["trades"].encode(record)]))
    row = decoded.record_batch.to_pylist()[0]
    assert (row["price"], row["quantity"]) == (record["price"], record["quantity"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"price": Decimal("1e10")}, "'price'"),
        ({"price": "abc"}, "'price'"),
        ({"trade_id": "x"}, "'trade_id'"),
        ({"side": "UP"}, "'side'"),
        ({"color": 1}, "'color'"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(EncodeError, match=words):
        ENCODERS["trades"].encode(trade(1) | changes)


def _odd(value: Any) -> Any:
    """Instants as ingest gives them, in microseconds."""
    return round(value.timestamp() * 1_000_000) if isinstance(value, datetime) else value


_ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), _TEXT, st.binary(max_size=5), st.just([]),
    st.lists(_TEXT, max_size=2), st.dictionaries(_TEXT, _TEXT, max_size=1), st.decimals(), _INSTANT,
)  # fmt: skip


def _told(encode: Any, record: dict[str, Any]) -> bytes | str:
    try:
        encoded: bytes = encode(record)
    except EncodeError as error:
        return str(error)
    return encoded


@pytest.mark.parametrize("dataset", [TRADES, QUOTES, INSTRUMENTS], ids=lambda d: d.name)
@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_the_compiled_writer_is_fastavro_byte_for_byte(dataset: Dataset, data: st.DataObject) -> None:
    """Whatever the record: the same bytes, or the same refusal. Fields are changed, left out and added on purpose."""
    encoder = ENCODERS[dataset.name]
    record = {name: _odd(value) for name, value in data.draw(records(dataset)).items()}
    for name in data.draw(st.lists(st.sampled_from([*record, "color"]), max_size=2)):
        value = data.draw(st.just(...) | _ANYTHING)
        if value is ...:
            record.pop(name, None)
        else:
            record[name] = value
    assert _told(encoder.encode, record) == _told(encoder.encode_by_fastavro, record)


@given(
    st.integers(-(2**63), 2**63 - 1)
    | st.sampled_from([s * (1 << n) + d for n in range(63) for s in (1, -1) for d in (-1, 0, 1)])
)
def test_a_long_is_written_as_fastavro_writes_it(number: int) -> None:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, {"type": "long"}, number)
    assert zigzag(number) == out.getvalue()


def test_a_missing_field_is_named() -> None:
    record = trade(1)
    del record["symbol"]
    with pytest.raises(EncodeError, match="'symbol' is missing"):
        ENCODERS["trades"].encode(record)


def test_an_older_writer_fills_what_it_has() -> None:
    """A writer's schema without an optional field: the column is null."""
    older = json.loads(avro_schema_text("trade"))
    older["fields"] = [field for field in older["fields"] if field["name"] != "vendor_data"]
    schema_id = REGISTRY.register("older", json.dumps(older))
    body = io.BytesIO()
    record = {name: value for name, value in trade(1).items() if name != "vendor_data"}
    fastavro.schemaless_writer(body, fastavro.parse_schema(older), record)
    values: list[bytes | None] = [
        ENCODERS["trades"].encode(trade(2)),
        b"\x00" + schema_id.to_bytes(4, "big") + body.getvalue(),
        ENCODERS["trades"].encode(trade(3)),
    ]
    decoded = DECODERS["trades"].decode(batch(values))
    assert decoded.errors == []
    assert decoded.record_batch.column("trade_id").to_pylist() == [2, 1, 3]
    assert isinstance(decoded.record_batch, pa.RecordBatch)


def test_batches_of_a_topic_are_joined_in_their_order() -> None:
    def of(topic: str, offsets: list[int]) -> ConsumerBatch:
        return ConsumerBatch(topic, "c", f"id-{topic}", [0] * len(offsets), offsets, [b"%d" % one for one in offsets])

    assert joined([]) == []
    assert joined([of("a", [1, 2]), of("b", [7]), of("a", [3])]) == [of("a", [1, 2, 3]), of("b", [7])]
