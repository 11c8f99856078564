"""Maintenance seen over the wire: compaction and manifests change no answer, of now or of then; retention is declared.

On a real broker, table and catalog, with a server that follows and sessions that are open.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from test_flight_as_of import cut_of
from test_flight_sessions import Client

from common.datasets import TRADES
from sink.maintenance.compaction import CompactionPolicy, compact
from sink.maintenance.expiry import ExpiryPolicy, expire
from sink.maintenance.manifests import rewrite_manifests
from sink.maintenance.retention import RetentionPolicy, delete_old
from sink.table import IcebergTable
from tests.support.live import COUNT, Live
from tests.support.records import EPOCH

IDS = "select list(trade_id order by trade_id) as ids from market.trades"
LATER_US = int((EPOCH + timedelta(days=30)).timestamp()) * 1_000_000


@pytest.fixture
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    live = Live(tmp_path_factory.mktemp("lake"))
    yield live
    live.stop()


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    client = Client(live.service.uri)
    yield client
    client.act("CloseSession", b"")


def grown(live: Live, client: Client, count: int, *, deleted: int = 0) -> str:
    """More trades, committed, beside those `deleted` before; the cut of what is there then."""
    live.grow(count, deleted=deleted)
    live.settle()
    return str(cut_of(client.info(COUNT)))


def adopted(client: Client, table: IcebergTable) -> None:
    """Return once the server reads the table's newest snapshot."""
    table.reload()
    while json.loads(cut_of(client.info(COUNT)))["market.trades"]["snapshot"] != table.snapshot_id:
        threading.Event().wait(0.01)


def ids(client: Client, cut: str | None = None) -> Any:
    at = "" if cut is None else " at (version => '" + cut.replace("'", "''") + "')"
    return client.rows(IDS + at)[0]["ids"]


def changes(client: Client, low: str, high: str) -> list[int]:
    rows = client.rows(f"select trade_id from k2_changes('market.trades', '{low}', '{high}')")
    return sorted(row["trade_id"] for row in rows)


def test_compaction_and_manifests_change_no_answer(live: Live, client: Client) -> None:
    cuts = [grown(live, client, count) for count in (9, 7, 5, 3)]
    ends = (9, 16, 21, 24)
    table = IcebergTable.open(live.lake_settings, TRADES)
    assert compact(table, CompactionPolicy(), LATER_US).files_after == 1
    rewrite_manifests(table)
    assert expire(table, ExpiryPolicy(1), 2**62).snapshots_expired > 0
    adopted(client, table)
    assert ids(client) == list(range(24))
    for cut, end in zip(cuts, ends, strict=True):
        assert ids(client, cut) == list(range(end))
    assert changes(client, cuts[0], cuts[2]) == list(range(9, 21))
    # And on: what comes later, in files beside the large one.
    after = grown(live, client, 4)
    assert ids(client) == ids(client, after) == list(range(28))
    assert changes(client, cuts[1], after) == list(range(16, 28))
    point = client.rows("select price, side from market.trades where symbol = 'BTCUSDT' and trade_id = 5")
    assert len(point) == 1


def test_what_retention_deletes_is_refused_where_it_was_and_gone_from_now(live: Live, client: Client) -> None:
    before = grown(live, client, 12)
    table = IcebergTable.open(live.lake_settings, TRADES)
    assert delete_old(table, RetentionPolicy("event_time", 7), LATER_US).rows == 12
    adopted(client, table)
    assert client.rows(COUNT)[0]["n"] == 0
    with pytest.raises(pa.ArrowException, match="deleted"):
        ids(client, before)
    after = grown(live, client, 3, deleted=12)
    assert ids(client) == ids(client, after) == [12, 13, 14]
    compact(table, CompactionPolicy(), LATER_US)
    adopted(client, table)
    assert ids(client, after) == [12, 13, 14]
