"""Pure: reading at a cut. What a user names (a cut, a snapshot, a time) as positions, and positions as a condition.

Rule 9 of the design: every row carries its offset, so the table at a cut is, in whatever newer view, the rows below the
cut's next offset of their partition. Nothing of the old snapshot or of the old tail is needed for it. What this server
does not have up to there is refused; a part is never given as the whole.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

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


@dataclass(frozen=True)
class Commit:
    """One snapshot that is kept: when it was committed, and its next offsets; None when nobody knows them any more."""

    snapshot_id: int
    committed_us: int
    offsets: PartitionOffsets | None


@dataclass(frozen=True)
class History:
    """The snapshots of a table that are kept.

    `current_since` are those that were the table's current one, in that order, as they became it. `is_whole` when the
    first of them is the first that ever was: before it the table was empty.
    """

    kept: Sequence[Commit]
    current_since: Sequence[Commit]
    is_whole: bool


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


def table_cut(table: str, as_of: AsOf, history: History | None = None) -> TableCut:
    """The positions of one table. `history` is needed for a snapshot and for a time.

    A time means the snapshot that was current then. Raises SnapshotNotFound.
    """
    if isinstance(as_of, AsOfCut):
        named = as_of.cut.tables.get(table)
        if named is None:
            raise SnapshotNotFound(
                f"this cut says nothing about {table}, only about {', '.join(sorted(as_of.cut.tables)) or 'no table'}; "
                f"take one from a result of a server that has {table}"
            )
        return named
    if history is None:
        raise SnapshotNotFound(f"{table} has no snapshots; {_FORMS}")
    if isinstance(as_of, AsOfSnapshot):
        found = next((commit for commit in history.kept if commit.snapshot_id == as_of.snapshot_id), None)
        what = f"no snapshot {as_of.snapshot_id}"
    else:
        past = [commit for commit in history.current_since if commit.committed_us <= as_of.time_us]
        if not past and history.is_whole:
            return TableCut(None, PartitionOffsets())
        found = past[-1] if past else None
        what = f"no snapshot any more of {_iso(as_of.time_us)}"
    if found is None:
        oldest = min((commit.committed_us for commit in history.kept), default=None)
        since = "; none was committed yet" if oldest is None else f"; the oldest one that is kept is of {_iso(oldest)}"
        raise SnapshotNotFound(f"{table} has {what}{since}; cuts stay readable after their snapshots expired")
    if found.offsets is None:
        raise SnapshotNotFound(
            f"nobody knows any more which offsets the snapshot {found.snapshot_id} of {table} holds: a foreign tool "
            "made it, and those before it expired; name another one"
        )
    return TableCut(found.snapshot_id, found.offsets)


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


def _iso(time_us: int) -> str:
    seconds, micros = divmod(time_us, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros).isoformat().replace("+00:00", "Z")
