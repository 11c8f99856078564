"""Many small files of a partition become few large ones, sorted as the table is.

Guarantee: the table has the same rows before and after, at every moment and for every reader: a group of files gives
way to its rewritten rows in one snapshot (Iceberg's `replace`), or stays. The files that gave way are not deleted here;
snapshots that have them are read as before until they expire.

Safe beside writers and other jobs: see `replace_files`. Each group is a commit of its own, so what was done stays done
whenever the rest is interrupted; files that were written and not committed are deleted, or are orphans after a kill.
Memory is bounded by rows: a small group is sorted at once, a large one is merged from its sorted files, batch by batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.manifest import DataFile
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.transforms import DayTransform

from common.errors import CommitConflict, MaintenanceError, Overtaken
from common.iceberg import translated
from common.schemas.arrow import FIELD_ID_KEY, plain, widened
from sink.layout import DataFileWriter, file_schema, in_order, partition_key, sort_columns
from sink.maintenance.jobs import UNWATCHED, MaintainedTable, Progress, Report, counted, in_bytes
from sink.maintenance.replace import LiveFile, given_up, live_files, replace_files


@dataclass(frozen=True)
class CompactionPolicy:
    """When files become one, and how large.

    In a partition that is still written to, files are gathered by size: once `fan_out` of them are of one power of
    `fan_out` or less, they become one. So of n commits about fan_out * log(n) files are there, and a row is written
    anew log(n) times, to the base `fan_out`. A partition whose day has been over for `settled_h` hours is made of as
    few files as may be; but a large file is not written anew for the sake of a small one, only for files that together
    have a `fan_out`th of its size.
    """

    target_bytes: int = 128 * 1024**2
    fan_out: int = 8
    settled_h: float = 1.0
    #: A group has no more files than this.
    files_max: int = 200
    #: So many rows are held in memory at once; a trade takes 190 bytes there.
    rows_in_memory_max: int = 1_000_000

    #: Files of less are of one size: opening them is what they cost.
    small_bytes: ClassVar[int] = 256 * 1024
    #: Files of this share of the target are large enough.
    full_share: ClassVar[float] = 0.75


@dataclass(frozen=True)
class Candidate:
    """What planning knows of a file: `partition` names the spec and its values, `is_sorted` is by the table's order."""

    path: str
    partition: tuple[int, tuple[object, ...]]
    sequence_number: int
    rows: int
    nbytes: int
    is_sorted: bool = True


@dataclass(frozen=True)
class CompactionReport(Report):
    """`groups_yielded` were changed by another job meanwhile, `groups_left` hold files whose columns are not the
    table's."""

    job: ClassVar[str] = "compact"

    groups: int = 0
    files_before: int = 0
    files_after: int = 0
    rows: int = 0
    before_nbytes: int = 0
    after_nbytes: int = 0
    groups_yielded: int = 0
    groups_left: int = 0

    def to_text(self) -> str:
        if not self.groups and not self.groups_yielded and not self.groups_left:
            return "nothing to compact"
        before = f"{counted(self.files_before, 'file')} of {in_bytes(self.before_nbytes)}"
        if self.dry_run:
            return f"would compact {before} in {counted(self.groups, 'commit')}"
        text = f"{before} became {counted(self.files_after, 'file')} of {in_bytes(self.after_nbytes)}"
        if self.groups_yielded:
            text += f"; {counted(self.groups_yielded, 'group')} left to another job that was first"
        if self.groups_left:
            text += f"; {counted(self.groups_left, 'group')} of other columns left as it is"
        return text


# -- what to do


def plan(
    candidates: Sequence[Candidate], policy: CompactionPolicy, settled: frozenset[tuple[int, tuple[object, ...]]]
) -> list[tuple[Candidate, ...]]:
    """The groups of files that are to become one each, or as few as the target size allows. Pure.

    `settled` are the partitions that are not written to any more. No file is in two groups, a group is of one
    partition, and the files of a group follow each other in the order in which they came in.
    """
    by_partition: dict[tuple[int, tuple[object, ...]], list[Candidate]] = {}
    for candidate in candidates:
        if candidate.nbytes < policy.full_share * policy.target_bytes and candidate.rows:
            by_partition.setdefault(candidate.partition, []).append(candidate)
    groups = []
    for partition, found in by_partition.items():
        chosen = _worth_it(found, policy) if partition in settled else _of_a_size(found, policy)
        groups += _bins(chosen, policy)
    return groups


def _of_a_size(files: Sequence[Candidate], policy: CompactionPolicy) -> list[Candidate]:
    """The smallest files, as far as there are enough of a size; see CompactionPolicy."""
    tiers: dict[int, list[Candidate]] = {}
    for file in files:
        tiers.setdefault(_tier(file.nbytes, policy), []).append(file)
    chosen: list[Candidate] = []
    smaller: list[Candidate] = []
    for tier in sorted(tiers):
        made = 1 if chosen and _tier(sum(file.nbytes for file in chosen), policy) >= tier else 0
        smaller += tiers[tier]
        if len(tiers[tier]) + made >= policy.fan_out:
            chosen, smaller = chosen + smaller, []
    return chosen


def _tier(nbytes: int, policy: CompactionPolicy) -> int:
    tier, limit = 0, policy.small_bytes
    while nbytes >= limit:
        tier, limit = tier + 1, limit * policy.fan_out
    return tier


def _worth_it(files: Sequence[Candidate], policy: CompactionPolicy) -> list[Candidate]:
    """The smallest files, up to one that is too large to be written anew for the sake of those before it."""
    chosen: list[Candidate] = []
    total = 0
    for file in sorted(files, key=lambda each: (each.nbytes, each.path)):
        if chosen and file.nbytes > max(policy.fan_out * total, policy.small_bytes):
            break
        chosen.append(file)
        total += file.nbytes
    return chosen


def _bins(files: Sequence[Candidate], policy: CompactionPolicy) -> list[tuple[Candidate, ...]]:
    """The files, in the order in which they came in, in groups of about the target size; none of a single file."""
    bins: list[list[Candidate]] = [[]]
    for file in sorted(files, key=lambda each: (each.sequence_number, each.path)):
        if not file.is_sorted and file.rows > policy.rows_in_memory_max:
            continue  # it cannot be merged, and does not fit
        here = bins[-1]
        together = [*here, file]
        fits_in_memory = sum(each.rows for each in together) <= policy.rows_in_memory_max
        fits = (
            sum(each.nbytes for each in here) + file.nbytes <= policy.target_bytes
            and len(together) <= policy.files_max
            and (fits_in_memory or all(each.is_sorted for each in together))
        )
        if here and not fits:
            bins.append([])
        bins[-1].append(file)
    return [tuple(found) for found in bins if len(found) > 1]


def settled_partitions(
    metadata: TableMetadata, candidates: Sequence[Candidate], policy: CompactionPolicy, now_us: int
) -> frozenset[tuple[int, tuple[object, ...]]]:
    """The partitions whose day is over, as the policy has it. Those of a spec without a day never are. Pure."""
    over = datetime.fromtimestamp(now_us / 1e6, UTC) - timedelta(hours=policy.settled_h)
    day = (over.date() - datetime(1970, 1, 1, tzinfo=UTC).date()).days
    specs = metadata.specs()
    found = set()
    for partition in {candidate.partition for candidate in candidates}:
        spec_id, values = partition
        for field, value in zip(specs[spec_id].fields, values, strict=True):
            if isinstance(field.transform, DayTransform) and isinstance(value, int) and value < day:
                found.add(partition)
    return frozenset(found)


def candidate_of(live: LiveFile, metadata: TableMetadata) -> Candidate:
    """The file as planning sees it. Files of PyIceberg's own writer do not say how they are sorted."""
    file, order = live.file, metadata.default_sort_order_id
    schema = metadata.schema()
    is_sorted = not order or (
        file.sort_order_id == order and all(schema.find_field(name).required for name in sort_columns(metadata))
    )
    return Candidate(
        live.path, live.partition, live.sequence_number, file.record_count, file.file_size_in_bytes, is_sorted
    )


# -- doing it


def compact(
    table: MaintainedTable,
    policy: CompactionPolicy,
    now_us: int,
    *,
    progress: Progress = UNWATCHED,
    dry_run: bool = False,
) -> CompactionReport:
    """Rewrite the small files of the table as of now, group by group, each a commit of its own.

    Raises Refused (delete files of a foreign tool), Interrupted, CatalogError, CommitStateUnknown; groups that were
    committed by then are done, and nothing else has changed.
    """
    table.reload()
    metadata = table.iceberg_table.metadata
    live = {file.path: file for file in live_files(table)}
    candidates = [candidate_of(file, metadata) for file in live.values()]
    groups = plan(candidates, policy, settled_partitions(metadata, candidates, policy, now_us))
    if dry_run:
        planned = [file for group in groups for file in group]
        return CompactionReport(
            table.name,
            dry_run,
            len(groups),
            len(planned),
            0,
            sum(file.rows for file in planned),
            sum(file.nbytes for file in planned),
        )
    done: list[tuple[tuple[Candidate, ...], list[DataFile]]] = []
    yielded = left = 0
    progress.step(f"compact {table.name}", sum(file.rows for group in groups for file in group))
    for group in groups:
        try:
            written = _rewrite(table, metadata, [live[file.path] for file in group], policy, progress)
        except (Overtaken, CommitConflict):
            yielded += 1
            continue
        if written is None:
            left += 1
        else:
            done.append((group, written))
    return CompactionReport(
        table.name,
        dry_run,
        groups=len(done),
        files_before=sum(len(group) for group, _ in done),
        files_after=sum(len(written) for _, written in done),
        rows=sum(file.rows for group, _ in done for file in group),
        before_nbytes=sum(file.nbytes for group, _ in done for file in group),
        after_nbytes=sum(file.file_size_in_bytes for _, written in done for file in written),
        groups_yielded=yielded,
        groups_left=left,
    )


def _rewrite(
    table: MaintainedTable,
    metadata: TableMetadata,
    group: Sequence[LiveFile],
    policy: CompactionPolicy,
    progress: Progress,
) -> list[DataFile] | None:
    """Write the group's rows anew and commit; None when its files have columns that are not the table's. Those that
    were written before the table got a column have nulls there afterwards. Raises as `compact`, Overtaken and
    CommitConflict too; what was written is deleted then."""
    io, first = table.iceberg_table.io, group[0].file
    schema, order = file_schema(metadata.schema()), sort_columns(metadata)
    written: list[DataFile] = []
    with given_up(io, written):
        with translated(f"rewrite data files of {table.name}"), contextlib.ExitStack() as opened:
            files = [pq.ParquetFile(opened.enter_context(io.new_input(file.path).open())) for file in group]
            if not all(_fits(file.schema_arrow, schema) for file in files):
                return None
            key = partition_key(metadata, first.spec_id, first.partition)
            writers = _Writers(lambda: DataFileWriter(io, metadata, schema, key), policy.target_bytes, written)
            with writers:
                for rows in _merged(files, schema, order, policy.rows_in_memory_max):
                    writers.write(rows)
                    progress.advance(rows.num_rows)
        had, has = (sum(file.record_count for file in each) for each in ([live.file for live in group], written))
        if had != has:
            raise MaintenanceError(
                f"{len(group)} data files of {table.name} have {has} rows, but their manifests say {had}: nothing was "
                "changed; run `k2 tables verify --deep`"
            )
        replace_files(table, [file.path for file in group], written)
    return written


class _Writers:
    """Files of the target size, one behind the other. What is not finished at an error is removed."""

    def __init__(self, begin: Callable[[], DataFileWriter], target_bytes: int, written: list[DataFile]) -> None:
        self._begin = begin
        self._target_bytes = target_bytes
        self._written = written
        self._writer: DataFileWriter | None = None

    def __enter__(self) -> None:
        return None

    def write(self, rows: pa.Table) -> None:
        self._writer = self._writer or self._begin()
        self._writer.write(rows)
        if self._writer.nbytes >= self._target_bytes:
            self._finish()

    def _finish(self) -> None:
        if self._writer is not None:
            self._written.append(self._writer.close())
            self._writer = None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            if self._writer is not None:
                self._writer.abort()


def _fits(found: pa.Schema, schema: pa.Schema) -> bool:
    """Whether a file's columns are all of the table's that cannot be null, and others of the table's."""
    columns = {_column(field) for field in schema}
    needed = {_column(field) for field in schema if not field.nullable}
    return needed <= {_column(field) for field in found} <= columns


def _column(field: pa.Field) -> tuple[str, str, bytes | None]:
    return field.name, str(plain(field).type), (field.metadata or {}).get(FIELD_ID_KEY)


# -- rows of several files in one order


def _merged(
    files: Sequence[pq.ParquetFile], schema: pa.Schema, order: Sequence[str], rows_max: int
) -> Iterator[pa.Table]:
    """All rows of the files, each of which is sorted or all of which fit into `rows_max`, in order, piece by piece."""
    if not order:
        for file in files:
            for batch in file.iter_batches(batch_size=rows_max):
                yield _rows(batch, schema)
    elif sum(file.metadata.num_rows for file in files) <= rows_max:
        yield in_order(pa.concat_tables([_whole(file, schema) for file in files]), order)
    else:
        # Of each file there is a batch in memory, and once more what is taken out of all of them.
        batch_rows = max(1, rows_max // (2 * len(files)))
        runs = [_Run(file.iter_batches(batch_size=batch_rows), schema, order) for file in files]
        while runs := [run for run in runs if run.fill()]:
            bound = min(run.last() for run in runs)
            yield in_order(pa.concat_tables([run.take_until(bound) for run in runs]), order)


def _whole(file: pq.ParquetFile, schema: pa.Schema) -> pa.Table:
    rows = file.read()
    return pa.concat_tables([_rows(batch, schema) for batch in rows.to_batches()] or [schema.empty_table()])


def _rows(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_batches([widened(batch, schema)]).cast(schema)


class _Run:
    """The rows of a sorted file, batch by batch."""

    def __init__(self, batches: Iterator[pa.RecordBatch], schema: pa.Schema, order: Sequence[str]) -> None:
        self._batches = batches
        self._schema = schema
        self._order = order
        self._held = schema.empty_table()

    def fill(self) -> bool:
        """Have rows in memory; False when there are no more."""
        while not self._held.num_rows:
            batch = next(self._batches, None)
            if batch is None:
                return False
            self._held = _rows(batch, self._schema)
        return True

    def last(self) -> tuple[Any, ...]:
        """The sort key of the last row in memory: whatever comes later is not before it."""
        return tuple(self._held.column(name)[-1].as_py() for name in self._order)

    def take_until(self, bound: tuple[Any, ...]) -> pa.Table:
        """The rows in memory up to this sort key, those that have it included."""
        within: Any = True
        for name, value in reversed(list(zip(self._order, bound, strict=True))):
            column = self._held.column(name)
            limit = pa.scalar(value, column.type)
            within = pc.or_(pc.less(column, limit), pc.and_(pc.equal(column, limit), within))
        count = int(pc.sum(within).as_py() or 0)
        taken, self._held = self._held.slice(0, count), self._held.slice(count)
        return taken
