"""An export at work: planned once, then slice after slice by several threads, each on a connection of its own."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from clients.connection import Connection
from clients.errors import ClientError, QueryError
from clients.export.files import Compression, ExportFormat, Layout, SliceFiles
from clients.export.manifest import MANIFEST, DataFile, ExportError, Manifest, Request, data_files
from clients.export.plan import (
    DATE,
    ColumnLevel,
    DayLevel,
    Level,
    Slice,
    identifier,
    range_level,
    slices_of,
    split_candidates,
    time_columns,
)
from common.errors import Interrupted

#: What an interruption may cost is this many rows for each thread; what a slice costs beside its rows is some 50 ms.
SLICE_ROWS = 1_000_000
_SCRATCH, _LOCK = ".k2_export_scratch", ".k2_export_lock"
_WAIT_S_FIRST, _WAIT_S_MAX = 0.1, 5.0


@dataclass(frozen=True)
class ExportOptions:
    """`partition_by` are columns of the result, or `date`: the UTC day of its time. `split_by` is the caller's word
    that the statement gives the same rows each time, and the column to make slices of; without it only a statement is
    cut in slices of which the server says that it makes its rows one by one. `at` is the instant to read, as
    `Connection.arrow` takes it; None is now. A server that is away may be so for `resume_s_max` at a time."""

    format: ExportFormat = "parquet"
    compression: Compression | None = None
    partition_by: tuple[str, ...] = ()
    split_by: str | None = None
    parallel: int = 2
    at: str | None = None
    slice_rows: int = SLICE_ROWS
    resume_s_max: float = 60.0

    @property
    def codec(self) -> Compression:
        return self.compression or ("zstd" if self.format in ("parquet", "iceberg") else "none")


class Progress(Protocol):
    """What is told while it runs, from any thread."""

    def planned(self, manifest: Manifest) -> None:
        """How much there is, and how much of it is there already."""
        ...

    def read(self, rows: int) -> None:
        """So many rows more; fewer, where a slice has to be read again."""
        ...


class Silent:
    def planned(self, manifest: Manifest) -> None:
        pass

    def read(self, rows: int) -> None:
        pass


def export(
    connect: Callable[[], Connection],
    statement: str,
    folder: Path,
    options: ExportOptions | None = None,
    *,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Manifest:
    """All rows of the statement at one cut, as files in the folder, each row once; blocks until they are there.

    The same call goes on with an export that was interrupted, however it was, at the cut that it had; one that is
    complete is left as it is. `connect` makes a connection; each thread makes its own. `stop` ends it with Interrupted
    at the next batch. Raises QueryError and ConnectError, and ExportError: the folder has another export or is in use,
    the options do not fit the result, the statement did not give the rows that were counted, a file cannot be written.
    """
    options, progress, stop = options or ExportOptions(), progress or Silent(), stop or threading.Event()
    _check(options)
    with _files_are_written(folder), _locked(folder):
        manifest = _same(Manifest.load(folder), _request(statement, options), folder)
        if manifest is None:
            with connect() as connection:
                manifest = _planned(connection, _request(statement, options))
            _check_layout(manifest, options)
            manifest.save(folder)
        progress.planned(manifest)
        if manifest.complete:
            return manifest
        _sweep(folder, manifest)
        manifest = _Run(connect, folder, options, progress, stop, manifest).run()
        if options.format == "iceberg":
            from clients.export.local_iceberg import commit

            commit(folder, manifest)
        manifest = replace(manifest, complete=True, finished_at=_now())
        manifest.save(folder)
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
        return manifest


class _Run:
    """The slices that are not there yet, by several threads. The first error ends them all."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        folder: Path,
        options: ExportOptions,
        progress: Progress,
        stop: threading.Event,
        manifest: Manifest,
    ) -> None:
        self._connect, self._folder, self._options, self._progress = connect, folder, options, progress
        self._stop, self._manifest, self._lock = stop, manifest, threading.Lock()
        self._failed = threading.Event()
        self._local = threading.local()
        self._connections: list[Connection] = []

    def run(self) -> Manifest:
        waiting = [number for number in range(len(self._manifest.slices)) if number not in self._manifest.done]
        threads = ThreadPoolExecutor(max(1, min(self._options.parallel, len(waiting))), "k2-export")
        try:
            slices = [threads.submit(self._slice, number) for number in waiting]
            try:
                for each in as_completed(slices):
                    each.result()
            except BaseException:
                self._failed.set()
                raise
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
            for connection in self._connections:
                connection.close()
        return self._manifest

    def _slice(self, number: int) -> None:
        retrying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, ClientError) and error.retryable),
            stop=stop_after_delay(self._options.resume_s_max),
            wait=wait_random_exponential(multiplier=_WAIT_S_FIRST, max=_WAIT_S_MAX),
            sleep=self._pause,
            reraise=True,
        )
        files = retrying(self._read, number)
        with self._lock:
            self._manifest = self._manifest.with_slice(number, files)
            self._manifest.save(self._folder)

    def _read(self, number: int) -> list[DataFile]:
        self._check_stop()
        planned = self._manifest.slices[number]
        scratch = self._folder / _SCRATCH / f"{number:05d}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        files = SliceFiles(self._folder, scratch, number, _layout(self._manifest), self._manifest.schema)
        try:
            with self._connection().bulk(_sliced(self._manifest, planned), at=self._manifest.cut) as stream:
                if not stream.schema.equals(self._manifest.schema):
                    raise ExportError(
                        f"the columns of the result are other ones than when the export began ({stream.schema.names}); "
                        "export into another folder"
                    )
                for batch in stream:
                    self._check_stop()
                    files.add(batch)
                    self._progress.read(batch.num_rows)
            if planned.rows not in (None, files.rows):
                raise ExportError(
                    f"slice {number} ({planned.where}) had {planned.rows:,} rows when they were counted and "
                    f"{files.rows:,} when they were read: the statement does not give the same rows each time; write "
                    "it so that it does, or leave --split-by out"
                )
            return files.finish()
        except ClientError as error:
            self._progress.read(-files.rows)
            if error.retryable:
                self._let_go()
            raise

    def _connection(self) -> Connection:
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
            with self._lock:
                self._connections.append(connection)
        return connection

    def _let_go(self) -> None:
        connection: Connection | None = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None:
            connection.close()

    def _pause(self, seconds: float) -> None:
        self._failed.wait(seconds)

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Interrupted(
                f"stopped; {len(self._manifest.done)} of {len(self._manifest.slices)} slices are there, run the same "
                "command again to go on"
            )
        if self._failed.is_set():
            raise Interrupted("another part of the export failed")


# -- planning


def _planned(connection: Connection, request: Request) -> Manifest:
    """Fix the cut, and count what there is at it."""
    inner = f"({request.statement}\n) AS k2_export"
    with connection.stream(f"SELECT * FROM {inner} LIMIT 0", at=request.at) as stream:
        schema, cut = stream.schema, stream.cut
        stream.read_all()
    manifest = Manifest(uuid.uuid4().hex, request, cut, schema, (Slice(None, None),), created_at=_now())
    partitions = [name for name in request.partition_by if name in schema.names]
    candidates = split_candidates(schema) if request.split_by is None else [request.split_by]
    times = time_columns(schema)
    for name in (*partitions, *(candidates if request.split_by else ())):
        _check_column(schema, name)
    reason = _why_whole(connection, request, cut)
    if request.split_by is not None and cut is None:
        raise ExportError("--split-by needs a statement that reads tables of market, for only those have a cut")
    if reason is not None:
        date_of = times[0] if times and DATE not in schema.names and DATE in request.partition_by else None
        return replace(manifest, whole_because=reason, date_of=date_of)
    rows, known = _looked_at(connection, inner, schema, cut, (*candidates[:1], *times[:1]))
    if any(values < rows for *_, values in known.values()):
        # Rows without a value are in no range: another column may have more. Each is one more to be read.
        _, further = _looked_at(connection, inner, schema, cut, (*candidates[1:2], *times[1:2]))
        known |= further
    if DATE in request.partition_by and DATE not in schema.names:
        manifest = replace(manifest, date_of=_fullest(times, known))
    levels: list[Level] = []
    for name in request.partition_by:
        if name == DATE and manifest.date_of is not None:
            kind = schema.field(manifest.date_of).type
            levels.insert(0, DayLevel(manifest.date_of, kind.tz is not None))
        else:
            levels.append(ColumnLevel(name))
    split = _fullest(candidates, known)
    if rows > request.slice_rows and split is not None and known[split][2]:
        least, greatest, _ = (int(each) for each in known[split])
        levels.append(range_level(split, schema.field(split).type, least, greatest, -(-rows // request.slice_rows)))
    if rows <= request.slice_rows or not levels:
        return replace(manifest, slices=(Slice(None, rows),))
    values = ", ".join(f"{level.expression} AS k2_{place}" for place, level in enumerate(levels))
    order = ", ".join(f"k2_{place} NULLS LAST" for place in range(len(levels)))
    counted = connection.arrow(f"SELECT {values}, count(*) FROM {inner} GROUP BY ALL ORDER BY {order}", at=cut)
    counts = [(row[:-1], row[-1]) for row in zip(*(column.to_pylist() for column in counted.columns), strict=True)]
    return replace(manifest, slices=tuple(slices_of(levels, counts, request.slice_rows)))


def _looked_at(
    connection: Connection, inner: str, schema: pa.Schema, cut: str | None, columns: Sequence[str]
) -> tuple[int, dict[str, tuple[Any, Any, int]]]:
    """How many rows there are; and of each column the least and the greatest value, and how many there are."""
    names = list(dict.fromkeys(columns))
    bounds = "".join(f", {_bound('min', n, schema)}, {_bound('max', n, schema)}, count({identifier(n)})" for n in names)
    told = connection.arrow(f"SELECT count(*){bounds} FROM {inner}", at=cut)
    rows, *found = (column[0].as_py() for column in told.columns)
    return rows, {name: tuple(found[3 * place : 3 * place + 3]) for place, name in enumerate(names)}


def _why_whole(connection: Connection, request: Request, cut: str | None) -> str | None:
    """Why the statement is not to be cut in slices; None when it may be. Asked of the server: what it would follow, row
    by row as rows arrive, are the same rows whichever condition is put on them."""
    if request.split_by is not None:
        return None
    if cut is None:
        return "it reads no table that has a cut"
    try:
        connection.subscribe(request.statement, "now").close()
    except QueryError as error:
        return str(error)
    return None


def _bound(function: str, name: str, schema: pa.Schema) -> str:
    column = f"{function}({identifier(name)})"
    return f"epoch_us({column})" if pa.types.is_timestamp(schema.field(name).type) else column


def _fullest(names: list[str], known: dict[str, tuple[Any, Any, int]]) -> str | None:
    """The first of those that have the most values: the first without NULLs, if there is one."""
    return max((name for name in names if name in known), key=lambda name: known[name][2], default=None)


def _sliced(manifest: Manifest, planned: Slice) -> str:
    statement = manifest.request.statement
    return statement if planned.where is None else f"SELECT * FROM ({statement}\n) AS k2_export WHERE {planned.where}"


# -- what is checked


def _request(statement: str, options: ExportOptions) -> Request:
    return Request(
        statement.strip().rstrip("; \n\t"),
        options.at,
        options.format,
        options.codec,
        options.partition_by,
        options.split_by,
        options.slice_rows,
    )


def _check(options: ExportOptions) -> None:
    if options.format == "csv" and options.codec != "none":
        raise ExportError("csv is written without compression; leave --compression out")
    if options.format == "arrow" and options.codec == "snappy":
        raise ExportError("Arrow files are compressed with zstd or not at all; take --compression zstd")
    if len(set(options.partition_by)) != len(options.partition_by):
        raise ExportError(f"--partition-by names a column twice: {','.join(options.partition_by)}")


def _check_column(schema: pa.Schema, name: str) -> None:
    if schema.names.count(name) != 1:
        what = "no column" if name not in schema.names else "several columns"
        raise ExportError(f"the result has {what} {name!r}; it has {', '.join(schema.names)}")
    kind = schema.field(name).type
    plain = pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    if not (plain or pa.types.is_date32(kind) or pa.types.is_timestamp(kind) or pa.types.is_decimal(kind)):
        raise ExportError(f"{name} is {kind}: folders are made of texts, integers, dates, times and decimals")


def _check_layout(manifest: Manifest, options: ExportOptions) -> None:
    missing = [name for name in options.partition_by if name not in manifest.schema.names]
    if manifest.date_of is not None:
        missing.remove(DATE)
    if missing:
        also = "" if DATE in missing else f", and {DATE!r} where it has times"
        raise ExportError(
            f"the result has no column {missing[0]!r} to partition by; it has {', '.join(manifest.schema.names)}{also}"
        )
    if not len(_layout(manifest).stored(manifest.schema)):
        raise ExportError("every column is in --partition-by, so that no column is left for the files")
    if options.format == "iceberg":
        from clients.export.local_iceberg import check

        check(manifest)


def _layout(manifest: Manifest) -> Layout:
    request = manifest.request
    return Layout(request.format, request.compression, request.partition_by, manifest.date_of)  # type: ignore[arg-type]


def _same(manifest: Manifest | None, request: Request, folder: Path) -> Manifest | None:
    """The export that is there, if it is the one that is asked for. Raises ExportError when it is another."""
    if manifest is None:
        strangers = next(data_files(folder), None)
        if strangers is not None:
            raise ExportError(f"{strangers} is in the way and no {MANIFEST} names it; choose another folder")
        return None
    if manifest.request != request:
        had, wanted = asdict(manifest.request), asdict(request)
        other = next(name for name in had if had[name] != wanted[name])
        raise ExportError(
            f"{folder} holds an export with another {other.replace('_', ' ')} ({str(had[other])[:200]}); choose "
            "another folder, or give the same command to go on with that one"
        )
    return manifest


# -- the folder


def _sweep(folder: Path, manifest: Manifest) -> None:
    """Away with what an interrupted run left: files in the making, and those that were moved and not yet named."""
    shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
    named = {each.path for each in manifest.files}
    for path in data_files(folder):
        if path.relative_to(folder).as_posix() not in named:
            path.unlink()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder is this process's; the lock goes with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportError(f"another export is at work in {folder}; wait for it, or choose another folder") from None
        yield


@contextlib.contextmanager
def _files_are_written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        at = error.filename or folder
        raise ExportError(
            f"{at} cannot be written ({error.strerror or error}); mend that and run the same command again to go on"
        ) from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
