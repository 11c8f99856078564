"""`ops.gaps` over the wire: what the log says of missing trades, now and as of an earlier cut."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Producer
from test_flight_as_of import cut_of
from test_flight_sessions import Client

import clients
from common.codec import Encoder
from common.datasets import GAP_EVENTS, INSTRUMENTS, TRADES, Dataset
from common.log import KafkaLog
from common.registry import EmbeddedRegistry
from common.settings import FlightSettings, KafkaSettings, LakeSettings, SinkSettings
from flight_server.service.service import FlightService
from flight_server.storage.lake import Lake
from ingest.gaps import Gap, GapBook, GapLimits
from ingest.ledger import IdRanges
from k2.broker import EmbeddedBroker
from sink.service import SinkService
from tests.support.records import instrument, trade

NOW_US = 1_720_000_000_000_000
GAPS = "SELECT symbol, first_id, last_id, state, missing_ids, closed_by FROM ops.gaps ORDER BY symbol, first_id"


class Served:
    """Broker, sink, lake and server on all datasets, and a producer by hand."""

    def __init__(self, folder: Any) -> None:
        self._broker = EmbeddedBroker().start()
        kafka = KafkaSettings.load(bootstrap_servers=self._broker.bootstrap_servers)
        self._topics = {
            d.name: d.topic(asset_class="crypto", exchange="binance") for d in (TRADES, INSTRUMENTS, GAP_EVENTS)
        }
        KafkaLog(kafka).ensure_topics(self._topics.values())
        lake = LakeSettings.load(data_dir=folder)
        lake.prepare()
        settings = FlightSettings(port=0, snapshot_refresh_ms=20, topic_refresh_ms=50)
        self.sink = SinkService(kafka, lake, SinkSettings(commit_age_ms_max=50))
        self.sink.start()
        self.lake = Lake(kafka, lake, settings)
        self.lake.start()
        self.service = FlightService(self.lake, settings)
        self.service.start()
        self._producer = Producer(kafka.client_config() | {"linger.ms": 1})
        self.connection = clients.connect(self.service.uri)

    def produce(self, dataset: Dataset, *records: dict[str, Any]) -> None:
        topic = self._topics[dataset.name]
        encode = Encoder(dataset, EmbeddedRegistry(), topic=topic).encode
        for record in records:
            self._producer.produce(topic, encode(record), record["symbol"])
        self._producer.flush()

    def until(self, sql: str, wanted: list[dict[str, Any]]) -> None:
        for _ in range(500):
            found = self.connection.arrow(sql).to_pylist()
            if found == wanted:
                return
            threading.Event().wait(0.02)
        assert found == wanted

    def settle(self) -> None:
        """Return once everything is committed and the server shows the snapshots."""
        for _ in range(1_000):
            if not sum(self.lake.stats().tail_rows.values()):
                return
            threading.Event().wait(0.01)
        raise AssertionError(f"not committed: {self.lake.stats().tail_rows}, {self.sink.stats()}")

    def stop(self) -> None:
        self.connection.close()
        self.service.stop()
        self.lake.stop()
        self.sink.stop()
        self._broker.stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("lake"))
    yield served
    served.stop()


class Missing:
    """One symbol with ids that are missing: a GapBook that the test drives."""

    def __init__(self, symbol: str, present: list[tuple[int, int]]) -> None:
        self.key = ("binance", symbol)
        self.ids = IdRanges(present)
        self._book = GapBook(GapLimits(0.0, 10, 100))
        self._now_us = NOW_US

    def changed(self, *taken: tuple[int, int]) -> list[dict[str, Any]]:
        for first, last in taken:
            self.ids.take_range(first, last)
        self._now_us += 2_000_000
        return [g.record() for g in self._book.observe(self.key, self.ids.gaps(), self._now_us / 1e6, self._now_us)]

    def lost(self, first_id: int) -> dict[str, Any]:
        gap = self._book.lose(
            self.key, first_id, self.ids.gaps(), "the exchange has no trades of these ids", self._now_us
        )
        assert isinstance(gap, Gap)
        return gap.record()


def test_one_row_per_gap_with_its_newest_state(served: Served) -> None:
    served.produce(INSTRUMENTS, *(instrument(symbol, "a") for symbol in ("BTCUSDT", "ETHUSDT", "ADAUSDT")))
    served.produce(TRADES, *(trade(one) for one in range(10)))
    btc, eth = Missing("BTCUSDT", [(1, 1), (5, 5)]), Missing("ETHUSDT", [(10, 10), (300, 300)])
    served.produce(GAP_EVENTS, *btc.changed(), *eth.changed())
    opened = [
        {"symbol": "BTCUSDT", "first_id": 2, "last_id": 4, "state": "open", "missing_ids": 3, "closed_by": None},
        {"symbol": "ETHUSDT", "first_id": 11, "last_id": 299, "state": "open", "missing_ids": 289, "closed_by": None},
    ]
    served.until(GAPS, opened)
    completeness = (
        "SELECT symbol, gaps, open_gaps, missing_ids, lost_ids, complete, complete_through_id FROM ops.completeness "
        "ORDER BY symbol"
    )
    names = ("symbol", "gaps", "open_gaps", "missing_ids", "lost_ids", "complete", "complete_through_id")
    served.until(
        completeness,
        [
            dict(zip(names, row, strict=True))
            for row in (
                ("ADAUSDT", 0, 0, 0, 0, True, None),
                ("BTCUSDT", 1, 1, 3, 0, True, None),
                ("ETHUSDT", 1, 1, 289, 0, False, 10),
            )
        ],
    )
    served.settle()
    client = Client(served.service.uri)
    cut = cut_of(client.info(GAPS))
    assert "ops.gap_events" in json.loads(cut)["tables"] if "tables" in json.loads(cut) else "ops.gap_events" in cut

    served.produce(GAP_EVENTS, *btc.changed((2, 4)), *eth.changed((11, 288)), eth.lost(11))
    closed = [
        opened[0] | {"state": "filled", "missing_ids": 0, "closed_by": "stream"},
        opened[1] | {"state": "lost", "missing_ids": 11, "closed_by": "lost"},
    ]
    served.until(GAPS, closed)
    served.until(
        f"{completeness} LIMIT 2 OFFSET 1",
        [
            dict(zip(names, row, strict=True))
            for row in (("BTCUSDT", 1, 0, 0, 0, True, None), ("ETHUSDT", 1, 0, 0, 11, True, None))
        ],
    )
    assert served.connection.arrow("SELECT count(*) AS n FROM ops.gap_events").to_pylist() == [{"n": 5}]

    # As of the earlier cut: a view, its alias, what it is made of, a mix with tables of now, and the whole session.
    at = GAPS.replace("ops.gaps", f"ops.gaps AT (VERSION => '{cut}')")
    assert served.connection.arrow(at).to_pylist() == opened
    aliased = f"SELECT g.state, gaps.state AS now FROM ops.gaps g AT (VERSION => '{cut}') JOIN ops.gaps USING (gap_id)"
    assert served.connection.arrow(f"{aliased} ORDER BY g.first_id").to_pylist() == [
        {"state": "open", "now": "filled"},
        {"state": "open", "now": "lost"},
    ]
    then = completeness.replace("ops.completeness", f"ops.completeness AT (VERSION => '{cut}')")
    assert [row["open_gaps"] for row in served.connection.arrow(then).to_pylist()] == [0, 1, 1]
    events = f"SELECT count(*) AS n FROM ops.gap_events AT (VERSION => '{cut}')"
    assert served.connection.arrow(events).to_pylist() == [{"n": 2}]
    client.act("CloseSession", b"")


def test_catalogs_list_them_and_nobody_may_write_them(served: Served) -> None:
    listed = served.connection.arrow(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'ops' ORDER BY 1"
    ).column(0)
    assert {"completeness", "gap_events", "gaps"} <= set(listed.to_pylist())
    with pytest.raises(clients.QueryError):
        served.connection.arrow("DELETE FROM ops.gap_events")
    with pytest.raises(clients.QueryError, match=r"ops|gapes"):
        served.connection.arrow("SELECT * FROM ops.gapes")


def test_a_gap_has_nothing_of_its_earlier_states(served: Served) -> None:
    eth = Missing("XRPUSDT", [(1, 1), (3, 3)])
    served.produce(GAP_EVENTS, *eth.changed(), eth.lost(2), *eth.changed((2, 2)))
    served.until(
        "SELECT state, closed_by, reason FROM ops.gaps WHERE symbol = 'XRPUSDT'",
        [{"state": "filled", "closed_by": "stream", "reason": None}],
    )


def test_server_tables_of_ops_are_read_beside_them(served: Served) -> None:
    rows = served.connection.arrow("SELECT count(*) AS n FROM ops.gaps, ops.sessions").to_pylist()
    assert len(rows) == 1
    tables = served.connection.arrow("SELECT DISTINCT table_name FROM ops.commits ORDER BY 1").column(0).to_pylist()
    assert "ops.gap_events" in tables
