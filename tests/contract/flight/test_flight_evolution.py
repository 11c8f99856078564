"""A trade of version 2.1 through the whole pipeline while producers of 2.0 go on, and what was before it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import adbc_driver_flightsql.dbapi as dbapi
import pyarrow as pa
import pytest
from pyarrow import flight
from test_flight_as_of import cut_of
from test_flight_sessions import Client

from common.codec import Encoder
from common.datasets import TRADES
from common.errors import IncompatibleSchema
from common.registry import KafkaRegistry
from common.schemas.arrow import table_schema
from sink.maintenance.compaction import CompactionPolicy, compact
from sink.table import IcebergTable
from tests.support.kafka import eventually
from tests.support.live import TOPIC, Live
from tests.support.records import EPOCH, trade
from tests.support.versions import ADDED, trade_2_1

ALL = "SELECT * FROM market.trades ORDER BY trade_id"
COLUMNS = table_schema("trade").names
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    live = Live(tmp_path_factory.mktemp("lake"), subscription_keep_alive_s=0.01)
    yield live
    live.stop()


class Producers:
    """One of each release, and what they sent."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._new: Encoder | None = None
        self.sent: dict[int, str | None] = {}

    def old(self, count: int) -> None:
        self._send([trade(len(self.sent) + n) for n in range(count)])

    def new(self, count: int) -> None:
        if self._new is None:
            self._new = Encoder(TRADES, KafkaRegistry(self._live.kafka), topic=TOPIC, schema_text=trade_2_1())
        first = len(self.sent)
        self._send([trade(n, **{ADDED: f"b{n}"}) for n in range(first, first + count)], encoder=self._new)

    def _send(self, records: list[dict[str, Any]], **how: Any) -> None:
        self._live.produce(records, partition=len(self.sent) % 4, **how)
        self.sent |= {record["trade_id"]: record.get(ADDED) for record in records}

    def seen_by(self, client: Client) -> None:
        sent = len(self.sent)
        count = "SELECT count(*) AS n FROM market.trades"
        eventually(lambda: client.rows(count) == [{"n": sent}], timeout_s=PATIENCE_S)


def test_a_new_field_of_a_new_release_becomes_a_column_everywhere_while_the_old_release_goes_on(live: Live) -> None:
    client, producers = Client(live.service.uri), Producers(live)
    producers.old(20)
    producers.seen_by(client)
    live.settle()
    before = cut_of(client.info(ALL))
    quoted = before.replace("'", "''")
    assert client.info(ALL).schema.names == COLUMNS
    follower = client.flight.do_get(client.info("SUBSCRIBE (SELECT * FROM market.trades) FROM NOW").endpoints[0].ticket)
    narrow = client.flight.do_get(
        client.info("SUBSCRIBE (SELECT trade_id FROM market.trades) FROM NOW").endpoints[0].ticket
    )
    with dbapi.connect(live.service.uri, autocommit=True) as connection, connection.cursor() as prepared:
        prepared.adbc_prepare(ALL)
        prepared.execute(ALL)
        assert prepared.fetch_arrow_table().column_names == COLUMNS

        stopping = threading.Event()

        def go_on() -> None:
            while not stopping.wait(0.005) and len(producers.sent) < 200:
                producers.old(1)
                producers.new(1)

        both = threading.Thread(target=go_on)
        both.start()
        eventually(lambda: client.info(ALL).schema.names == [*COLUMNS, ADDED], timeout_s=PATIENCE_S)
        stopping.set()
        both.join()
        producers.seen_by(client)
        prepared.execute(ALL)
        found = prepared.fetch_arrow_table()
    assert dict(zip(found["trade_id"].to_pylist(), found[ADDED].to_pylist(), strict=True)) == producers.sent
    assert any(value is not None for value in producers.sent.values())

    # What is in memory and what is in files are one table: also when all is committed, and compacted.
    live.settle()
    producers.new(2)
    producers.old(2)
    producers.seen_by(client)
    by_value = f"SELECT trade_id, {ADDED} FROM market.trades WHERE {ADDED} IS NOT NULL ORDER BY trade_id"
    wanted = [{"trade_id": n, ADDED: value} for n, value in producers.sent.items() if value is not None]
    assert client.rows(by_value) == wanted
    live.settle()
    live.stop_sink()
    table = IcebergTable.open(live.lake_settings, TRADES)
    report = compact(table, CompactionPolicy(), int(EPOCH.timestamp() * 1e6) + 3 * 86_400_000_000)
    assert report.groups and not report.groups_left
    assert client.rows(by_value) == wanted
    one = max(number for number, value in producers.sent.items() if value is not None)
    point = f"SELECT {ADDED} FROM market.trades WHERE symbol = 'BTCUSDT' AND trade_id = {one}"
    assert client.rows(point) == [{ADDED: f"b{one}"}]

    # The past has the columns that it had.
    then = client.info(f"SELECT * FROM market.trades AT (VERSION => '{quoted}')")
    assert then.schema.names == COLUMNS
    rows = client.flight.do_get(then.endpoints[0].ticket).read_all()
    assert sorted(rows["trade_id"].to_pylist()) == list(range(20))
    with pytest.raises(pa.ArrowInvalid, match=f"had no column {ADDED} at the instant"):
        client.info(f"SELECT {ADDED} FROM market.trades AT (VERSION => '{quoted}')")

    # A subscription to columns that it names goes on; one to all of them says what is needed.
    ids: set[int] = set()
    while len(ids) < len(producers.sent) - 20:
        ids |= set(narrow.read_chunk().data.column("trade_id").to_pylist())
    assert ids == producers.sent.keys() - set(range(20))
    narrow.cancel()
    with pytest.raises(flight.FlightError, match="the table changed since the subscription was planned; subscribe ag"):
        while True:
            follower.read_chunk()

    # And what may not follow 2.1 does not start.
    with pytest.raises(IncompatibleSchema, match=f"the field '{ADDED}' is null or long, and was string"):
        Encoder(TRADES, KafkaRegistry(live.kafka), topic=TOPIC, schema_text=trade_2_1(type=["null", "long"]))
