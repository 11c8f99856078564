"""The engine on the sealed database: schemas promised and kept, one cut per result, every path gives back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import psutil
import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry

from common.clock import ManualClock
from common.errors import (
    InvalidStatement,
    K2Error,
    LimitExceeded,
    PermissionDenied,
    SettingsError,
    StatementCancelled,
    StatementTimeout,
    TableNotFound,
    TailGap,
    Unavailable,
    Unsupported,
)
from common.settings import FlightSettings
from flight_server.engine.engine import Engine
from flight_server.engine.read_ahead import ReadAhead
from flight_server.engine.requests import Request
from flight_server.engine.running import RunningStatement
from tests.support.fake_lake import FakeLake, trades

ROWS = 1_000


class Started:
    """An engine on a lake, with the clock and the metrics that it was given."""

    def __init__(self, settings: FlightSettings | None = None) -> None:
        settings = settings or FlightSettings()
        self.lake = FakeLake(ROWS, settings)
        self.clock = ManualClock()
        self.registry = CollectorRegistry()
        self.engine = Engine(self.lake, settings, clock=self.clock, registry=self.registry)
        self.engine.start()

    def stop(self) -> None:
        self.engine.stop()
        self.lake.close()

    def ended(self, kind: str, status: str) -> float:
        return self.registry.get_sample_value("k2_statements_total", {"kind": kind, "status": status}) or 0.0


@pytest.fixture(scope="module")
def shared() -> Iterator[Started]:
    started = Started()
    yield started
    started.stop()


@pytest.fixture
def own() -> Iterator[Started]:
    started = Started()
    yield started
    started.stop()


def table(engine: Engine, sql: str, parameters: pa.RecordBatch | None = None) -> pa.Table:
    running = engine.execute(Request(sql, parameters))
    return pa.Table.from_batches(list(ReadAhead(running)), running.schema)


SAME_SCHEMA = [
    "select 1",
    'select 1 a, 2 a, 3 as "A"',
    "select count(*), count(*) from market.trades",
    "select * from market.trades",
    "select * from market.trades a join market.trades b using (trade_id)",
    "select null n, [null] l, {'a': null} s",
    "select interval 1 day i, '1'::bit b, uuid() u, time '12:00' t, 1::hugeint h, 1::uhugeint uh",
    "select {'a': 1, 'b c': [1]} s, map {'k': 1} m, [1]::int[1] a, union_value(k := 1) un, 12345::bignum bn",
    "select 'x'::enum('x', 'y') e, ['x'::enum('x', 'y')] l, {'a': 'x'::enum('x', 'y')} s",
    "select now() tz, now()::timestamp ts, timestamp_ns '2020-01-01' ns, date '2020-01-01' d",
    "select timestamp_s '2020-01-01' s, timestamp_ms '2020-01-01' ms, time_ns '12:00' tn, timetz '12:00:00+00' tt",
    "select 1.5 d, 1::decimal(38, 10) w, 1::tinyint t, 1::ubigint u, 1::float f, 'a'::blob b, '{}'::json j",
    "describe market.trades",
    "summarize market.trades",
    "show tables",
    "show all tables",
    "explain select * from market.trades",
    "explain analyze select count(*) from market.trades",
    "values (1, 'a')",
    "from market.trades select symbol, price limit 3",
    "pivot market.trades on side in ('BUY', 'SELL') using sum(quantity) group by symbol",
    "unpivot (select 1 a, 2 b) on a, b",
    "pragma version",
    "select symbol, sum(price * quantity::decimal(18, 8)::double) from market.trades group by all order by all -- end",
    "select * from information_schema.tables",
]


@pytest.mark.parametrize("sql", SAME_SCHEMA)
def test_what_is_promised_is_what_comes(shared: Started, sql: str) -> None:
    promised = shared.engine.plans.describe(sql).result_schema
    running = shared.engine.execute(Request(sql))
    assert running.schema.equals(promised, check_metadata=True)
    for batch in ReadAhead(running):
        assert batch.schema.equals(promised)
    assert not any(pa.types.is_dictionary(kind) for kind in promised.types)


def test_values_survive_enum_and_order(shared: Started) -> None:
    rows = table(
        shared.engine, "select e::enum('b', 'a') e from (values ('a'), ('b'), (null)) t(e) order by e"
    ).to_pylist()
    assert [row["e"] for row in rows] == ["b", "a", None]


REFUSED = [
    ("select nope from market.trades", InvalidStatement, "LINE 1: select nope from market.trades\n               ^"),
    ("select *\nfrom market.nope", TableNotFound, "LINE 2: from market.nope\n             ^"),
    ("select * from nowhere.trades", TableNotFound, "nowhere"),
    ("select * from tail.trades", TableNotFound, "tail"),
    ("select nope(1)", InvalidStatement, "nope"),
    ("select 1::nope", InvalidStatement, "nope"),
    ("select 'a'::int", InvalidStatement, "Conversion Error"),
    ("select (10^17)::decimal(18, 0) * 100::decimal(18, 0)", InvalidStatement, "Overflow"),
    ("select * from 'data.csv'", PermissionDenied, "data.csv"),
    ('select * from "/etc/passwd.csv"', PermissionDenied, "passwd"),
    ("from '/etc/*.parquet'", PermissionDenied, "parquet"),
    ("select ?", InvalidStatement, "takes 1 parameter and none was bound"),
]


@pytest.mark.parametrize(("sql", "kind", "says"), REFUSED)
def test_errors_have_the_engines_words_and_position(shared: Started, sql: str, kind: type[K2Error], says: str) -> None:
    with pytest.raises(kind) as caught:
        table(shared.engine, sql)
    assert says in caught.value.message
    assert shared.engine.open_statements == 0


def test_an_error_in_the_middle_of_a_result(own: Started) -> None:
    running = own.engine.execute(
        Request("select case when range > 2000000 then 'x' else '1' end::int v from range(3000000)")
    )
    seen = 0
    with pytest.raises(InvalidStatement, match="Could not convert string 'x'"):
        for batch in ReadAhead(running):
            seen += batch.num_rows
    assert seen > 0 and running.ended and own.engine.open_statements == 0
    assert own.ended("query", "InvalidStatement") == 1


class LosesErrors:
    """A real cursor, but the first stream that fails says `interrupted`, as the engine's own race makes it say."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection) -> None:
        self._cursor = cursor
        self.lost = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._cursor, name)

    def execute(self, *args: Any) -> LosesErrors:
        self._cursor.execute(*args)
        return self

    def to_arrow_reader(self, rows: int) -> pa.RecordBatchReader:
        reader = self._cursor.to_arrow_reader(rows)
        return pa.RecordBatchReader.from_batches(reader.schema, self._batches(reader))

    def _batches(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        try:
            yield from reader
        except OSError:
            if self.lost:
                raise
            self.lost += 1
            raise OSError("INTERRUPT Error: Interrupted!") from None


@pytest.mark.parametrize(
    "source", ["range(3000000) r", "range(3000) r, market.trades t, market.trades u limit 2500000"]
)
def test_an_error_that_the_engine_lost_is_found_again(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Without tables and with them, that is, outside and inside a transaction."""
    started = Started()
    try:
        losing: list[LosesErrors] = []

        def cursor() -> Any:
            losing.append(LosesErrors(started.lake._database.cursor()))
            return losing[-1]

        monkeypatch.setattr(started.lake, "cursor", cursor)
        engine = Engine(started.lake, FlightSettings(), clock=started.clock, registry=CollectorRegistry())
        engine.start()
        failing = "case when row_number() over () >= 2000000 then 'x' else '1' end::int"
        with pytest.raises(InvalidStatement, match="Could not convert string 'x'"):
            list(ReadAhead(engine.execute(Request(f"select {failing} v from {source}"))))
        assert sum(one.lost for one in losing) == 1
        assert engine.open_statements == 0
        engine.stop()
    finally:
        started.stop()


def test_too_much_memory_is_a_limit() -> None:
    small = Started(FlightSettings(memory_bytes_max=64 * 2**20))
    try:
        with pytest.raises(LimitExceeded, match="K2_FLIGHT_MEMORY_BYTES_MAX"):
            table(small.engine, "select list(range) from range(100000000)")
        assert table(small.engine, "select 42 as a").to_pylist() == [{"a": 42}]
    finally:
        small.stop()


def test_a_result_does_not_take_memory_with_its_size(shared: Started) -> None:
    """Streamed 400 MB, held at most two batches and the engine's buffer."""
    process = psutil.Process()
    list(ReadAhead(shared.engine.execute(Request("select range a, range * 2 b from range(1000000)"))))
    before = process.memory_info().rss
    largest = 0
    size = 0
    for batch in ReadAhead(shared.engine.execute(Request("select range a, range * 2 b from range(25000000)"))):
        size += batch.nbytes
        largest = max(largest, process.memory_info().rss)
    assert size > 400_000_000
    assert largest - before < size / 4


# -- the cut


def test_a_result_is_of_one_cut_whatever_is_published(own: Started) -> None:
    for round_number in range(1, 6):
        running = own.engine.execute(Request("select count(*) n, min(trade_id) a, max(trade_id) b from market.trades"))
        own.lake.publish(trades(range(ROWS * round_number, ROWS * (round_number + 1))))
        row = pa.Table.from_batches(list(running)).to_pylist()[0]
        assert running.cut == f"generation {round_number}"
        assert row == {"n": ROWS * round_number, "a": 0, "b": ROWS * round_number - 1}


def test_a_long_stream_keeps_its_cut(own: Started) -> None:
    running = own.engine.execute(Request("select a.trade_id from market.trades a, range(500)"))
    stream = iter(running)
    count = next(stream).num_rows
    own.lake.publish(trades(range(ROWS, 2 * ROWS)))
    assert count + sum(batch.num_rows for batch in stream) == ROWS * 500


def test_statements_without_tables_need_no_lake(own: Started) -> None:
    own.lake.gap = TailGap("the tail does not reach back")
    running = own.engine.execute(Request("select 1 as a"))
    assert running.cut is None and len(list(running)) == 1
    with pytest.raises(TailGap):
        own.engine.execute(Request("select count(*) from market.trades"))
    assert own.engine.open_statements == 0


# -- ends


def endless(engine: Engine) -> RunningStatement:
    return engine.execute(Request("select a.range from range(1000000) a, range(1000000) b, market.trades t"))


def cursor_is_clean(engine: Engine) -> None:
    """The next statement gets a cursor without an open transaction: BEGIN inside one would fail."""
    assert table(engine, "select count(*) as n from market.trades").num_rows == 1
    assert engine.open_statements == 0


def test_closing_early(own: Started) -> None:
    running = endless(own.engine)
    assert running.read() is not None
    running.close()
    running.close()
    assert running.ended
    cursor_is_clean(own.engine)
    assert own.ended("query", "cancelled") == 1


def test_dropping_the_iterator(own: Started) -> None:
    running = endless(own.engine)
    stream = iter(ReadAhead(running))
    next(stream)
    next(stream)
    del stream
    assert running.ended
    cursor_is_clean(own.engine)


def test_cancel_reaches_a_blocked_reader(own: Started) -> None:
    """The reader is inside the engine, in a query that would take hours."""
    outcome: list[BaseException] = []
    begun = threading.Event()

    def run() -> None:
        begun.set()
        try:
            own.engine.execute(
                Request("select sum(a.range * b.range) from range(10000000) a, range(10000000) b, market.trades")
            )
        except StatementCancelled as error:
            outcome.append(error)

    reader = threading.Thread(target=run)
    reader.start()
    begun.wait()
    while reader.is_alive():
        own.engine.cancel_all(StatementCancelled("told to"))
        reader.join(0.01)
    assert str(outcome[0]) == "told to"
    cursor_is_clean(own.engine)


def test_a_late_statement_is_ended_even_when_nobody_reads(own: Started) -> None:
    running = endless(own.engine)
    own.clock.advance(299)
    own.engine.expire()
    assert not running.ended
    own.clock.advance(2)
    own.engine.expire()
    assert running.ended
    with pytest.raises(StatementTimeout, match="300 s"):
        running.read()
    cursor_is_clean(own.engine)
    assert own.ended("query", "StatementTimeout") == 1


def test_a_statement_that_nobody_waits_for_is_ended(own: Started) -> None:
    asked = threading.Event()

    def gone() -> bool:
        asked.set()
        return True

    with pytest.raises(StatementCancelled):
        own.engine.execute(
            Request("select sum(a.range * b.range) from range(10000000) a, range(10000000) b"), is_abandoned=gone
        )
    assert asked.is_set()
    cursor_is_clean(own.engine)


def test_draining_refuses_and_stopping_ends(own: Started) -> None:
    running = endless(own.engine)
    own.engine.drain(Unavailable("the server is stopping"))
    assert running.read() is not None
    with pytest.raises(Unavailable, match="stopping"):
        own.engine.execute(Request("select 1"))
    own.engine.stop()
    assert running.ended
    with pytest.raises(Unavailable):
        running.read()


def test_a_database_that_is_not_sealed_is_not_served() -> None:
    class Open(FakeLake):
        def cursor(self) -> duckdb.DuckDBPyConnection:
            return duckdb.connect(":memory:")

    lake = Open()
    engine = Engine(lake, FlightSettings(), clock=ManualClock(), registry=CollectorRegistry())
    with pytest.raises(SettingsError, match="cannot be served"):
        engine.start()
    lake.close()


# -- parameters

INSTANT = datetime(2024, 8, 9, 12, 30, 0, 123456, tzinfo=UTC)
VALUES = {
    "i8": pa.array([-1], pa.int8()),
    "u64": pa.array([2**64 - 1], pa.uint64()),
    "f32": pa.array([1.5], pa.float32()),
    "f64": pa.array([float("inf")]),
    "dec": pa.array([Decimal("-0.00000001")], pa.decimal128(18, 8)),
    "wide": pa.array([Decimal("1" * 30 + ".12345678")], pa.decimal128(38, 8)),
    "tz": pa.array([INSTANT], pa.timestamp("us", "Asia/Tokyo")),
    "naive": pa.array([INSTANT.replace(tzinfo=None)], pa.timestamp("us")),
    "ns": pa.array([1_704_110_400_123_456_789], pa.timestamp("ns")),
    "date": pa.array([date(2024, 8, 9)]),
    "time": pa.array([time(1, 2, 3, 4)]),
    "duration": pa.array([timedelta(days=1)], pa.duration("us")),
    "text": pa.array(["it's; \x00 ü"]),
    "large": pa.array(["x"], pa.large_string()),
    "bytes": pa.array([b"\x00\xff"]),
    "bool": pa.array([False]),
    "list": pa.array([[1, None]], pa.list_(pa.int64())),
    "dict": pa.array(["a"]).dictionary_encode(),
}


def test_parameters_keep_value_and_type(shared: Started) -> None:
    batch = pa.record_batch(VALUES)
    got = table(shared.engine, "select " + ", ".join("?" * len(VALUES)), batch)
    for (name, sent), column in zip(VALUES.items(), got.columns, strict=True):
        if name in ("tz", "duration"):
            continue
        plain = sent.dictionary_decode() if name == "dict" else sent
        assert column.combine_chunks().cast(plain.type) == plain, name
        assert pa.types.is_list(plain.type) or column.type in (plain.type, pa.string()), name
    instant = got.column(list(VALUES).index("tz"))
    assert instant.type == pa.timestamp("us", "UTC") and instant[0].as_py() == INSTANT


def test_nulls_of_every_type(shared: Started) -> None:
    batch = pa.record_batch({name: pa.nulls(1, values.type) for name, values in VALUES.items()})
    got = table(shared.engine, "select " + ", ".join("?" * len(VALUES)), batch)
    assert all(column.null_count == 1 for column in got.columns)


def test_several_rows_run_one_after_the_other_at_one_cut(shared: Started) -> None:
    batch = pa.record_batch({"1": ["BTCUSDT", "none", "BTCUSDT"], "2": [2, 5, 1]})
    sql = "select trade_id from market.trades where symbol = ? and trade_id < ? order by trade_id"
    assert table(shared.engine, sql, batch).column(0).to_pylist() == [0, 1, 0]
    assert table(shared.engine, sql, batch.slice(0, 0)).num_rows == 0


def test_a_null_among_values_takes_their_type(shared: Started) -> None:
    assert table(shared.engine, "select ? as a", pa.record_batch({"1": [2**40, None]})).column(0).to_pylist() == [
        2**40,
        None,
    ]
    with pytest.raises(InvalidStatement, match="cast the parameters"):
        table(shared.engine, "select ? as a", pa.record_batch({"1": ["x", None]}).slice(0, 2).take(pa.array([1, 0])))


def test_named_parameters_are_bound_by_name_or_by_place(shared: Started) -> None:
    sql = "select $to - $from as width"
    assert table(shared.engine, sql, pa.record_batch({"from": [1], "to": [5]})).to_pylist() == [{"width": 4}]
    assert table(shared.engine, sql, pa.record_batch({"0": [5], "1": [1]})).to_pylist() == [{"width": 4}]


@pytest.mark.parametrize(
    ("sql", "columns", "says"),
    [
        ("select ?", 2, "takes 1 parameter and 2 were bound"),
        ("select ?, ?", 1, "takes 2 parameters and 1 was bound"),
        ("select 1", 1, "takes 0 parameters and 1 was bound"),
    ],
)
def test_a_wrong_number_of_parameters(shared: Started, sql: str, columns: int, says: str) -> None:
    with pytest.raises(InvalidStatement, match=says):
        table(shared.engine, sql, pa.record_batch({str(number): [1] for number in range(columns)}))


@pytest.mark.parametrize(
    ("sql", "types"),
    [
        ("select 1", []),
        (
            "select * from market.trades where price > ? and symbol = ? and event_time < ?",
            ["decimal128(18, 8)", "string", "timestamp[ms, tz=UTC]"],
        ),
        ("select ?::time, ?::timestamp_ns", ["time32[ms]", "timestamp[ms]"]),
        ("select ?::date, trade_id from market.trades limit ?", ["date32[day]", "int64"]),
        ("select ?", ["null"]),
        ("explain select * from market.trades where trade_id in (?, ?)", ["int64", "int64"]),
    ],
)
def test_types_of_parameters_are_found(shared: Started, sql: str, types: list[str]) -> None:
    assert [str(kind) for kind in shared.engine.plans.describe(sql).parameter_schema.types] == types


@pytest.mark.parametrize(
    ("sql", "says"),
    [("select row(1, 'x') as r", "STRUCT"), ("select 42::variant as v", "VARIANT has no form in Arrow")],
)
def test_a_type_without_a_form_in_arrow_is_refused_by_name(shared: Started, sql: str, says: str) -> None:
    with pytest.raises(Unsupported, match=says):
        table(shared.engine, sql)


def test_a_number_too_large_for_arrow_is_refused_and_not_made_negative(shared: Started) -> None:
    least, most = 2**127, 2**127 - 1
    assert table(shared.engine, f"select {most}::uhugeint as u").to_pydict() == {"u": [most]}
    with pytest.raises(InvalidStatement, match="'u' has a UHUGEINT above"):
        table(shared.engine, f"select unnest([null, '1', '{least}'])::uhugeint as u")


def test_columns_tell_what_their_arrow_type_does_not(shared: Started) -> None:
    schema = shared.engine.plans.describe(
        "select price, 1::hugeint as h, uuid() as u, 'x' as s from market.trades"
    ).result_schema
    prefix = b"ARROW:FLIGHT:SQL:"
    assert [field.metadata for field in schema] == [
        {prefix + b"PRECISION": b"18", prefix + b"SCALE": b"8"},
        {prefix + b"PRECISION": b"38", prefix + b"SCALE": b"0", prefix + b"TYPE_NAME": b"HUGEINT"},
        {prefix + b"TYPE_NAME": b"UUID"},
        None,
    ]


def test_an_instant_beyond_all_years_is_refused(shared: Started) -> None:
    with pytest.raises(InvalidStatement, match="out of range"):
        table(shared.engine, "select ?", pa.record_batch({"0": pa.array([2**50], pa.timestamp("s"))}))


def test_metrics_count_what_went_out(own: Started) -> None:
    table(own.engine, "select * from range(1000)")
    assert own.registry.get_sample_value("k2_result_rows_total") == 1000
    assert own.registry.get_sample_value("k2_result_bytes_total") >= 8000
    assert own.registry.get_sample_value("k2_open_statements") == 0
    assert own.ended("query", "ok") == 1
