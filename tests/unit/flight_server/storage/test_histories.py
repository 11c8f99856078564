"""Whatever happened to a table, the past is what it was: against an oracle that remembers everything."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pyiceberg.table.snapshots import ancestors_of

from common.commit_files import CommitLog, record
from common.commits import HISTORY_KEY, HistoryList, has_number
from common.errors import SnapshotExpired, SnapshotNotFound
from common.iceberg import summary_entry
from common.offsets import SUMMARY_KEY, KafkaPartition, PartitionOffsets
from flight_server.storage.as_of import AsOfSnapshot, AsOfTime, check_complete, table_cut
from flight_server.storage.read_view import TableCut
from tests.support.past import Past

T = "market.trades"
P = [KafkaPartition("cluster", f"topic-id-{n}", n % 2) for n in range(3)]


class TableWithAPast(RuleBasedStateMachine):
    """K2 and foreign tools commit, roll back and expire; K2's expiry is interrupted between any two of its steps."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.past = Past(Path(self.folder.name))
        self.log = CommitLog()
        #: Snapshot -> what it had taken in.
        self.offsets: dict[int, PartitionOffsets] = {}
        #: (time, snapshot) of each time that another snapshot became the current one.
        self.became: list[tuple[int, int]] = []
        #: Snapshots that a foreign tool expired, or whose offsets it took by expiring others, before K2 recorded them.
        self.lost: set[int] = set()
        #: Whether one went that had become the current one again since K2 recorded it: that leaves no trace.
        self.lost_rollback = False
        #: Deletions of rows: (snapshot, from which offsets on, and None: from any).
        self.deleted: dict[int, PartitionOffsets | None] = {}
        #: Snapshots that deleted what the next one put back.
        self.half_way: dict[int, int] = {}
        #: Snapshot -> the snapshots that it comes from, itself included.
        self.from_: dict[int, set[int]] = {}

    def teardown(self) -> None:
        self.folder.cleanup()

    def _committed(self, snapshot_id: int, before: int | None, offsets: PartitionOffsets) -> None:
        self.offsets[snapshot_id] = offsets
        self.from_[snapshot_id] = {snapshot_id, *(self.from_[before] if before is not None else ())}
        if self.past.current_id == snapshot_id:
            self.became.append((self.past.now_ms, snapshot_id))

    def _stands(self) -> PartitionOffsets:
        current = self.past.current_id
        return PartitionOffsets() if current is None else self.offsets[current]

    @rule(moved=st.dictionaries(st.sampled_from(P), st.integers(1, 9), max_size=2), branch=st.booleans())
    def commit(self, moved: dict[KafkaPartition, int], branch: bool) -> None:
        stands, before = self._stands(), self.past.current_id
        to = stands.advanced({p: stands.next_offset(p) + n for p, n in moved.items()})
        branch = branch and before is not None
        self._committed(self.past.commit(to, branch=branch), before, to)

    @rule()
    def commit_foreign(self) -> None:
        before, stands = self.past.current_id, self._stands()
        self._committed(self.past.commit(None), before, stands)

    @precondition(lambda self: self.past.current_id is not None)
    @rule(data=st.data(), kind=st.sampled_from(["marked", "foreign", "rewrite"]))
    def delete(self, data: st.DataObject, kind: str) -> None:
        before, stands = self.past.current_id, self._stands()
        counts = {"deleted-records": "5", "added-records": "5" if kind == "rewrite" else "2"}
        from_ = None
        if kind == "marked":
            first = {p: data.draw(st.integers(0, n)) for p, n in stands.items() if data.draw(st.booleans())}
            from_ = PartitionOffsets(first)
            counts["k2.deleted-from"] = from_.to_text()
        offsets = None if kind == "foreign" else stands
        snapshot_id = self.past.commit(offsets, operation="overwrite", summary=counts)
        self._committed(snapshot_id, before, stands)
        if kind != "rewrite" and (from_ is None or from_):
            self.deleted[snapshot_id] = from_

    @precondition(lambda self: self.past.current_id is not None)
    @rule(by=st.sampled_from(["one tool", "the sink", "one tool that lost some"]))
    def delete_and_append(self, by: str) -> None:
        """A foreign tool that replaces all rows does so in two snapshots."""
        before, stands = self.past.current_id, self._stands()
        deletion = self.past.commit(None, operation="delete", summary={"deleted-records": "5"})
        self._committed(deletion, before, stands)
        added = {"added-records": "4" if by == "one tool that lost some" else "5"}
        to = stands.advanced({P[0]: stands.next_offset(P[0]) + 5}) if by == "the sink" else stands
        appended = self.past.commit(to if by == "the sink" else None, summary=added)
        self._committed(appended, deletion, to)
        if by != "one tool":
            self.deleted[deletion] = None
        else:
            self.half_way[deletion] = appended

    @precondition(lambda self: self.past.current_id is not None)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        ancestors = list(ancestors_of(self.past.metadata.current_snapshot(), self.past.metadata))
        target = data.draw(st.sampled_from([snapshot.snapshot_id for snapshot in ancestors]))
        # Not to between the two snapshots of one commit: docs/decisions/0014, what is not seen.
        if target != self.past.current_id and target not in self.half_way:
            self.past.rollback(target)
            self.became.append((self.past.now_ms, target))

    @rule()
    def drop_branches(self) -> None:
        self.past.without_branches()

    def _expiring(self, data: st.DataObject) -> set[int]:
        """What K2's policy could let go: see sink.maintenance.expiry.snapshots_to_expire."""
        held = set()
        for snapshot in ancestors_of(self.past.metadata.current_snapshot(), self.past.metadata):
            held.add(snapshot.snapshot_id)
            if summary_entry(snapshot, SUMMARY_KEY) is not None:
                break
        may_go = [snapshot_id for snapshot_id in self.past.expirable() if snapshot_id not in held]
        return set(data.draw(st.lists(st.sampled_from(may_go), unique=True))) if may_go else set()

    @rule(data=st.data(), until=st.sampled_from(["written", "lost race", "committed", "done", "done", "done"]))
    def expire(self, data: st.DataObject, until: str) -> None:
        going = self._expiring(data)
        if not going:
            return
        recorded = record(self.past.table)
        if until == "written":
            return
        if until == "lost race":
            if recorded is not None:
                recorded.discard()
            return
        self.past.expire(going, None if recorded is None else recorded.property_text)
        if recorded is not None and until == "done":
            recorded.landed()

    @rule(data=st.data())
    def expire_foreign(self, data: st.DataObject) -> None:
        going = self._expiring(data)
        history = HistoryList.from_text(self.past.metadata.properties.get(HISTORY_KEY))
        for snapshot in self.past.metadata.snapshots:
            recorded = has_number(history.known, snapshot.sequence_number or 0)
            needs = self.from_[snapshot.snapshot_id] if summary_entry(snapshot, SUMMARY_KEY) is None else set()
            if not recorded and going & (needs | {snapshot.snapshot_id}):
                self.lost.add(snapshot.snapshot_id)
        log = [(entry.snapshot_id, entry.timestamp_ms) for entry in self.past.metadata.snapshot_log]
        fresh = log[log.index(history.mark) + 1 :] if history.mark in log else log
        if going & {snapshot_id for snapshot_id, _ in fresh}:
            self.lost_rollback = True
        if going:
            self.past.expire(going)

    @invariant()
    def each_snapshot_is_what_it_was(self) -> None:
        self.log.update(self.past.table)
        for snapshot_id, offsets in self.offsets.items():
            try:
                assert table_cut(T, AsOfSnapshot(snapshot_id), self.log) == TableCut(snapshot_id, offsets)
            except SnapshotNotFound:
                assert self.lost & self.from_[snapshot_id]

    @invariant()
    def each_time_is_what_it_was(self) -> None:
        self.log.update(self.past.table)
        times = {0, self.past.now_ms + 5, *(time + by for time, _ in self.became for by in (-1, 0, 1))}
        for time_ms in times:
            then = [snapshot_id for at, snapshot_id in self.became if at <= time_ms]
            offsets = self.offsets[then[-1]] if then else PartitionOffsets()
            try:
                found = table_cut(T, AsOfTime(time_ms * 1_000 + 999), self.log)
            except (SnapshotExpired, SnapshotNotFound):
                assert self.lost
            else:
                if not self.lost and not self.lost_rollback:
                    assert found == TableCut(then[-1] if then else None, offsets)
                elif found.snapshot_id is not None:
                    assert found.offsets == self.offsets[found.snapshot_id]

    @invariant()
    def no_part_is_given_as_the_whole(self) -> None:
        self.log.update(self.past.table)
        current = self.past.current_id
        for snapshot_id, offsets in self.offsets.items() if current is not None else ():
            gone = any(
                from_ is None or any(offsets.next_offset(p) > first for p, first in from_.items())
                for deletion, from_ in self.deleted.items()
                if deletion in self.from_[current] and deletion not in self.from_[snapshot_id]
            ) or any(
                deletion in self.from_[current]
                and appended not in self.from_[current]
                and deletion not in self.from_[snapshot_id]
                for deletion, appended in self.half_way.items()
            )
            has_rows = any(offsets.values())
            try:
                check_complete(T, TableCut(snapshot_id, offsets), current, self.log)
            except SnapshotExpired:
                assert has_rows
                assert gone or self.lost or self._may_be_gone(snapshot_id)
            else:
                assert not (gone and has_rows)

    def _may_be_gone(self, snapshot_id: int) -> bool:
        """A deletion that was rolled back counts while nothing shows that it was."""
        return any(deletion not in self.from_[snapshot_id] for deletion in {*self.deleted, *self.half_way})


TestTableWithAPast = TableWithAPast.TestCase
TestTableWithAPast.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
