"""The market of long ago over the wire: after its snapshots expired, after compaction, evolution and deletions; and
what clients see of its commits. On a real broker, a real table and a real catalog.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import adbc_driver_flightsql.dbapi as dbapi
import pyarrow as pa
import pytest
from pyiceberg.io.pyarrow import _dataframe_to_data_files, schema_to_pyarrow
from pyiceberg.table import Table
from pyiceberg.table.update import SetCurrentSchemaUpdate
from test_flight_as_of import cut_of
from test_flight_sessions import Client

from common.datasets import TRADES
from common.iceberg import open_catalog, summary_entry
from common.offsets import SUMMARY_KEY
from sink.maintenance.expiry import ExpiryPolicy, expire_snapshots
from sink.table import IcebergTable, WrittenFiles
from tests.support.live import COUNT, Live

LATER_US = 4_000_000_000_000_000


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


def table_of(live: Live) -> Table:
    return open_catalog(live.lake_settings).load_table(TRADES.table)


def commit(live: Live, count: int, *, deleted: int = 0) -> tuple[int, dict[str, Any]]:
    """More trades, committed and read from their snapshot: its id, and what COUNT says of it."""
    row = live.grow(count, deleted=deleted)
    live.settle()
    snapshot = table_of(live).metadata.current_snapshot()
    assert snapshot is not None
    return snapshot.snapshot_id, row


def expire(live: Live) -> int:
    """As the sink does, down to one snapshot."""
    return expire_snapshots(IcebergTable.open(live.lake_settings, TRADES), ExpiryPolicy(1), LATER_US)


def adopted(live: Live, client: Client, snapshot_id: int) -> None:
    """Return once the server reads this snapshot."""
    while json.loads(cut_of(client.info(COUNT)))["market.trades"]["snapshot"] != snapshot_id:
        threading.Event().wait(0.01)


def at(what: object, columns: str = "count(*) as n, max(trade_id) as last") -> str:
    version = what if isinstance(what, int) else "'" + str(what).replace("'", "''") + "'"
    return f"select {columns} from market.trades at (version => {version})"


def test_every_instant_outlives_the_expiry_of_its_snapshot(live: Live, client: Client) -> None:
    taken = []
    for count in (10, 7, 5, 3):
        cut = cut_of(client.info(COUNT))
        (before,) = client.rows(COUNT)
        snapshot_id, row = commit(live, count)
        taken.append((snapshot_id, row, cut, before))
    times = {entry.snapshot_id: entry.timestamp_ms for entry in table_of(live).metadata.snapshot_log}
    first_ms = min(times.values())
    assert expire(live) > 0
    assert len(table_of(live).metadata.snapshots) == 1
    live.grow(4)
    for snapshot_id, row, cut, before in taken:
        assert client.rows(at(snapshot_id)) == [row]
        assert client.rows(at(cut)) == [before]
        moment = f"make_timestamp({times[snapshot_id] * 1000}) AT TIME ZONE 'UTC'"
        assert client.rows(
            f"select count(*) as n, max(trade_id) as last from market.trades at (timestamp => {moment})"
        ) == [row]
    early = f"select count(*) as n from trades at (timestamp => make_timestamp({first_ms * 1000 - 1}))"
    assert client.rows(early) == [{"n": 0}]
    with pytest.raises(pa.ArrowKeyError, match=r"no snapshot 12345; the oldest one that is known is of"):
        client.rows(at(12345))


def test_the_commits_are_a_table(live: Live, client: Client) -> None:
    snapshots = [commit(live, count) for count in (6, 5, 4)]
    expire(live)
    with dbapi.connect(live.service.uri, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("select * from ops.commits order by current_from")
        commits = cursor.fetch_arrow_table()
        cursor.execute("select * from k2_snapshots('market.trades') order by current_from")
        assert cursor.fetch_arrow_table() == commits
        first = next(row for row in commits.to_pylist() if row["snapshot_id"] == snapshots[0][0])
        added = (first["added_rows"],)  # six, unless they were committed in parts
        cursor.execute("select c.snapshot_id from k2_snapshots('trades') as c where added_rows = ?", added)
        assert (snapshots[0][0],) in cursor.fetchall()
        cursor.execute("select count(*) from ops.commits where is_kept")
        assert cursor.fetchall() == [(1,)]
        objects = connection.adbc_get_objects(depth="tables", db_schema_filter="ops").read_all().to_pylist()
        names = [t["table_name"] for o in objects for s in o["catalog_db_schemas"] for t in s["db_schema_tables"]]
        assert "commits" in names
    rows = commits.to_pylist()
    assert [row["sequence_number"] for row in rows] == list(range(1, len(rows) + 1))
    assert {row["table_name"] for row in rows} == {"market.trades"}
    assert [row["parent_snapshot_id"] for row in rows] == [None, *(row["snapshot_id"] for row in rows[:-1])]
    assert [row["current_until"] for row in rows] == [*(row["current_from"] for row in rows[1:]), None]
    assert sum(row["added_rows"] for row in rows) == 15 == rows[-1]["total_rows"]
    for row in rows:
        assert client.rows(at(row["cut"], "count(*) as n")) == [{"n": row["total_rows"]}]
        assert client.rows(at(row["snapshot_id"], "count(*) as n")) == [{"n": row["total_rows"]}]
    with pytest.raises(pa.ArrowKeyError, match="has no table 'nothing'"):
        client.rows("from k2_snapshots('nothing')")
    with pytest.raises(pa.ArrowInvalid, match="takes a table's name"):
        client.rows("from k2_snapshots()")
    transaction = client.begin()
    assert client.rows("select count(*) as n from ops.commits, k2_snapshots('trades')", transaction) == [
        {"n": len(rows) ** 2}
    ]
    client.end(transaction, commit=False)


def test_a_statement_knows_its_own_cut(live: Live, client: Client) -> None:
    then = live.grow(9)
    info = client.info("select k2_cut() as cut, count(*) as n from market.trades")
    (row,) = client.flight.do_get(info.endpoints[0].ticket).read_all().to_pylist()
    assert row == {"cut": cut_of(info), "n": then["n"]}
    live.grow(5)
    assert client.rows(at(row["cut"])) == [then]
    alone = client.info("select k2_cut()")
    assert alone.schema.names == ["k2_cut()"]
    reader = client.flight.do_get(alone.endpoints[0].ticket)
    chunk = reader.read_chunk()
    assert json.loads(chunk.app_metadata.to_pybytes())["cut"] == cut_of(alone) == chunk.data.to_pylist()[0]["k2_cut()"]
    past = client.info(at(row["cut"], "k2_cut() as cut"))
    assert client.flight.do_get(past.endpoints[0].ticket).read_all()[0][0].as_py() == cut_of(past)
    assert json.loads(cut_of(past)) == {"market.trades": json.loads(row["cut"])["market.trades"]}


def test_a_late_ticket_says_the_cut_that_was_announced(live: Live, client: Client) -> None:
    live.grow(9)
    info = client.info("select k2_cut() as cut, count(*) as n from market.trades")
    late = client.info("select k2_cut() as cut")
    while live.service.stats().pinned_statements:
        threading.Event().wait(0.01)
    live.grow(5)
    reader = client.flight.do_get(info.endpoints[0].ticket)
    chunk = reader.read_chunk()
    assert chunk.data.to_pylist() == [{"cut": cut_of(info), "n": 9}]
    assert json.loads(chunk.app_metadata.to_pybytes())["cut"] == cut_of(info)
    assert client.flight.do_get(late.endpoints[0].ticket).read_all().to_pylist() == [{"cut": cut_of(late)}]


def test_in_a_transaction_every_statement_has_its_cut(live: Live, client: Client) -> None:
    then = live.grow(9)
    transaction = client.begin()
    (first,) = client.rows("select k2_cut() as cut, count(*) as n from trades", transaction)
    live.grow(5)
    (second,) = client.rows("select k2_cut() as cut, count(*) as n from trades", transaction)
    client.rows("create table mine as select k2_cut() as cut", transaction)
    assert client.rows("from mine", transaction) == [{"cut": first["cut"]}]
    client.end(transaction, commit=True)
    assert first == second
    assert client.rows(at(first["cut"])) == [then]
    assert client.rows("select k2_cut() as cut")[0]["cut"] != first["cut"]


def test_a_statement_of_two_instants(live: Live, client: Client) -> None:
    """Of one table at two instants no cut says what was read; of two tables one says both."""
    live.grow(9)
    (then,) = client.rows("select k2_cut() as cut from trades limit 1")
    live.grow(5)
    quoted = then["cut"].replace("'", "''")
    both = f"select k2_cut() as cut from trades, (from trades at (version => '{quoted}') limit 1) limit 1"
    assert client.rows(both) == [{"cut": None}]
    info = client.info(f"select k2_cut() as cut, count(*) as n from trades at (version => '{quoted}'), ops.sessions")
    (row,) = client.flight.do_get(info.endpoints[0].ticket).read_all().to_pylist()
    assert row["cut"] == cut_of(info)


def test_prepared_statements_have_their_cut(live: Live, client: Client) -> None:
    live.grow(9)
    with dbapi.connect(live.service.uri, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.adbc_prepare("select k2_cut() as cut, count(*) as n from trades where trade_id < ?")
        for bound in (3, 5):
            cursor.execute("select k2_cut() as cut, count(*) as n from trades where trade_id < ?", (bound,))
            ((cut, n),) = cursor.fetchall()
            assert n == bound
            assert client.rows(at(cut, "count(*) as n")) == [{"n": 9}]


def test_after_compaction(live: Live, client: Client) -> None:
    before = [commit(live, count) for count in (8, 6, 4)]
    table = table_of(live)
    current = table.metadata.current_snapshot()
    assert current is not None
    rows = table.scan().to_arrow().sort_by("trade_id")
    carried = {SUMMARY_KEY: str(summary_entry(current, SUMMARY_KEY))}
    files = [task.file for task in table.scan().plan_files()]
    with table.transaction() as transaction:
        written = list(_dataframe_to_data_files(transaction.table_metadata, rows, table.io))
        with transaction.update_snapshot(snapshot_properties=carried).overwrite() as overwrite:
            for file in files:
                overwrite.delete_data_file(file)
            for file in written:
                overwrite.append_data_file(file)
    compacted = table_of(live).metadata.current_snapshot()
    assert compacted is not None
    expire(live)
    adopted(live, client, compacted.snapshot_id)
    for snapshot_id, row in before:
        assert client.rows(at(snapshot_id)) == [row]


def test_instants_of_which_rows_were_deleted_are_refused(live: Live, client: Client) -> None:
    old = commit(live, 10)
    cut = cut_of(client.info(COUNT))
    kept = commit(live, 10)
    table_of(live).delete("trade_id < 5")
    deleted = table_of(live).metadata.current_snapshot()
    assert deleted is not None
    adopted(live, client, deleted.snapshot_id)
    for turn in range(2):
        for past in (old[0], kept[0], cut):
            with pytest.raises(pa.ArrowKeyError, match=f"deleted since, by the snapshot {deleted.snapshot_id} at"):
                client.rows(at(past))
        assert client.rows(at(deleted.snapshot_id, "count(*) as n")) == [{"n": 15}], turn
        after, row = commit(live, 3, deleted=5)
        assert client.rows(at(after)) == [row]
        expire(live)


def test_a_deletion_that_says_from_where_on_leaves_what_lies_before(live: Live, client: Client) -> None:
    first = commit(live, 8)
    offsets = summary_entry(table_of(live).metadata.snapshot_by_id(first[0]), SUMMARY_KEY)  # type: ignore[arg-type]
    second = commit(live, 8)
    table = table_of(live)
    table.delete("trade_id >= 8", snapshot_properties={"k2.deleted-from": str(offsets)})
    deleted = table_of(live).metadata.current_snapshot()
    assert deleted is not None
    adopted(live, client, deleted.snapshot_id)
    for _ in range(2):
        assert client.rows(at(first[0])) == [first[1]]
        with pytest.raises(pa.ArrowKeyError, match="were deleted since"):
            client.rows(at(second[0]))
        expire(live)


def test_the_columns_are_those_of_then(live: Live, client: Client) -> None:
    with_all, _ = commit(live, 4)
    live.stop_sink()
    row = live.grow(4)
    cut = cut_of(client.info(COUNT))
    info = client.info("from market.trades where trade_id >= 4")
    rows = client.flight.do_get(info.endpoints[0].ticket).read_all()
    table = table_of(live)
    whole = table.metadata.current_schema_id
    with table.update_schema() as update:
        update.delete_column("vendor_data")
        update.rename_column("currency", "money")
    rows = pa.Table.from_pylist(rows.to_pylist(), rows.schema)  # PyIceberg's transforms panic on a wire's own buffers
    rows = rows.rename_columns(["money" if name == "currency" else name for name in rows.schema.names])
    shape = schema_to_pyarrow(table.schema(), include_field_ids=False)
    offsets = json.dumps(json.loads(cut)["market.trades"]["next"])
    table.append(rows.select(shape.names).cast(shape), snapshot_properties={SUMMARY_KEY: offsets})
    without = table.metadata.current_snapshot_id
    assert without is not None
    with table.transaction() as transaction:
        transaction._apply((SetCurrentSchemaUpdate(schema_id=whole),), ())
    adopted(live, client, without)
    cut = cut_of(client.info(COUNT))
    live.grow(4)
    names = client.info("from market.trades").schema.names
    then = ["money" if name == "currency" else name for name in names if name != "vendor_data"]
    for expired in (False, True):
        assert client.info(at(with_all, "*")).schema.names == names
        for past in (without, cut):
            info = client.info(at(past, "*"))
            assert info.schema.names == then
            read = client.flight.do_get(info.endpoints[0].ticket).read_all()
            assert read.schema.equals(info.schema)
            assert read.num_rows == row["n"]
            assert client.rows(at(past, "count(distinct market.trades.price) + min(trade_id) as n"))
            with pytest.raises(pa.ArrowInvalid, match="had no column vendor_data at the instant"):
                client.rows(at(past, "vendor_data"))
            with pytest.raises(pa.ArrowInvalid, match="had no column currency at the instant"):
                client.rows(at(past, "currency"))
        if not expired:
            # A commit behind it, as the sink makes it, so that its snapshot may go.
            sinks = IcebergTable.open(live.lake_settings, TRADES)
            taken = sinks.committed_offsets()
            adopted(live, client, sinks.commit(WrittenFiles((), 0), taken, taken, "nothing"))
            assert expire(live)
    assert client.set(k2__as_of=cut) == {}
    assert client.info("from market.trades").schema.names == then
    assert len(client.rows("from market.trades")) == row["n"]
    assert client.set(k2__as_of="") == {}
    assert client.info("from market.trades").schema.names == names
