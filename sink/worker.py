"""The sink's loop for one dataset, and nothing else: poll, decode, hold, and commit rows and offsets as one.

Guarantee: whatever step it dies at, a worker that starts again on the same table and log goes on so that each usable
record of the log is in the table exactly once, and each unusable one in the dead-letter topic at least once. It keeps
no state of its own: where to read on is what the table's newest snapshot says. Several workers may share a table's
partitions by a consumer group; who is wrong about what is his, a zombie, finds the table moved on and lands nothing.
Kafka's group offsets are written behind each commit for tools that show lag; nothing of K2 reads them.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Set
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Generic, Protocol, TypeVar

import pyarrow as pa

from common.clock import Clock
from common.codec import DecodedBatch
from common.datasets import Dataset
from common.errors import K2Error
from common.log import ConsumerBatch, LogReader, Share
from common.offsets import KafkaPartition, PartitionOffsets
from common.schemas.arrow import joined_rows, table_schema
from common.telemetry import correlation, get_logger
from sink.commit_policy import CommitPolicy
from sink.consumer import GroupMember, LogConsumer, Sources
from sink.dead_letters import DeadLetter, DeadLetterWriter, dead_letters_of
from sink.landing import Landing, Table
from sink.load import FULL, Allowance
from sink.stats import SinkStats

_log = get_logger("sink")
F = TypeVar("F")

_POLL_WAIT_S_MAX = 0.1
#: While files are written, a poll waits no longer than this: then they may be done.
_READ_ON_WAIT_S = 0.005


class BatchDecoder(Protocol):
    """`common.codec.Decoder`."""

    def decode(self, batch: ConsumerBatch) -> DecodedBatch: ...


class Passed(Enum):
    """The points between two steps: what was just done when the hook is called."""

    POLLED = "messages polled"
    DECODED = "messages decoded and held"
    LETTERS_WRITTEN = "dead letters acknowledged"
    FILES_WRITTEN = "data files written"
    MANIFESTS_WRITTEN = "manifests written"
    COMMITTED = "snapshot committed"
    OFFSETS_NOTED = "offsets noted in Kafka"


@dataclass
class _Held:
    """What was read and is not committed yet; all of it lands, or is read again."""

    batches: list[pa.RecordBatch] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    rows: int = 0
    nbytes: int = 0
    oldest_s: float | None = None


class SinkWorker(Generic[F]):
    """One dataset's loop over one table. One thread at a time; `stats` may be read from any.

    `sources` tells, without blocking, what there is to read now. `confirm` asks the log whether those topics are still
    the same incarnations. `member` says which partitions are this worker's; None means all. `wait` passes the time
    between two tries of a commit. `note_offsets` tells Kafka's group how far the table is, and does not fail. `hook` is
    called between any two steps: a test raises there to script a crash. `after_commit` is called behind each commit
    (maintenance); what it raises is the caller's. `aside`, if given, writes the data files while this thread reads on.
    `allowed` says at each step what may be done under load; what may not be read now is read later.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        sources: Callable[[], Sources],
        reader: LogReader,
        decoder: BatchDecoder,
        table: Table[F],
        dead_letters: DeadLetterWriter,
        policy: CommitPolicy,
        clock: Clock,
        wait: Callable[[float], object],
        member: GroupMember | None = None,
        note_offsets: Callable[[Mapping[Share, int]], None] = lambda next_offsets: None,
        confirm: Callable[[Sources], bool] = lambda sources: True,
        poll_messages_max: int = 10_000,
        hook: Callable[[Passed], None] = lambda passed: None,
        after_commit: Callable[[], None] = lambda: None,
        new_commit_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        aside: Executor | None = None,
        allowed: Callable[[], Allowance] = lambda: FULL,
    ) -> None:
        self._dataset = dataset
        self._sources = sources
        self._consumer = LogConsumer(reader)
        self._decoder = decoder
        self._table = table
        self._dead_letters = dead_letters
        self._policy = self._full_policy = policy
        self._allowed = allowed
        self._allowance = FULL
        self._clock = clock
        self._wait = wait
        self._member = member
        self._note_offsets = note_offsets
        self._confirm = confirm
        self._poll_messages_max = poll_messages_max
        self._hook = hook
        self._after_commit = after_commit
        self._aside = aside
        self._landing = Landing(
            table,
            clock,
            wait,
            manifests_written=lambda: hook(Passed.MANIFESTS_WRITTEN),
            new_commit_id=new_commit_id,
        )
        self._schema = table_schema(dataset.schema_name)
        self._found: Sources | None = None
        self._seen: Sources | None = None
        self._shares: Set[Share] = frozenset()
        self._doubtful = False
        self._committed = PartitionOffsets()
        self._held = _Held()
        self._in_order = False
        self.stats = SinkStats(dataset.name)

    def step(self) -> bool:
        """One bounded turn: poll once, hold what came, commit if due. True when messages came or a commit was made.

        Blocks for at most one poll (0.1 s) and one commit, or two when partitions go. Raises any K2Error of the log,
        the registry, the table, the group or the dead letters; the next step then starts over from what the table says.
        """
        try:
            self._start_over_if_needed()
            self._in_order = False
            self._serve_group()
            self._heed_load()
            came = self._read()
            committed = self._is_due() and self._commit(read_on=self._aside if self._allowance.reads_on else None)
            self._in_order = True
            return came or committed
        finally:
            self._note()

    def flush(self) -> bool:
        """Commit what is held, without reading more. True when nothing is held any more. Raises as `step`."""
        try:
            if not self._in_order:
                return False
            self._in_order = False
            if self._held.oldest_s is not None:
                self._commit()
            self._in_order = True
            return self._held.oldest_s is None
        finally:
            self._note()

    @property
    def has_first_partition(self) -> bool:
        """Whether partition 0 of the first topic is this worker's; of the workers of a group it is one's, or for a
        moment none's. Without a group always, in one without topics never. May be read from any thread.
        """
        found = self._found
        if self._member is None or found is None or not found.topics:
            return self._member is None
        return Share(min(found.topics), 0) in self._shares

    def close(self) -> None:
        """Give up the log; what is held is dropped and will be read again by the next worker."""
        self._consumer.close()
        if self._member is not None:
            self._member.close()
        self._dead_letters.close()
        if self._aside is not None:
            self._aside.shutdown()

    def _start_over_if_needed(self) -> None:
        """At first, and after anything that went wrong: drop what is held and read on from where the table stands."""
        if self._in_order:
            return
        if self._seen is not None:
            self.stats = replace(self.stats, recoveries=self.stats.recoveries + 1)
        self._start_over(self._table.committed_offsets())

    def _start_over(self, committed: PartitionOffsets) -> None:
        self._held = _Held()
        self._committed = committed
        first = self._found is None
        self._found = self._sources()
        self._seen = self._ours(self._found)
        if first:
            self._tell_new_sources(self._found, committed)
        self._consumer.seek(self._seen, committed)
        self._hold_log_starts()

    def _ours(self, sources: Sources) -> Sources:
        return sources if self._member is None else sources.shared(self._shares)

    def _serve_group(self) -> None:
        """Hear which partitions are this worker's now. What is held of those that go is committed if it can be."""
        if self._member is None:
            return
        self._doubtful = False
        self._member.follow(self._sources().topics)
        shares = self._member.serve(self._give_up)
        if shares != self._shares:
            _log.info("partitions shared out", dataset=self._dataset.name, ours=len(shares), before=len(self._shares))
            self.stats = replace(self.stats, rebalances=self.stats.rebalances + 1)
        self._shares = frozenset(shares)
        if self._doubtful:
            self._start_over(self._table.committed_offsets())

    def _give_up(self, going: Set[Share], lost: bool) -> None:
        """Partitions go to another worker; lost: they may be another's already, for all this one was last heard of."""
        if self._held.oldest_s is None:
            return
        if lost:
            _log.warning(
                "this sink was away for too long and its partitions are others' now; what it held is dropped",
                dataset=self._dataset.name,
                partitions=len(going),
                rows=self._held.rows,
            )
            self._doubtful = True
            return
        try:
            self._commit()
        except K2Error as error:
            _log.warning(
                "what was held of partitions that go could not be committed; whoever has them now reads it again",
                dataset=self._dataset.name,
                reason=error.message,
            )
            self._doubtful = True

    def _heed_load(self) -> None:
        """Rest, go on, commit less at a time: as is allowed now."""
        allowance = self._allowed()
        if allowance != self._allowance:
            self._allowance = allowance
            self._policy = self._full_policy.shared(allowance.commit_share)
        if allowance.reads:
            self._consumer.go_on()
        else:
            self._consumer.rest()

    def _is_due(self) -> bool:
        """Whether to commit what is held now; who rests holds nothing for long."""
        held, now_s = self._held, self._clock.monotonic_s()
        if self._consumer.resting and held.oldest_s is not None:
            return True
        return self._policy.is_due(rows=held.rows, nbytes=held.nbytes, oldest_s=held.oldest_s, now_s=now_s)

    def _read(self) -> bool:
        """Poll, decode and hold; True when messages came."""
        self._follow_sources()
        if self._consumer.resting:
            if self._held.oldest_s is None:
                self._wait(_POLL_WAIT_S_MAX)
            return False
        now_s = self._clock.monotonic_s()
        wait_s = self._policy.wait_s(oldest_s=self._held.oldest_s, now_s=now_s, idle_s=_POLL_WAIT_S_MAX)
        # Behind the first message the age bound runs, and no turn is needed for each that comes before it is over.
        return self._read_into(self._held, wait_s, fill=self._held.oldest_s is not None)

    def _read_into(self, held: _Held, wait_s: float, *, fill: bool = False) -> bool:
        began_s = self._clock.monotonic_s()
        consumer_batches = self._consumer.poll(self._poll_messages_max, wait_s, fill=fill)
        if not consumer_batches:
            return False
        polled_s = self._clock.monotonic_s()
        self._hook(Passed.POLLED)
        rows, nbytes = 0, 0
        for consumer_batch in consumer_batches:
            decoded = self._decoder.decode(consumer_batch)
            if decoded.record_batch.num_rows:
                held.batches.append(decoded.record_batch)
            held.letters += dead_letters_of(consumer_batch, decoded.errors)
            rows += decoded.record_batch.num_rows
            nbytes += consumer_batch.nbytes
        decoded_s = self._clock.monotonic_s()
        held.rows += rows
        held.nbytes += nbytes
        if held.oldest_s is None:
            held.oldest_s = polled_s
        self.stats = replace(
            self.stats,
            rows_read=self.stats.rows_read + rows,
            bytes_read=self.stats.bytes_read + nbytes,
            poll_s=self.stats.poll_s + polled_s - began_s,
            decode_s=self.stats.decode_s + decoded_s - polled_s,
        )
        self._hook(Passed.DECODED)
        return True

    def _follow_sources(self) -> None:
        """Take up partitions that appeared, or became this worker's, since the last step; let go of those that went."""
        found = self._sources()
        if found is self._found and (self._member is None or (self._seen and self._seen.shares == self._shares)):
            return
        before, self._found = self._found, found
        self._seen = self._ours(found)
        present = self._seen.partitions().keys()
        if self._held.oldest_s is not None and self._consumer.assigned - present:
            self._start_over_on_new_topics()
            return
        if self._member is not None and present - self._consumer.assigned:
            self._committed = self._others_moved_on()
        appeared, gone = self._consumer.extend(self._seen, self._committed)
        if before is not None and before is not found:
            self._tell_changes(before, found, appeared, gone)
        self._hold_log_starts()

    def _others_moved_on(self) -> PartitionOffsets:
        """Where the table stands now; for partitions that are being read, where it stood when that began."""
        stands, reading = self._table.committed_offsets(), self._consumer.assigned
        kept = {p: n for p, n in self._committed.items() if p in reading}
        return PartitionOffsets({p: n for p, n in stands.items() if p not in reading} | kept)

    def _start_over_on_new_topics(self) -> None:
        """A topic was deleted, or made anew, since what is held was read: drop it all and read again what is there.

        Clients fetch by the topic's name, so records of the new incarnation may have come at the old one's positions
        before anybody knew. Committed, they would be in the table twice: once under each topic id.
        """
        _log.warning(
            "a topic was deleted or made anew while records of it were held; they are dropped, the log is read again",
            dataset=self._dataset.name,
            rows=self._held.rows,
        )
        self._start_over(self._table.committed_offsets())

    def _hold_log_starts(self) -> None:
        """Where retention was quicker than the first sink, the table shall say soon where it begins, rows or none."""
        starts = self._seen.log_starts if self._seen is not None else PartitionOffsets()
        positions = self._consumer.positions()
        skipped = {p: n for p, n in starts.items() if n and p not in self._committed and positions.get(p) == n}
        if skipped and self._held.oldest_s is None:
            _log.warning(
                "the log no longer holds its first records; the table begins behind them",
                dataset=self._dataset.name,
                first_offsets=PartitionOffsets(skipped).to_text(),
            )
            self._held.oldest_s = self._clock.monotonic_s()

    def _commit(self, *, read_on: Executor | None = None) -> bool:
        """Make what is held part of the table; False when it was dropped instead, to be read again.

        With `read_on` the files are written there, and what was read meanwhile is held behind the commit.
        """
        if self._seen is None or not self._confirm(self._seen):
            self._start_over_on_new_topics()
            return False
        held, base = self._held, self._committed
        to = _moved(base, self._consumer.positions())
        assert to or not held.rows, "rows are held, so positions must have moved"
        with correlation(None):
            began_s = self._clock.monotonic_s()
            self._dead_letters.write(held.letters)
            self._hook(Passed.LETTERS_WRITTEN)
            files, ahead = self._write(joined_rows(held.batches, self._schema), read_on)
            written_s = self._clock.monotonic_s()
            self._hook(Passed.FILES_WRITTEN)
            stands = self._land(files, base, to)
            committed_s = self._clock.monotonic_s()
            if stands is not None:
                self._start_over(stands)
                return False
            self._hook(Passed.COMMITTED)
            stats = self.stats
            self.stats = replace(
                stats,
                rows_committed=stats.rows_committed + held.rows,
                commits=stats.commits + 1,
                dead_letters=stats.dead_letters + len(held.letters),
                write_s=stats.write_s + written_s - began_s,
                commit_s=stats.commit_s + committed_s - written_s,
            )
            self._held = ahead
            self._committed = base.advanced(to)
            self._note_offsets(self._seen.by_name(to))
            self._hook(Passed.OFFSETS_NOTED)
            _log.debug("committed", dataset=self._dataset.name, rows=held.rows, dead_letters=len(held.letters))
            self._after_commit()
        return True

    def _write(self, rows: pa.Table, read_on: Executor | None) -> tuple[F, _Held]:
        """The files, and what was read while they were written: as much as the next commit may hold.

        Where reading fails, nothing of this turn is to land: the files go, for what was read is in doubt.
        """
        ahead = _Held()
        if read_on is None or not rows.num_rows:
            return self._table.write(rows), ahead
        writing = read_on.submit(copy_context().run, self._table.write, rows)
        try:
            while not writing.done() and not self._is_full(ahead):
                self._read_into(ahead, _READ_ON_WAIT_S)
        except K2Error:
            self._table.discard(writing.result())
            raise
        return writing.result(), ahead

    def _is_full(self, held: _Held) -> bool:
        now_s = held.oldest_s or 0.0
        return self._policy.is_due(rows=held.rows, nbytes=held.nbytes, oldest_s=held.oldest_s, now_s=now_s)

    def _land(self, files: F, base: PartitionOffsets, to: PartitionOffsets) -> PartitionOffsets | None:
        try:
            return self._landing.land(files, base, to, others=self._member is not None)
        finally:
            self.stats = replace(self.stats, conflicts=self._landing.conflicts)

    def _tell_new_sources(self, sources: Sources, committed: PartitionOffsets) -> None:
        """At the start: what is new to a table that knows other clusters or topics already begins at its beginning."""
        clusters = {partition.cluster_id for partition in committed}
        if not clusters or not sources.topics:
            return
        if sources.cluster_id not in clusters:
            _log.warning(
                "the table was filled from another Kafka cluster; all topics of this one are read as new sources",
                dataset=self._dataset.name,
                cluster_id=sources.cluster_id,
                known=sorted(clusters),
            )
            return
        known = {partition.topic_id for partition in committed if partition.cluster_id == sources.cluster_id}
        gone = known - {info.topic_id for info in sources.topics.values()}
        for name, info in sources.topics.items():
            if info.topic_id not in known:
                _log.warning(
                    "a topic is new to the table: it is read from its beginning, as a new source"
                    + ("; topics that the table was filled from are gone, so it may have been made anew" * bool(gone)),
                    topic=name,
                    topic_id=info.topic_id,
                )

    def _tell_changes(
        self, before: Sources, now: Sources, appeared: set[KafkaPartition], gone: set[KafkaPartition]
    ) -> None:
        if before.cluster_id and before.cluster_id != now.cluster_id:
            _log.warning("another Kafka cluster answers now", was=before.cluster_id, cluster_id=now.cluster_id)
        for name, info in now.topics.items():
            was = before.topics.get(name)
            if was is not None and was.topic_id != info.topic_id:
                _log.warning("a topic was made anew: it is read as a new source", topic=name, topic_id=info.topic_id)
        _log.info(
            "sources changed", dataset=self._dataset.name, partitions_new=len(appeared), partitions_gone=len(gone)
        )

    def _note(self) -> None:
        """What others may see of this worker, at the end of each step."""
        held = self._held
        self.stats = replace(
            self.stats,
            rows_held=held.rows,
            holding=held.oldest_s is not None or not self._in_order,
            read=self._consumer.positions() if self._in_order else PartitionOffsets(),
            committed=self._committed,
            partitions=len(self._consumer.assigned),
            resting=self._consumer.resting,
            snapshot_id=self._table.snapshot_id,
        )


def _moved(base: PartitionOffsets, positions: PartitionOffsets) -> PartitionOffsets:
    """The positions that differ from the base: all that a commit has to say."""
    return PartitionOffsets({p: n for p, n in positions.items() if n != base.next_offset(p)})
