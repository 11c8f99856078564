"""The sink's loop for one dataset, and nothing else: poll, decode, hold, and commit rows and offsets as one.

Guarantee: whatever step it dies at, a worker that starts again on the same table and log goes on so that each usable
record of the log is in the table exactly once, and each unusable one in the dead-letter topic at least once. It keeps
no state of its own: where to read on is what the table's newest snapshot says. Kafka's group offsets are not written;
nothing of K2 reads them, and how far the sink is shows in its metrics.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Generic, Protocol, TypeVar

import pyarrow as pa

from common.clock import Clock
from common.codec import DecodedBatch
from common.datasets import Dataset
from common.errors import CommitConflict, CommitStateUnknown
from common.log import ConsumerBatch, LogReader
from common.offsets import KafkaPartition, PartitionOffsets
from common.schemas.arrow import table_schema
from common.telemetry import correlation, get_logger
from sink.commit_policy import CommitPolicy
from sink.consumer import LogConsumer, Sources
from sink.dead_letters import DeadLetter, DeadLetterWriter, dead_letters_of

_log = get_logger("sink")
F = TypeVar("F")

#: How often a commit is tried again on a table that another writer changed without touching our offsets (maintenance).
_COMMIT_ATTEMPTS_MAX = 5
_POLL_WAIT_S_MAX = 0.1


class Table(Protocol[F]):
    """What the worker needs of a table; `sink.table.IcebergTable` is the real one, F its written, uncommitted files."""

    @property
    def snapshot_id(self) -> int | None: ...
    def committed_offsets(self) -> PartitionOffsets: ...
    def write(self, rows: pa.Table) -> F: ...
    def commit(self, files: F, base: PartitionOffsets, to: PartitionOffsets, commit_id: str) -> int: ...
    def landed(self, commit_id: str) -> bool: ...
    def discard(self, files: F) -> None: ...


class BatchDecoder(Protocol):
    """`common.codec.Decoder`."""

    def decode(self, batch: ConsumerBatch) -> DecodedBatch: ...


class Passed(Enum):
    """The points between two steps: what was just done when the hook is called."""

    POLLED = "messages polled"
    DECODED = "messages decoded and held"
    LETTERS_WRITTEN = "dead letters acknowledged"
    FILES_WRITTEN = "data files written"
    COMMITTED = "snapshot committed"


@dataclass(frozen=True)
class SinkStats:
    """One dataset's counters since the worker was made, as of the end of its last step.

    `rows_read` counts decoded rows, those read a second time after a recovery included. `read` is how far the log was
    read, `committed` how far the table has taken it in. The `_s` figures are seconds spent in each part of the loop.
    """

    dataset: str
    rows_read: int = 0
    rows_committed: int = 0
    rows_held: int = 0
    bytes_read: int = 0
    commits: int = 0
    dead_letters: int = 0
    conflicts: int = 0
    recoveries: int = 0
    holding: bool = False
    read: PartitionOffsets = field(default_factory=PartitionOffsets)
    committed: PartitionOffsets = field(default_factory=PartitionOffsets)
    snapshot_id: int | None = None
    poll_s: float = 0.0
    decode_s: float = 0.0
    write_s: float = 0.0
    commit_s: float = 0.0

    def drained(self, end_offsets: PartitionOffsets) -> bool:
        """True when every record below `end_offsets` is in a committed snapshot or in the dead-letter topic."""
        return not self.holding and self.read.advanced(self.committed).covers(end_offsets)


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
    the same incarnations. `hook` is called between any two steps: a test raises there to script a crash. `after_commit`
    is called behind each commit (maintenance); what it raises is the caller's.
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
        confirm: Callable[[Sources], bool] = lambda sources: True,
        poll_messages_max: int = 10_000,
        hook: Callable[[Passed], None] = lambda passed: None,
        after_commit: Callable[[], None] = lambda: None,
        new_commit_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._dataset = dataset
        self._sources = sources
        self._consumer = LogConsumer(reader)
        self._decoder = decoder
        self._table = table
        self._dead_letters = dead_letters
        self._policy = policy
        self._clock = clock
        self._confirm = confirm
        self._poll_messages_max = poll_messages_max
        self._hook = hook
        self._after_commit = after_commit
        self._new_commit_id = new_commit_id
        self._schema = table_schema(dataset.schema_name)
        self._seen: Sources | None = None
        self._committed = PartitionOffsets()
        self._held = _Held()
        self._in_order = False
        self.stats = SinkStats(dataset.name)

    def step(self) -> bool:
        """One bounded turn: poll once, hold what came, commit if due. True when messages came or a commit was made.

        Blocks for at most one poll (0.1 s) and one commit. Raises any K2Error of the log, the registry, the table or
        the dead letters; the next step then starts over from what the table says.
        """
        try:
            self._start_over_if_needed()
            self._in_order = False
            came = self._read()
            now_s = self._clock.monotonic_s()
            held = self._held
            due = self._policy.is_due(rows=held.rows, nbytes=held.nbytes, oldest_s=held.oldest_s, now_s=now_s)
            committed = due and self._commit()
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

    def close(self) -> None:
        """Give up the log; what is held is dropped and will be read again by the next worker."""
        self._consumer.close()
        self._dead_letters.close()

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
        self._seen = self._sources()
        self._consumer.seek(self._seen, committed)
        self._hold_log_starts()

    def _read(self) -> bool:
        """Poll, decode and hold; True when messages came."""
        self._follow_sources()
        began_s = self._clock.monotonic_s()
        wait_s = self._policy.wait_s(oldest_s=self._held.oldest_s, now_s=began_s, idle_s=_POLL_WAIT_S_MAX)
        consumer_batches = self._consumer.poll(self._poll_messages_max, wait_s)
        if not consumer_batches:
            return False
        polled_s = self._clock.monotonic_s()
        self._hook(Passed.POLLED)
        held = self._held
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
        """Take up topics that appeared since the last step, and let go of those that went."""
        sources = self._sources()
        if sources is self._seen:
            return
        before, self._seen = self._seen, sources
        if self._held.oldest_s is not None and self._consumer.assigned - sources.partitions().keys():
            self._start_over_on_new_topics()
            return
        appeared, gone = self._consumer.extend(sources, self._committed)
        if before is not None:
            self._tell_changes(before, sources, appeared, gone)
        self._hold_log_starts()

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

    def _commit(self) -> bool:
        """Make what is held part of the table; False when it was dropped instead, to be read again."""
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
            files = self._table.write(pa.Table.from_batches(held.batches, self._schema))
            written_s = self._clock.monotonic_s()
            self._hook(Passed.FILES_WRITTEN)
            landed = self._land(files, base, to)
            committed_s = self._clock.monotonic_s()
            if landed:
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
                self._held = _Held()
                self._committed = base.advanced(to)
                _log.debug("committed", dataset=self._dataset.name, rows=held.rows, dead_letters=len(held.letters))
                self._after_commit()
        return landed

    def _land(self, files: F, base: PartitionOffsets, to: PartitionOffsets) -> bool:
        """Commit the files; True when they are in the table. False when they are not and the worker started over."""
        commit_id = self._new_commit_id()
        for _attempt in range(_COMMIT_ATTEMPTS_MAX):
            try:
                self._table.commit(files, base, to, commit_id)
                return True
            except CommitConflict as conflict:
                self.stats = replace(self.stats, conflicts=self.stats.conflicts + 1)
                stands = self._table.committed_offsets()
                if any(stands.next_offset(p) != base.next_offset(p) for p in to):
                    # Rule 2: another writer landed these offsets, or some of them. Ours are no longer wanted.
                    _log.warning("another writer was first; reading on from the table", reason=conflict.message)
                    self._table.discard(files)
                    self._start_over(stands)
                    return False
            except CommitStateUnknown as unknown:
                _log.warning("commit outcome unknown; asking the table", reason=unknown.message)
                if self._table.landed(commit_id):
                    return True
                # Rule 3: nothing is deleted. Should it land after all, the fence lets no other one land on `base`.
                self._start_over(self._table.committed_offsets())
                return False
        self._table.discard(files)
        raise CommitConflict(
            f"the table {self._dataset.table} was changed by others {_COMMIT_ATTEMPTS_MAX} times during one commit; "
            "is a maintenance job running in a loop?"
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
            snapshot_id=self._table.snapshot_id,
        )


def _moved(base: PartitionOffsets, positions: PartitionOffsets) -> PartitionOffsets:
    """The positions that differ from the base: all that a commit has to say."""
    return PartitionOffsets({p: n for p, n in positions.items() if n != base.next_offset(p)})
