"""Pure: reading at a cut. What a user names (a cut, a snapshot, a time) as positions, and positions as a condition.

Rule 9 of the design: every row carries its offset, so the table at a cut is, in whatever newer view, the rows below the
cut's next offset of their partition. Nothing of the old snapshot or of the old tail is needed for it. What this server
does not have up to there is refused; a part is never given as the whole.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from common.commits import Commit, Loss, covers_between
from common.errors import InvalidStatement, K2Error, SnapshotExpired, SnapshotNotFound, Unavailable
from common.offsets import KafkaPartition, PartitionOffsets, topic_short
from flight_server.storage.read_view import Cut, TableCut, literal

#: A cut of a hundred topics of a hundred partitions has some 300 KB.
_TEXT_LENGTH_MAX = 1_000_000
_FORMS = (
    "give the id of a snapshot, a time such as 2026-11-24T12:00:00Z (without a zone it is UTC), or a cut as a result "
    "carries it in its app_metadata"
)


@dataclass(frozen=True)
class AsOfCut:
    """The instant of a result: what its cut names."""

    cut: Cut


@dataclass(frozen=True)
class AsOfSnapshot:
    """What one Iceberg snapshot had taken in."""

    snapshot_id: int


@dataclass(frozen=True)
class AsOfTime:
    """What had been committed at a time, in microseconds UTC."""

    time_us: int


AsOf = AsOfCut | AsOfSnapshot | AsOfTime


class Commits(Protocol):
    """The commits of a table, those of expired snapshots included; common.commit_files.CommitLog is the real one."""

    @property
    def known(self) -> Sequence[tuple[int, int]]:
        """The ranges of sequence numbers whose commits are known, both ends inclusive."""
        ...

    def by_id(self, snapshot_id: int) -> Commit | None:
        """The commit of a snapshot; None when nothing is known of it."""
        ...

    def around(self, time_ms: int) -> tuple[Commit | None, Commit | None]:
        """The commit that was current at a time, and the next one that was so, as far as they are known."""
        ...

    def unknown_ms(self) -> Sequence[tuple[int | None, int | None]]:
        """The stretches of time in which there were commits of which nothing is known."""
        ...

    def oldest_ms(self) -> int | None:
        """When the first commit was made that is known."""
        ...

    def losses(self, snapshot_id: int | None) -> Sequence[Loss]:
        """The deletions of rows that a kept snapshot may be behind."""
        ...


def parse_as_of(text: str) -> AsOf:
    """What `k2.as_of` and AT are given as text. Raises InvalidStatement with the forms that there are."""
    stripped = text.strip()
    if stripped.startswith("{") and len(stripped) <= _TEXT_LENGTH_MAX:
        return AsOfCut(_cut(stripped))
    if stripped.isascii() and stripped.isdigit() and len(stripped) <= 19:
        return AsOfSnapshot(int(stripped))
    try:
        time = datetime.fromisoformat(stripped)
    except ValueError:
        raise InvalidStatement(f"{text[:100]!r} is no instant of the past; {_FORMS}") from None
    aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    since = aware.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return AsOfTime((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def table_cut(table: str, as_of: AsOf, commits: Commits | None = None) -> TableCut:
    """The positions of one table. `commits` is needed for a snapshot and for a time; None: there is no table yet.

    A time means the snapshot that was current then. Raises SnapshotNotFound; SnapshotExpired where what is asked for
    may have been, and a foreign tool took what was known of it.
    """
    if isinstance(as_of, AsOfCut):
        named = as_of.cut.tables.get(table)
        if named is None:
            raise SnapshotNotFound(
                f"this cut says nothing about {table}, only about {', '.join(sorted(as_of.cut.tables)) or 'no table'}; "
                f"take one from a result of a server that has {table}"
            )
        return named
    if commits is None:
        raise SnapshotNotFound(f"{table} has no snapshots; {_FORMS}")
    if isinstance(as_of, AsOfTime):
        found = _current_at(table, as_of.time_us, commits)
        if found is None:
            return TableCut(None, PartitionOffsets())
    elif (found := commits.by_id(as_of.snapshot_id)) is None:
        oldest = commits.oldest_ms()
        since = "none was committed yet" if oldest is None else f"the oldest one that is known is of {_iso(oldest)}"
        raise SnapshotNotFound(
            f"{table} has no snapshot {as_of.snapshot_id}; {since}; name one of ops.commits, a cut or a time"
        )
    if found.offsets is None:
        raise SnapshotNotFound(
            f"nobody knows any more which offsets the snapshot {found.snapshot_id} of {table} holds: a foreign tool "
            "made it, and those before it expired; name another one"
        )
    return TableCut(found.snapshot_id, found.offsets)


def _current_at(table: str, time_us: int, commits: Commits) -> Commit | None:
    """The commit that was current at a time; None when the table was still empty."""
    time_ms = time_us // 1_000
    found, _ = commits.around(time_ms)
    since = None if found is None else found.current_ms
    for after, before in commits.unknown_ms():
        # One of the unknown commits may have been the current one: they were made after one time and before another.
        if (after is None or after <= time_ms) and (before is None or since is None or before > since):
            raise SnapshotExpired(
                f"{table} had snapshots{_between(after, before)} that a foreign tool expired before K2 had recorded "
                f"them, so nobody knows which was current at {_iso(time_ms)}; name another time, a snapshot or a cut"
            )
    return found


def check_complete(table: str, wanted: TableCut, now_id: int | None, commits: Commits) -> None:
    """Raise SnapshotExpired unless the snapshot `now_id` still has every row that the table had at the cut `wanted`.

    Rows go by deletions between both. What nobody can know counts as gone: a part is never given as the whole. Raises
    Unavailable when nothing is known of `now_id`.
    """
    if not any(wanted.offsets.values()):
        return
    then = None if wanted.snapshot_id is None else commits.by_id(wanted.snapshot_id)
    if now_id is None:
        return
    now = commits.by_id(now_id)
    if now is None:
        raise Unavailable(
            f"the snapshot {now_id} of {table} that is read now is not known, so what was deleted before it is not "
            "either; try again in a moment"
        )
    number = 0 if then is None else then.sequence_number
    for loss in sorted(commits.losses(now_id), key=lambda loss: loss.sequence_number):
        if number < loss.sequence_number <= now.sequence_number and loss.touches(wanted.offsets):
            by = commits.by_id(loss.snapshot_id)
            when = "" if by is None else f" at {_iso(by.committed_ms)}"
            raise SnapshotExpired(
                f"rows that {table} had at this instant were deleted since, by the snapshot {loss.snapshot_id}{when}; "
                "name an instant after it"
            )
    if not covers_between(commits.known, number, now.sequence_number):
        raise SnapshotExpired(
            f"{table} had snapshots after this instant that a foreign tool expired before K2 had recorded them, so "
            "nobody knows whether they deleted rows of it; name a later instant, and let only K2 expire snapshots"
        )


def condition_at(table: str, wanted: TableCut, now: TableCut, topic_ids: Collection[str] | None = None) -> str:
    """The SQL condition for the rows of `table` at the cut `wanted`, to be read in a view that stands at `now`.

    Partitions that the cut does not name are not in it. `topic_ids`: the topics that the server follows, if known.
    Raises Unavailable when this server has not come as far as the cut (it was taken from another one, or the tail is
    being read anew): the same statement may succeed a moment later. Raises SnapshotExpired when it never will: the rows
    are those of another Kafka cluster, or of a topic that is gone and took what was not committed along.
    """
    terms = []
    for partition, until in sorted(wanted.offsets.items()):
        if until == 0:
            continue
        check_has(table, partition, until, now.offsets, topic_ids)
        terms.append(
            f"(_kafka_topic = {literal(topic_short(partition.topic_id))} "
            f"AND _kafka_partition = {int(partition.partition)} AND _kafka_offset < {int(until)})"
        )
    return " OR ".join(terms) or "false"


def check_has(
    table: str,
    partition: KafkaPartition,
    until: int,
    has: PartitionOffsets,
    topic_ids: Collection[str] | None,
) -> None:
    """Raise as `condition_at` unless a server that `has` these offsets has a partition up to `until`."""
    if has.next_offset(partition) >= until:
        return
    where = f"partition {partition.partition} of topic {topic_short(partition.topic_id)}"
    check_cluster(table, partition, has)
    if topic_ids is not None and partition.topic_id not in topic_ids:
        raise SnapshotExpired(
            f"this cut of {table} reaches to offset {until} of {where}, which this server does not have: it has "
            f"{has.next_offset(partition)}, and the topic is gone, or so new that this server has not seen it"
        )
    raise Unavailable(
        f"this server has {where} of {table} up to offset {has.next_offset(partition)}, and the cut reaches to "
        f"{until}; try again in a moment"
    )


def check_cluster(table: str, partition: KafkaPartition, has: PartitionOffsets) -> None:
    """Raise SnapshotExpired when a table that `has` these offsets has nothing of the partition's cluster."""
    if has and all(known.cluster_id != partition.cluster_id for known in has):
        raise SnapshotExpired(
            f"this cut of {table} is of the Kafka cluster {partition.cluster_id[:64]}, and the table has nothing of "
            "it; take a cut from this server"
        )


def _cut(text: str) -> Cut:
    """From a cut's own text, or from the app_metadata that has it under `cut`."""
    try:
        tree = json.loads(text)
        if set(tree) == {"cut"}:
            text = tree["cut"] if isinstance(tree["cut"], str) else json.dumps(tree["cut"])
        return Cut.from_text(text)
    except (ValueError, TypeError, K2Error, RecursionError):
        raise InvalidStatement(f"{text[:100]!r} is no cut; {_FORMS}") from None


def _between(after: int | None, before: int | None) -> str:
    since = "" if after is None else f" after {_iso(after)}"
    return since + ("" if before is None else f" before {_iso(before)}")


def _iso(time_ms: int) -> str:
    since = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)
    return since.isoformat(timespec="milliseconds").replace("+00:00", "Z")
