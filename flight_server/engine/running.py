"""One statement that runs: its result batch by batch, and an end that gives everything back whatever happens.

A running statement holds its place: a cursor and, when it reads tables, an open transaction, which pins its cut. The
place is left exactly once: at the end of the result, on an error, on cancel, on timeout, when the reader closes, or
when the session's next statement needs the connection. Every method may be called from any thread; only one at a
time may read.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence

import duckdb
import pyarrow as pa

from common.errors import InvalidStatement, K2Error, LimitExceeded, StatementCancelled, Unavailable
from flight_server.engine.errors import translated
from flight_server.engine.places import Place
from flight_server.engine.planner import Values
from flight_server.engine.shapes import check_unsigned, in_utc, sliced, unsigned_columns, without_dictionaries

#: A larger result is not worth keeping: it takes longer to send than to find.
ENTRY_BYTES_MAX = 256 * 1024

#: Called once at the end: status word, rows, bytes.
OnEnd = Callable[[str, int, int], None]

#: How often an error that the engine lost is looked for.
_SEARCHES = 3


class RunningStatement:
    """The result of one execution. Iterate it, or `close` it; both end it."""

    def __init__(
        self,
        *,
        text: str,
        runs: Sequence[Values],
        schema: pa.Schema | None,
        place: Place,
        text_on: Callable[[duckdb.DuckDBPyConnection], str] | None = None,
        is_same: bool = False,
        rows_max: int,
        bytes_max: int,
        on_end: OnEnd,
        result_bytes_max: int | None = None,
        keep: Callable[[list[pa.RecordBatch]], None] | None = None,
    ) -> None:
        """`runs` are the parameter sets, one execution each, all at the same cut; `schema` is what was promised, None
        when nothing was and the result is taken as it comes. `text_on` gives the text to be run in place of `text` once
        the cut is fixed, which may take part in it; `is_same` when `text` would do as well. `keep` is given the whole
        of a small result that was read to its end."""
        self._schema = schema
        self._text = text
        self._text_on = text_on
        self._plain_text = text if is_same else None
        self._runs = runs
        self._place = place
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._result_bytes_max = result_bytes_max
        self._on_end = on_end
        self._keep = keep
        self._kept: list[pa.RecordBatch] = []
        self._cursor: duckdb.DuckDBPyConnection | None = None
        self._reason: K2Error | None = None
        self._ended = False
        self._is_abandoned: Callable[[], bool] | None = None
        self._values: Values = ()
        self._rows = 0
        self._bytes = 0
        # _use: held while the cursor works. _state: held for the moments in which the fields above change.
        self._use = threading.Lock()
        self._state = threading.Lock()
        self._batches: Iterator[pa.RecordBatch] = iter(())

    @property
    def schema(self) -> pa.Schema:
        """The schema of the result; known from the start, or from `start` on when none was promised."""
        assert self._schema is not None
        return self._schema

    @property
    def cut(self) -> str | None:
        """The text form of the cut that the result is of, once started; None for a statement that reads no tables."""
        return self._place.cut

    # -- running

    def start(self, is_abandoned: Callable[[], bool] | None = None) -> None:
        """Enter the place, which fixes the cut, and start the first execution.

        Blocks until the engine has something to give, which for an aggregate is all of its work. `is_abandoned` is
        asked now and then whether anybody still waits for it, never after `start` has returned. Raises our errors.
        """
        self._is_abandoned = is_abandoned
        try:
            self._start()
        finally:
            with self._state:
                self._is_abandoned = None

    def _start(self) -> None:
        with self._guarded():
            cursor = self._place.enter(self, lambda: self._reason is not None)
            with self._state:
                ended = self._ended
                self._cursor = None if ended else cursor
            if ended:  # cancelled before it had begun: nobody else gives the place back
                self._place.leave(cursor, ok=True)
            self._check()
            if self._text_on is not None:
                self._text = self._text_on(cursor)
            readers = self._execute(cursor)
            first = next(readers, None)
            self._batches = self._cut_to_size(first, readers)

    def read(self) -> pa.RecordBatch | None:
        """The next batch, None at the end. Raises our errors; after one, or after the end, nothing is held any more."""
        if self._reason is not None:
            self.close()
            raise self._reason
        with self._guarded():
            batch = next(self._batches, None)
            self._check()
        if batch is None:
            self._end("ok")
            if self._keep is not None:
                self._keep(self._kept)
            return None
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._keep is not None:
            self._kept.append(batch)
            if self._bytes > ENTRY_BYTES_MAX:
                self._keep, self._kept = None, []
        if self._result_bytes_max is not None and self._bytes > self._result_bytes_max:
            raise self._fail(
                LimitExceeded(
                    f"the result is larger than the {self._result_bytes_max:,} bytes that K2_FLIGHT_RESULT_BYTES_MAX "
                    "allows; select less, or in parts"
                )
            )
        return batch

    def gather(self, bytes_max: int, timeout_s: float) -> bool | None:
        """Take the rest of the result into memory and leave the place, so that another statement can have it.

        False when it is larger than `bytes_max`: then all is as before. None when the statement was at work for all of
        `timeout_s`.
        """
        if not self._use.acquire(timeout=timeout_s):
            return None
        try:
            cursor = self._cursor
            if cursor is None:
                return True
            kept: list[pa.RecordBatch] = []
            size = 0
            try:
                for batch in self._batches:
                    kept.append(batch)
                    size += batch.nbytes
                    if size > bytes_max:
                        self._batches = itertools.chain(kept, self._batches)
                        return False
            except Exception as error:  # noqa: BLE001  (it is raised again where the reader comes to it)
                self._batches = itertools.chain(kept, _raising(error))
                ok = False
            else:
                self._batches = iter(kept)
                ok = self._reason is None
            with self._state:
                self._cursor = None
            self._place.leave(cursor, ok=ok)
            return True
        finally:
            self._use.release()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            while (batch := self.read()) is not None:
                yield batch
        finally:
            self.close()

    # -- ending

    def cancel(self, reason: K2Error | None = None) -> None:
        """Stop soon: the reader gets `reason`, the first one given. Returns at once; nothing stays held, read or not.

        May be said again: an interrupt that meets the engine just before its work begins is lost.
        """
        with self._state:
            if self._ended:
                return
            if self._reason is None:
                self._reason = reason or StatementCancelled("the statement was cancelled")
            if self._cursor is not None:
                self._cursor.interrupt()
        # Nobody at work in the engine: end here, for the reader may be blocked by its client for ever.
        if self._use.acquire(blocking=False):
            self._use.release()
            self._end("cancelled")

    def close(self) -> None:
        """Give everything back; a statement that was not read to its end counts as cancelled. Idempotent."""
        with self._state:
            if self._ended:
                return
            if self._cursor is not None and self._use.locked():
                self._cursor.interrupt()
        self._end("cancelled")

    def is_abandoned(self) -> bool:
        """True when the statement is being started and nobody waits for it any more."""
        with self._state:
            return self._is_abandoned is not None and self._is_abandoned()

    def late(self, now_s: float) -> K2Error | None:
        """None: its deadline is the only time that it has."""
        return None

    @property
    def is_cancelled(self) -> bool:
        """True once somebody has asked it to stop."""
        return self._reason is not None

    @property
    def ended(self) -> bool:
        return self._ended

    def _end(self, status: str) -> None:
        with self._state:
            if self._ended:
                return
            # From here on no interrupt of ours can reach the cursor, which may soon be another statement's.
            self._ended = True
            interrupted = self._reason is not None
        with self._use:
            self._batches = iter(())
            cursor, self._cursor = self._cursor, None
            if cursor is not None:
                self._place.leave(cursor, ok=status == "ok" and not interrupted)
        self._on_end(type(self._reason).__name__ if self._reason is not None else status, self._rows, self._bytes)

    # -- inside

    def _guarded(self) -> _Guard:
        return _Guard(self)

    def _check(self) -> None:
        """An interrupt that came before the engine was at work is lost: ask for the reason after each step instead."""
        if self._reason is not None:
            raise self._reason

    def _fail(self, error: BaseException) -> BaseException:
        """What the reader is to see for `error`; ends the statement."""
        ours = self._reason or translated(error)
        if isinstance(ours, StatementCancelled) and self._reason is None and not self._ended:
            ours = self._lost_cause(ours)
        if isinstance(ours, InvalidStatement) and self._plain_text not in (None, self._text):
            # What DuckDB quotes behind its sentence is the text that was run, not the one that was sent.
            ours = InvalidStatement(str(ours).partition("\n\nLINE ")[0])
        self._end(type(ours).__name__)
        return ours

    def _lost_cause(self, cancelled: StatementCancelled) -> BaseException:
        """What stopped the statement, when the engine says that it was interrupted and nobody did so.

        When one of the engine's threads fails it interrupts the others, and now and then (1 in 250 measured) their
        interrupt is reported in place of its error. Running it again, to nobody, finds the error; the deadline holds.
        """
        with self._use:
            for _ in range(_SEARCHES):
                if self._cursor is None:
                    break
                try:
                    if not self._place.restart(self._cursor):
                        break
                    if self._text_on is not None:
                        self._text = self._text_on(self._cursor)
                    for _batch in self._cursor.execute(self._text, self._values or None).to_arrow_reader(
                        self._rows_max
                    ):
                        self._check()
                except (duckdb.Error, OSError, K2Error) as again:
                    found = self._reason or translated(again)
                    if self._reason is not None or not isinstance(found, StatementCancelled):
                        return found
        return cancelled

    def _execute(self, cursor: duckdb.DuckDBPyConnection) -> Iterator[pa.RecordBatchReader]:
        """One reader per parameter set, each with the promised schema."""
        for values in self._runs:
            self._values = values
            result = cursor.execute(self._text, values or None)
            reader = result.to_arrow_reader(self._rows_max)
            self._check()
            if self._schema is not None and reader.schema.equals(self._schema):
                yield reader
                continue
            found = without_dictionaries(reader.schema)
            if self._plain_text is not None and found.names != self.schema.names:
                # A column that has no name of its own is called by how it is written, tables and all.
                self._text, self._plain_text = self._plain_text, None
                reader = cursor.execute(self._text, values or None).to_arrow_reader(self._rows_max)
                found = without_dictionaries(reader.schema)
            if self._schema is None:
                self._schema = in_utc(found)
            # Of several parameter sets one may hold a null where others hold a value: those are cast to the promise.
            if not in_utc(found).equals(self.schema) and (len(self._runs) == 1 or found.names != self.schema.names):
                raise _schema_changed(self.schema, found)
            yield reader

    def _cast(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        try:
            return batch.cast(self.schema)
        except pa.ArrowException:
            raise InvalidStatement(
                "the parameter sets give results of different types "
                f"({_differences(self.schema, batch.schema)}); cast the parameters, as in ?::DECIMAL(18,8)"
            ) from None

    def _cut_to_size(
        self, first: pa.RecordBatchReader | None, rest: Iterator[pa.RecordBatchReader]
    ) -> Iterator[pa.RecordBatch]:
        reader = first
        unsigned = unsigned_columns(self.schema) if reader is not None else []
        while reader is not None:
            as_promised = reader.schema.equals(self.schema)
            for batch in reader:
                self._check()
                check_unsigned(batch, unsigned)
                if not as_promised:
                    batch = self._cast(batch)
                yield from sliced(batch, rows_max=self._rows_max, bytes_max=self._bytes_max)
            reader = next(rest, None)


def _raising(error: Exception) -> Iterator[pa.RecordBatch]:
    raise error
    yield


class TablesChanged(Unavailable):
    """A result has another schema than was promised: the plan is older than the tables."""


class _Guard:
    """Holds the cursor's lock for one step; an exception inside ends the statement and comes out as ours."""

    def __init__(self, statement: RunningStatement) -> None:
        self._statement = statement

    def __enter__(self) -> None:
        self._statement._use.acquire()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._statement._use.release()
        if error is not None:
            ours = self._statement._fail(error)
            if ours is not error:
                raise ours from None


def _schema_changed(promised: pa.Schema, found: pa.Schema) -> K2Error:
    return TablesChanged(
        f"the tables changed since the statement was planned ({_differences(promised, found)}); run it again"
    )


def _differences(promised: pa.Schema, found: pa.Schema) -> str:
    changed = [
        f"{name} is {there} instead of {was}"
        for name, was, there in zip(promised.names, promised.types, found.types, strict=False)
        if was != there
    ]
    return "; ".join(changed) or "the columns have other names or another number"
