"""Market functions in the engine: found, checked, planned and run as a query by hand would be."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry

from common.clock import ManualClock
from common.errors import InvalidStatement, K2Error, SnapshotNotFound, Unsupported
from common.settings import FlightSettings
from flight_server.access.principal import Principal
from flight_server.engine.engine import Engine
from flight_server.engine.market.registry import FUNCTIONS
from flight_server.engine.read_ahead import ReadAhead
from flight_server.engine.requests import Request
from flight_server.engine.sessions import Caller
from flight_server.engine.writing import Writing
from flight_server.storage.macros import MACROS
from tests.support.fake_lake import BASE_US, FakeLake
from tests.support.records import quote, table_rows, trade

#: The made-up trades lie in the second behind it, one a millisecond.
BEGIN = datetime.fromtimestamp(BASE_US / 1_000_000, UTC)
OHLCV = f"ohlcv('BTCUSDT', '{BEGIN.isoformat()}', NULL, '100ms')"


class Started:
    def __init__(self) -> None:
        settings = FlightSettings()
        self.registry = CollectorRegistry()
        self.lake = FakeLake(1_000, settings)
        self.lake.publish(table_rows("quote", [quote(n) for n in range(3)]), "quotes")
        self.engine = Engine(self.lake, settings, clock=ManualClock(), registry=self.registry)
        self.engine.start()

    def ask(self, sql: str, parameters: pa.RecordBatch | None = None, caller: Caller | None = None) -> list[Any]:
        """The rows; what is promised must be what comes."""
        promised = self.engine.plans.result_schema(Request(sql, parameters), caller)
        running = self.engine.execute(Request(sql, parameters), caller)
        assert running.schema.equals(promised, check_metadata=True)
        rows: list[Any] = pa.Table.from_batches(list(ReadAhead(running)), running.schema).to_pylist()
        return rows

    def stop(self) -> None:
        self.engine.stop()
        self.lake.close()


@pytest.fixture(scope="module")
def started() -> Iterator[Started]:
    started = Started()
    yield started
    started.stop()


def test_a_call_is_a_relation_like_any_other(started: Started) -> None:
    rows = started.ask(
        f"SELECT b.bar_start, trade_count AS n FROM {OHLCV} b WHERE b.open > 105 ORDER BY 1 DESC LIMIT 2"
    )
    assert [row["n"] for row in rows] == [100, 100]
    joined = f"SELECT count(*) AS n FROM {OHLCV} JOIN k2.market.{OHLCV} x USING (bar_start) WHERE ohlcv.open = x.open"
    assert started.ask(joined) == [{"n": 10}]
    assert started.ask(f"WITH b AS (FROM market.{OHLCV}) SELECT sum(trade_count)::INT AS n FROM b") == [{"n": 1_000}]


def test_arguments_have_names_and_orders_of_their_own(started: Started) -> None:
    named = f"""ohlcv("interval" => '100ms', symbols := ['BTCUSDT'], "from" := TIMESTAMPTZ '{BEGIN.isoformat()}')"""
    assert started.ask(f"FROM {named}") == started.ask(f"FROM {OHLCV}")


@pytest.mark.parametrize(
    ("sql", "values"),
    [
        ("FROM ohlcv(?, ?, ?, ?)", ["BTCUSDT", BEGIN, None, "100ms"]),
        ("FROM ohlcv($4, $1, $2, every := $3)", [BEGIN, None, "100ms", "BTCUSDT"]),
        ("FROM ohlcv(every := $3::VARCHAR, symbol := [$4], from_time := $1::TIMESTAMPTZ + to_days($2))",
         [BEGIN.isoformat(), 0, "100ms", "BTCUSDT"]),
    ],
)  # fmt: skip
def test_arguments_may_be_parameters(started: Started, sql: str, values: list[Any]) -> None:
    columns = [pa.array([value]) for value in values]
    bound = pa.RecordBatch.from_arrays(columns, names=[str(n) for n in range(len(values))])
    assert started.ask(sql, bound) == started.ask(f"FROM {OHLCV}")
    described = started.engine.plans.describe(sql)
    assert len(described.parameter_schema) == 4
    assert described.result_schema == started.engine.plans.describe(f"FROM {OHLCV}").result_schema


def test_parameters_have_types_and_come_once(started: Started) -> None:
    sql = "FROM ohlcv(?, ?, NULL, ?)"
    assert [str(kind) for kind in started.engine.plans.describe(sql).parameter_schema.types] == [
        *("string", "timestamp[ms, tz=UTC]", "string"),
    ]
    twice = pa.RecordBatch.from_pydict({"1": ["BTCUSDT"] * 2, "2": [BEGIN] * 2, "3": ["1m"] * 2})
    with pytest.raises(Unsupported, match=r"^ohlcv takes one set of parameters at a time; run"):
        started.engine.execute(Request(sql, twice))


WRONG = [
    ("'BTCUSDX', every := '1m'", r"ohlcv: market.trades has no symbol 'BTCUSDX'; there are BTCUSDT"),
    ("'BTCUSDT'", r"ohlcv needs every, how long a bar is: .*; it is ohlcv\(symbol, from_time := NULL, "),
    ("", r"ohlcv needs symbol, a symbol, or a list of them; it is ohlcv\("),
    ("NULL, every := '1m'", r"symbol of ohlcv is NULL; write a symbol, or a list of them"),
    ("[], every := '1m'", r"symbol of ohlcv has no symbol in it; write one, or a list of them, as in "),
    ("'BTCUSDT', every := '0s'", r"every of ohlcv is '0s'; write one that is longer than nothing, as in '1m'"),
    ("'BTCUSDT', every := INTERVAL 0 DAY", r"every of ohlcv is '00:00:00'; write one that is longer"),
    ("'BTCUSDT', every := INTERVAL (-1) DAY", r"every of ohlcv is '-1 day'; write a number and a unit, as in '100ms'"),
    ("'BTCUSDT', every := '50ms'", r"every of ohlcv is '50ms'; the shortest is 100ms"),
    ("'BTCUSDT', every := '1M'", r"every of ohlcv is '1M'; write a number and a unit, as in '100ms', .* or '1 month'"),
    ("'BTCUSDT', '2024-01-02', '2024-01-01', '1m'", r"ohlcv is from a time to an earlier one; write the earlier"),
    ("'BTCUSDT', '2024-01-01 10:00', '2024-01-02T00:00Z', '1m'",
     r"from_time of ohlcv is '2024-01-01 10:00', a time without a zone; write its zone, as in '2024-08-09T10"),
    ("'BTCUSDT', TIMESTAMP '2024-01-01', NULL, '1m'", r"from_time of ohlcv is '2024-01-01 00:00:00', a time without a"),
    ("'BTCUSDT', 'yesterday', NULL, '1m'", r"from_time of ohlcv is 'yesterday'; write a time, as in '2024-08-09T10:"),
    ("'BTCUSDT', every := '1m', fill := 'zero'", r"fill of ohlcv is 'zero'; write one of 'none', 'null', 'previous', "),
    ("'BTCUSDT', every := '1m', fill := NULL", r"fill of ohlcv is NULL; write what stands for an interval without "),
    ("'BTCUSDT', every := '1m', calendar := 'NYSE'", r"calendar of ohlcv is 'NYSE'; write one of '24/7', 'ASX'"),
    ("'BTCUSDT', every := '36h', calendar := 'ASX'", r"ohlcv has intervals of 36h, and sessions of ASX; write less "),
    ("'BTCUSDT', every := '1m', colour := 1", r"ohlcv takes no further colour; it is ohlcv\(symbol, "),
    ("'BTCUSDT', every := '1m', symbols := 'A'", r"ohlcv takes no further symbols; it is ohlcv\("),
    ("symbol, every := '1m'", r"symbol of ohlcv, 'symbol', is no constant: Binder Error: Referenced column"),
    ("(SELECT 'A'), every := '1m'", r"symbol of ohlcv is to be a constant, and no subquery; write its value into"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "says"), WRONG)
def test_what_is_wrong_is_said_in_one_sentence(started: Started, arguments: str, says: str) -> None:
    with pytest.raises(InvalidStatement, match=f"^{says}") as raised:
        started.engine.plans.describe(f"SELECT * FROM ohlcv({arguments})")
    assert "\n" not in str(raised.value)


def test_an_error_behind_the_call_shows_no_text_that_was_never_sent(started: Started) -> None:
    with pytest.raises(InvalidStatement) as raised:
        started.engine.plans.describe(f"SELECT opne FROM {OHLCV}")
    first, second = str(raised.value).splitlines()
    assert first == 'Binder Error: Referenced column "opne" not found in FROM clause!'
    assert second.startswith("Candidate bindings: ") and '"open"' in second


class Scratch:
    """Somebody's session, and what it makes of its own."""

    def __init__(self, started: Started) -> None:
        self.caller = Caller("someone", "scratch", has_cookie=True)
        self._writing = Writing(started.engine, started.lake, timeout_s_max=60.0)

    def make(self, sql: str) -> None:
        self._writing.run(Request(sql), self.caller)


@pytest.fixture(scope="module")
def scratch(started: Started) -> Scratch:
    return Scratch(started)


def test_a_view_keeps_a_call_and_sees_what_arrives(started: Started, scratch: Scratch) -> None:
    started.lake.publish(table_rows("trade", [trade(5_000, symbol="LATE")]))
    scratch.make("CREATE VIEW candles(s, n) AS SELECT symbol, trade_count FROM ohlcv('LATE', every := '1d');")
    assert started.ask("FROM candles", caller=scratch.caller) == [{"s": "LATE", "n": 1}]
    started.lake.publish(table_rows("trade", [trade(5_001, symbol="LATE")]))
    assert started.ask("FROM candles", caller=scratch.caller) == [{"s": "LATE", "n": 2}]
    scratch.make("DROP VIEW candles")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("'BTCUSDT', now() - INTERVAL 1 HOUR, every := '1m'", "a view keeps ohlcv as it is when .* now would stay"),
        ("'BTCUSDT', every := '1m', as_of := '2024-08-09T00:00:00Z'", "a view is read at the cut of .* of its own"),
    ],
)  # fmt: skip
def test_what_a_view_cannot_keep_is_refused(scratch: Scratch, call: str, says: str) -> None:
    with pytest.raises(Unsupported, match=f"^{says}"):
        scratch.make(f"CREATE VIEW candles AS SELECT * FROM ohlcv({call})")


def test_a_view_of_a_misspelt_function_says_which_is_meant(scratch: Scratch) -> None:
    with pytest.raises(InvalidStatement, match='Did you mean "ohlcv"'):
        scratch.make("CREATE VIEW candles AS SELECT * FROM ohlvc('BTCUSDT', every := '1m')")
    with pytest.raises(Unsupported, match=r"^K2 keeps no views in research; make a table"):
        scratch.make("CREATE VIEW research.candles AS SELECT 1 AS a")


def test_it_reads_as_of_an_instant_what_its_tables_are_as_of_it(started: Started) -> None:
    """The made-up lake has no past; that it is asked for it is what is tested."""
    with pytest.raises(SnapshotNotFound, match=r"^market\.trades has no earlier state"):
        started.ask("FROM ohlcv('BTCUSDT', every := '1m', as_of := '2024-08-09T00:00:00Z')")


def test_it_is_explained_described_and_summarized(started: Started) -> None:
    assert "market" in str(started.ask(f"EXPLAIN SELECT * FROM {OHLCV}")) or started.ask(f"EXPLAIN FROM {OHLCV}")
    described = started.ask(f"DESCRIBE SELECT * FROM {OHLCV}")
    assert ", ".join(f"{row['column_name']} {row['column_type']}" for row in described) == FUNCTIONS["ohlcv"].returns
    assert len(started.ask(f"SUMMARIZE FROM {OHLCV}")) == 10


def test_it_is_no_subscription(started: Started) -> None:
    with pytest.raises(InvalidStatement, match=r"^ohlcv\(\.\.\.\) cannot be answered row by row as rows arrive"):
        started.engine.plans.describe(f"SUBSCRIBE (SELECT * FROM {OHLCV})")


def test_a_result_is_kept_as_that_of_a_query_is_and_what_is_computed_anew_is_not(started: Started) -> None:
    caller = Caller(Principal("someone"), "")

    def hits(sql: str) -> float:
        before = started.registry.get_sample_value("k2_result_cache_hits_total") or 0.0
        for _ in range(2):
            announced = started.engine.announce(Request(sql), caller)
            running = started.engine.execute(Request(sql, id=announced.id, cut=announced.cut), caller)
            assert sum(batch.num_rows for batch in ReadAhead(running)) > 0
        return (started.registry.get_sample_value("k2_result_cache_hits_total") or 0.0) - before

    assert hits(f"SELECT * FROM {OHLCV}") == 1
    assert hits("SELECT vwap(price, quantity) FROM market.trades") == 1
    assert hits("SELECT * FROM ohlcv('BTCUSDT', NULL, now(), '1m')") == 0


def test_what_runs_is_shown_as_it_was_sent(started: Started) -> None:
    sql = f"SELECT * FROM {OHLCV}"
    running = started.engine.execute(Request(sql))
    assert [about.text for _, about in started.engine.running()] == [sql]
    running.close()


EXAMPLES = {
    (kind, one.name): one.example
    for kind, ones in (("table", FUNCTIONS.values()), ("macro", MACROS))
    for one in ones
    if one.example
}


@pytest.mark.parametrize(("kind", "name"), sorted(EXAMPLES))
def test_every_example_runs_and_returns_what_is_said(started: Started, kind: str, name: str) -> None:
    """Whether it is right is what the tests of each function tell."""
    (listed,) = [row for row in started.ask("FROM k2_functions()") if (row["kind"], row["name"]) == (kind, name)]
    assert listed["example"] == EXAMPLES[kind, name]
    assert started.ask(listed["example"]) is not None
    described = started.ask(f"DESCRIBE SELECT * FROM ({listed['example']})")
    columns = [f"{row['column_name']} {row['column_type']}" for row in described]
    if kind == "macro":
        assert columns[-1] == f"{name} {listed['returns']}"
    elif listed["example"].startswith("SELECT * FROM"):
        assert ", ".join(columns) == listed["returns"]


def test_the_list_has_every_function_once_with_all_that_one_needs(started: Started) -> None:
    rows = started.ask("FROM k2_functions()")
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
    assert {(row["kind"], row["name"]) for row in rows} == set(EXAMPLES)
    assert {name for kind, name in EXAMPLES if kind == "table"} == set(FUNCTIONS)
    assert all(all(row.values()) for row in rows)
    with pytest.raises(K2Error):
        started.ask("FROM k2_functions(1)")
