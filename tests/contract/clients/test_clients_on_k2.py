"""The clients against a real K2: broker, lake and Flight SQL server; 3,000 trades that no sink has taken in."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

import clients
from clients.formats import write
from common.codec import Encoder
from common.datasets import TRADES
from common.log import KafkaLog
from common.registry import EmbeddedRegistry
from common.settings import FlightSettings, KafkaSettings, LakeSettings
from k2.broker import EmbeddedBroker
from k2.cli import cli
from k2.stack import Server
from tests.support.kafka import produce
from tests.support.records import trade

COUNT = 3_000
TOPIC = TRADES.topic(asset_class="crypto", exchange="binance")
RECORDS = [trade(number, vendor_data={"taker": "x"} if number % 2 else None) for number in range(COUNT)]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedBroker() as broker:
        kafka = KafkaSettings.load(bootstrap_servers=broker.bootstrap_servers)
        KafkaLog(kafka).ensure_topics([TOPIC])
        encoder = Encoder(TRADES, EmbeddedRegistry(), topic=TOPIC)
        produce(kafka, TOPIC, [encoder.encode(record) for record in RECORDS])
        lake = LakeSettings.load(data_dir=tmp_path_factory.mktemp("lake"))
        flight = FlightSettings.load(port=0, threads=2, memory_bytes_max=512 * 1024**2)
        server = Server(kafka, lake, flight, CollectorRegistry())
        server.start()
        yield server.flight.uri
        server.stop()


@pytest.fixture
def k2(uri: str) -> Iterator[clients.Connection]:
    with clients.connect(uri) as connection:
        yield connection


def test_decimals_and_times_arrive_as_they_were_sent(k2: clients.Connection) -> None:
    table = k2.arrow("SELECT trade_id, price, quantity, event_time FROM market.trades ORDER BY trade_id")
    assert table.schema.types == [pa.int64(), pa.decimal128(18, 8), pa.decimal128(28, 8), pa.timestamp("us", "UTC")]
    columns = ("trade_id", "price", "quantity", "event_time")
    assert table.to_pylist() == [{name: record[name] for name in columns} for record in RECORDS]


def test_polars_and_pandas_keep_what_floats_would_lose(k2: clients.Connection) -> None:
    sql = "SELECT sum(price * quantity) AS notional FROM market.trades"
    exact = sum((record["price"] * record["quantity"] for record in RECORDS), Decimal(0))
    frame = k2.polars(sql)
    assert (frame["notional"].dtype, frame["notional"][0]) == (pl.Decimal(38, 16), exact)
    assert k2.pandas(sql)["notional"][0] == exact


def test_parameters_fill_the_question_marks(k2: clients.Connection) -> None:
    sql = "SELECT count(*) AS n FROM market.trades WHERE symbol = ? AND trade_id >= ? AND price < ?"
    assert k2.arrow(sql, ("BTCUSDT", 1_000, RECORDS[2_000]["price"]))["n"][0].as_py() == 1_000


def test_a_stream_comes_in_batches_and_the_session_goes_on_when_it_is_left(k2: clients.Connection) -> None:
    with k2.stream("SELECT a.trade_id FROM market.trades a, market.trades b") as stream:
        assert stream.schema.names == ["trade_id"]
        assert 0 < next(iter(stream)).num_rows < COUNT * COUNT
    assert k2.arrow("SELECT 1 AS one").to_pydict() == {"one": [1]}


def test_a_syntax_error_is_duckdb_s_own_words_with_the_position(k2: clients.Connection) -> None:
    with pytest.raises(clients.QueryError) as caught:
        k2.arrow("SELECT symbol FORM market.trades")
    first, *_, last = str(caught.value).splitlines()
    assert first.startswith("Parser Error: ")
    assert "LINE 1: SELECT symbol FORM market.trades" in str(caught.value)
    assert last.strip() == "^"
    assert caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("sql", "parameters", "code", "says"),
    [
        ("SELECT * FROM market.trade", None, "NOT_FOUND", "trade"),
        ("SELECT nothing FROM market.trades", None, "INVALID_ARGUMENT", "nothing"),
        ("SELECT ? + ?", (1,), "INVALID_ARGUMENT", "parameter"),
        ("SELECT 'x'::INTEGER", None, "INVALID_ARGUMENT", "Could not convert string 'x' to INT32"),
        ("DROP TABLE market.trades", None, "PERMISSION_DENIED", "market.trades is read-only"),
    ],
)
def test_a_refusal_is_a_sentence_of_the_server_and_nothing_else(
    k2: clients.Connection, sql: str, parameters: tuple[object, ...] | None, code: str, says: str
) -> None:
    with pytest.raises(clients.QueryError) as caught:
        k2.arrow(sql, parameters)
    message = str(caught.value)
    assert (caught.value.code, says in message) == (code, True), message
    for wrapping in ("FlightSQL", "Detail:", "Vendor code", "Traceback", ".py", "ExecuteQuery", "Prepare"):
        assert wrapping not in message
    assert k2.arrow("SELECT count(*) AS n FROM market.trades")["n"][0].as_py() == COUNT


def test_every_format_is_written_from_a_live_stream(k2: clients.Connection) -> None:
    sql = "SELECT * FROM market.trades ORDER BY trade_id"
    table = k2.arrow(sql)

    def written(form: clients.formats.Format) -> bytes:
        out = io.BytesIO()
        with k2.stream(sql) as stream:
            assert write(stream.schema, stream, form, out) == COUNT
        return out.getvalue()

    assert pa.ipc.open_stream(written("arrow")).read_all().equals(table)
    assert pq.read_table(pa.BufferReader(written("parquet"))).equals(table)
    last = json.loads(written("json").splitlines()[-1])
    assert Decimal(last["price"]) == RECORDS[-1]["price"]
    assert last["vendor_data"] == {"taker": "x"}
    assert len(written("csv").splitlines()) == COUNT + 1
    assert written("table").decode().endswith("... 2,900 more\n3,000 rows\n")


@pytest.mark.parametrize("form", ["table", "csv", "json", "arrow", "parquet"])
def test_k2_query_writes_to_a_file_or_to_the_terminal(uri: str, tmp_path: Path, form: str) -> None:
    file = tmp_path / "out"
    sql = "SELECT symbol, price FROM market.trades WHERE trade_id = 7"
    done = CliRunner().invoke(cli, ["query", sql, "--format", form, "--uri", uri, "--output", str(file)])
    assert (done.exit_code, done.output) == (0, "")
    if form == "arrow":
        assert pa.ipc.open_stream(file.read_bytes()).read_all().num_rows == 1
    elif form == "parquet":
        assert pq.read_table(file).num_rows == 1
    else:
        assert "60.00000007" in file.read_text()
        piped = CliRunner().invoke(cli, ["query", sql, "--format", form, "--uri", uri])
        assert piped.output == file.read_text()
