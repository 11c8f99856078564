"""Reading at a cut: the forms a user may give, what they mean for a table, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.commit_files import CommitLog
from common.datasets import TRADES
from common.errors import InvalidStatement, K2Error, SnapshotExpired, SnapshotNotFound, Unavailable
from common.offsets import KafkaPartition, PartitionOffsets
from common.schemas.arrow import table_schema
from common.settings import LakeSettings
from flight_server.storage.as_of import (
    AsOfCut,
    AsOfSnapshot,
    AsOfTime,
    condition_at,
    parse_as_of,
    table_cut,
)
from flight_server.storage.histories import Histories
from flight_server.storage.read_view import Cut, TableCut
from sink.maintenance.expiry import ExpiryPolicy, expire_snapshots
from sink.table import IcebergTable
from tests.support.past import Past
from tests.support.records import table_rows, trade

P0 = KafkaPartition("cluster", "topic-id-1", 0)
P1 = KafkaPartition("cluster", "topic-id-1", 1)
OTHER = KafkaPartition("cluster", "topic-id-2", 0)
T = "market.trades"
CUT = Cut({T: TableCut(7, PartitionOffsets({P0: 10, P1: 5}))})


def at(**offsets: int) -> PartitionOffsets:
    return PartitionOffsets({{"p0": P0, "p1": P1, "other": OTHER}[name]: until for name, until in offsets.items()})


# -- forms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("123", AsOfSnapshot(123)),
        (" 9223372036854775807 ", AsOfSnapshot(2**63 - 1)),
        ("2024-01-01", AsOfTime(1_704_067_200_000_000)),
        ("2024-01-01T00:00:00", AsOfTime(1_704_067_200_000_000)),
        ("2024-01-01 00:00:00Z", AsOfTime(1_704_067_200_000_000)),
        ("2024-01-01T02:00:00.000001+02:00", AsOfTime(1_704_067_200_000_001)),
        ("1969-12-31T23:59:59.5Z", AsOfTime(-500_000)),
        (CUT.to_text(), AsOfCut(CUT)),
        (json.dumps({"cut": CUT.to_text()}), AsOfCut(CUT)),
        (json.dumps({"cut": json.loads(CUT.to_text())}), AsOfCut(CUT)),
        ("{}", AsOfCut(Cut({}))),
    ],
)
def test_what_a_user_may_give(text: str, expected: object) -> None:
    assert parse_as_of(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "now", "-1", "1.5", "٣", "99999999999999999999999", "2024-13-01", "{", "[]", '{"cut": 1}',
     '{"market.trades": {}}', '{"market.trades": {"snapshot": 1, "next": {"c": {"t": {"0": -1}}}}}', "{" * 100_000,
     '{"a":' * 50_000,
     '{"cut": "x"}', "0" * 2_000_000],
)  # fmt: skip
def test_anything_else_is_refused_in_one_sentence_with_the_forms(text: str) -> None:
    with pytest.raises(InvalidStatement, match="give the id of a snapshot") as caught:
        parse_as_of(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


# -- what they mean


def log_of(*snapshots: PartitionOffsets | None, folder: Path) -> tuple[CommitLog, list[int], Past]:
    """A log of one commit after the other, at 1,010 ms, 1,020 ms and so on, and their ids."""
    past = Past(folder)
    ids = [past.commit(offsets) for offsets in snapshots]
    log = CommitLog()
    log.update(past.table)
    return log, ids, past


def test_a_snapshot_is_any_one_that_is_known(tmp_path: Path) -> None:
    log, ids, past = log_of(at(p0=1), at(p0=2), None, folder=tmp_path)
    assert table_cut(T, AsOfSnapshot(ids[1]), log) == TableCut(ids[1], at(p0=2))
    assert table_cut(T, AsOfSnapshot(ids[2]), log) == TableCut(ids[2], at(p0=2))
    with pytest.raises(
        SnapshotNotFound, match=r"no snapshot 9; the oldest one that is known is of 1970-01-01T00:00:01\.010Z"
    ):
        table_cut(T, AsOfSnapshot(9), log)
    with pytest.raises(SnapshotNotFound, match="none was committed yet"):
        table_cut(T, AsOfSnapshot(9), CommitLog())
    past.expire({ids[0], ids[1]})
    log.update(past.table)
    with pytest.raises(SnapshotNotFound, match="nobody knows"):
        table_cut(T, AsOfSnapshot(ids[2]), log)


@pytest.mark.parametrize(
    ("time_us", "expected"),
    [(1_009_999, None), (1_010_000, 0), (1_019_999, 0), (1_020_000, 1), (1_039_999, 0), (10**15, 2)],
)
def test_a_time_is_the_snapshot_that_was_current_then(tmp_path: Path, time_us: int, expected: int | None) -> None:
    _, ids, past = log_of(at(p0=1), at(p0=2), folder=tmp_path)
    past.rollback(ids[0])  # at 1,030 ms
    ids.append(past.commit(at(p0=3)))
    log = CommitLog()
    log.update(past.table)
    assert table_cut(T, AsOfTime(time_us), log).snapshot_id == (None if expected is None else ids[expected])


def test_before_the_first_snapshot_the_table_was_empty_if_that_is_known(tmp_path: Path) -> None:
    log, ids, past = log_of(at(p0=1), at(p0=2), at(p0=3), folder=tmp_path)
    assert table_cut(T, AsOfTime(999), log) == TableCut(None, PartitionOffsets())
    assert table_cut(T, AsOfTime(999), CommitLog()) == TableCut(None, PartitionOffsets())
    past.expire({ids[0]})
    log.update(past.table)
    with pytest.raises(SnapshotExpired, match=r"before 1970-01-01T00:00:01\.020Z that a foreign tool expired"):
        table_cut(T, AsOfTime(999), log)
    assert table_cut(T, AsOfTime(1_020_000), log).snapshot_id == ids[1]


def test_a_cut_says_it_itself() -> None:
    assert table_cut(T, AsOfCut(CUT)) == CUT.tables[T]
    with pytest.raises(SnapshotNotFound, match=r"nothing about market\.quotes, only about market\.trades"):
        table_cut("market.quotes", AsOfCut(CUT))


def test_the_past_of_a_real_table(tmp_path: Path) -> None:
    lake = LakeSettings.load(data_dir=tmp_path)
    lake.prepare()
    source = Histories(lake)
    assert source.table_cut(TRADES, AsOfTime(10**15)) == TableCut(None, PartitionOffsets())
    table = IcebergTable.open(lake, TRADES)
    ids, times = [], []
    for number in range(6):
        base, to = at(p0=number), at(p0=number + 1)
        rows = table_rows("trade", [trade(number)], first_offset=number)
        ids.append(table.append(rows, base, to, f"commit-{number}"))
        times.append(table.iceberg_table.metadata.snapshot_log[-1].timestamp_ms * 1_000)

    def check() -> None:
        for number, snapshot_id in enumerate(ids):
            assert source.table_cut(TRADES, AsOfSnapshot(snapshot_id)).offsets == at(p0=number + 1)
            assert source.table_cut(TRADES, AsOfTime(times[number])).offsets == at(p0=number + 1)
            cut = TableCut(snapshot_id, at(p0=number + 1))
            source.check_complete(TRADES, cut, ids[-1])
            assert source.columns(TRADES, cut, table_schema("trade")) is None
        assert source.table_cut(TRADES, AsOfTime(0)).offsets == PartitionOffsets()

    check()
    assert expire_snapshots(table, ExpiryPolicy(snapshots_kept_min=2), 10**18) == 4
    check()
    table.iceberg_table.maintenance.expire_snapshots().by_ids(ids[4:5]).commit()
    check()  # what a foreign tool expires had been recorded


# -- the condition


def rows_at(wanted: PartitionOffsets, now: PartitionOffsets, topic_ids: set[str] | None = None) -> list[Any]:
    """The condition's answer on a table that has every offset below `now`."""
    condition = condition_at(T, TableCut(1, wanted), TableCut(2, now), topic_ids)
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t (_kafka_topic VARCHAR, _kafka_partition INTEGER, _kafka_offset BIGINT)")
        for partition, until in now.items():
            for offset in range(until):
                row = [partition.topic_id[-8:], partition.partition, offset]
                connection.execute("INSERT INTO t VALUES (?, ?, ?)", row)
        return sorted(connection.execute(f"SELECT * FROM t WHERE {condition}").fetchall())


SMALL = st.dictionaries(st.sampled_from([P0, P1, OTHER]), st.integers(0, 4)).map(PartitionOffsets)


@settings(max_examples=50, deadline=None)
@given(SMALL, SMALL)
def test_the_condition_gives_exactly_the_rows_below_the_cut(wanted: PartitionOffsets, more: PartitionOffsets) -> None:
    now = wanted.advanced(more)
    assert rows_at(wanted, now) == sorted(
        (partition.topic_id[-8:], partition.partition, offset)
        for partition, until in wanted.items()
        for offset in range(until)
    )


@given(SMALL, SMALL)
def test_what_the_server_does_not_have_is_refused(wanted: PartitionOffsets, now: PartitionOffsets) -> None:
    try:
        condition_at(T, TableCut(1, wanted), TableCut(2, now), {"topic-id-1"})
    except K2Error as error:
        assert not now.covers(wanted)
        gone = wanted.next_offset(OTHER) > now.next_offset(OTHER)
        assert isinstance(error, SnapshotExpired if gone and wanted.next_offset(P0) <= now.next_offset(P0)
                          and wanted.next_offset(P1) <= now.next_offset(P1) else Unavailable)  # fmt: skip
    else:
        assert now.covers(wanted)


def test_a_cut_ahead_may_be_tried_again_and_one_of_another_cluster_may_not() -> None:
    with pytest.raises(Unavailable, match=r"up to offset 3.*reaches to 4; try again") as ahead:
        condition_at(T, TableCut(1, at(p0=4)), TableCut(2, at(p0=3)))
    assert ahead.value.retryable
    elsewhere = PartitionOffsets({KafkaPartition("elsewhere", "topic-id-1", 0): 1})
    with pytest.raises(SnapshotExpired, match="Kafka cluster elsewhere") as foreign:
        condition_at(T, TableCut(1, elsewhere), TableCut(2, at(p0=3)))
    assert not foreign.value.retryable
    with pytest.raises(SnapshotExpired, match="the topic is gone"):
        condition_at(T, TableCut(1, at(other=2)), TableCut(2, at(p0=3, other=1)), {"topic-id-1"})


def test_nothing_of_a_cut_becomes_sql() -> None:
    evil = KafkaPartition("cluster", "x' OR '1'='1", 0)
    condition = condition_at(T, TableCut(1, PartitionOffsets({evil: 1})), TableCut(2, PartitionOffsets({evil: 1})))
    assert condition == "(_kafka_topic = 'R ''1''=''1' AND _kafka_partition = 0 AND _kafka_offset < 1)"


def test_the_empty_cut_has_no_rows() -> None:
    assert condition_at(T, TableCut(None, PartitionOffsets()), TableCut(2, at(p0=3))) == "false"
