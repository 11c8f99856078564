"""SUBSCRIBE: a query's rows as they arrive, each once, in the order of offsets within a partition, without an end.

Guarantee: a subscription stands at a cut. Each batch has exactly the rows of its query between the cut before and the
one that comes with it, so whoever goes on from the cut of the last batch that came, misses no row and sees none twice.

It reads a stretch at a time, each in a short transaction of its own that is over before the batch is handed on: a
reader that is slow, or gone, holds no rows in memory and no place among the statements, but one batch and its thread.
While it keeps up, a stretch lies in the tail's memory and no file is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from common.clock import Clock
from common.errors import K2Error, LimitExceeded, SnapshotExpired, StatementCancelled, TailGap, Unavailable
from common.offsets import PartitionOffsets, offsets_between, slice_end
from common.settings import FlightSettings
from flight_server.engine.admission import Admission
from flight_server.engine.control import Subscribe
from flight_server.engine.cursors import CursorPool
from flight_server.engine.errors import translated
from flight_server.engine.places import BEGIN
from flight_server.engine.planner import Values
from flight_server.engine.rewrite import Tree, rewritten
from flight_server.engine.seam import Lake
from flight_server.engine.session_options import MARKET
from flight_server.engine.shapes import check_unsigned, empty_batch, in_utc, unsigned_columns, without_dictionaries
from flight_server.storage.as_of import check_cluster, parse_as_of
from flight_server.storage.read_view import Cut, TableCut

#: How often a subscription that waits looks whether its client is still there.
_GONE_STEP_S = 0.5
#: How long one waits that got no place among the statements.
_BUSY_S = 0.1
#: After rows came, one that is up to date rests for so many times as long as reading them took: many subscribers, or a
#: machine that has other work, make each one's batches larger and not the work. And at most for so long.
_REST, _REST_S_MAX = 4, 0.1
#: The first stretch; from there they are doubled while less than half a message comes of one. Begun with the rows of a
#: whole batch, ten subscribers that did not read rows of 2 KB took 38 MB each, for what the first stretch had read too
#: much; with this they take 5 MB.
_FIRST_OFFSETS_MAX = 2_048
#: A stretch may span this many times the rows of a batch where few of them match.
_SPARSE = 16
#: How often a stretch is read again when files of its snapshot went away under it.
_READS_MAX = 3
#: A longer cut is not put into the words of an error, which must fit into gRPC's trailers.
_CUT_LENGTH_MAX = 1_500
_ORDER = "ORDER BY _kafka_topic, _kafka_partition, _kafka_offset"

#: Called once at the end: status word, rows, bytes.
OnEnd = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Followed:
    """What a subscription asks: the tree of its query over one table, its parameters and the schema of its result."""

    tree: Tree
    table: str
    values: Values
    schema: pa.Schema


class Subscriptions:
    """Opens subscriptions, at most `subscriptions_max` at once. Thread-safe."""

    def __init__(
        self, lake: Lake, cursors: CursorPool, admission: Admission, settings: FlightSettings, clock: Clock
    ) -> None:
        self._lake = lake
        self._cursors = cursors
        self._admission = admission
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._open: set[Subscription] = set()

    def __len__(self) -> int:
        return len(self._open)

    def start_of(self, table: str, asked: Subscribe) -> str:
        """The text of the cut that a subscription begins behind. May ask the catalog.

        Raises InvalidStatement, SnapshotNotFound, SnapshotExpired (a cut of another cluster), Unavailable, TailGap.
        """
        if asked.cut is not None:
            start = self._lake.table_cut(table, parse_as_of(asked.cut))
            now = self._now(table)
            for partition in start.offsets:
                check_cluster(table, partition, now.offsets)
        else:
            start = self._now(table) if asked.from_now else TableCut(None, PartitionOffsets())
        return Cut({table: start}).to_text()

    def open(self, followed: Followed, start: str, *, is_gone: Callable[[], bool], on_end: OnEnd) -> Subscription:
        """A subscription that stands at the cut `start`. `is_gone` is asked on the reader's thread only.

        Raises Unavailable when there are too many.
        """

        def ended(status: str, rows: int, size: int) -> None:
            with self._lock:
                self._open.discard(subscription)
            on_end(status, rows, size)

        subscription = Subscription(
            followed,
            Cut.from_text(start).tables[followed.table],
            lake=self._lake,
            cursors=self._cursors,
            admission=self._admission,
            settings=self._settings,
            clock=self._clock,
            is_gone=is_gone,
            on_end=ended,
        )
        with self._lock:
            if len(self._open) >= self._settings.subscriptions_max:
                raise Unavailable(
                    f"{len(self._open)} subscriptions are open, as many as K2_FLIGHT_SUBSCRIPTIONS_MAX allows; end one "
                    "that is not needed, or try again later"
                )
            self._open.add(subscription)
        subscription.begin()
        return subscription

    def cancel_all(self, reason: K2Error) -> None:
        """End them all; their readers get `reason`."""
        with self._lock:
            found = list(self._open)
        for subscription in found:
            subscription.cancel(reason)

    def _now(self, table: str) -> TableCut:
        self._lake.check_ready()
        with self._cursors.lent() as cursor:
            cursor.execute(BEGIN)
            now, *_ = self._lake.stretch(cursor, table, lambda now: (now.offsets, now.offsets))
            cursor.execute("ROLLBACK")
        return now


class Subscription:
    """`read` it from one thread; everything else may be called from any. Ends by `cancel`, `close` or an error."""

    def __init__(
        self,
        followed: Followed,
        start: TableCut,
        *,
        lake: Lake,
        cursors: CursorPool,
        admission: Admission,
        settings: FlightSettings,
        clock: Clock,
        is_gone: Callable[[], bool],
        on_end: OnEnd,
    ) -> None:
        self.schema = followed.schema
        self._followed = followed
        self._lake = lake
        self._cursors = cursors
        self._admission = admission
        self._settings = settings
        self._clock = clock
        self._is_gone = is_gone
        self._on_end = on_end
        self._at = start.offsets
        self._snapshot_id = start.snapshot_id
        self._unsigned = unsigned_columns(followed.schema)
        self._offsets_max = min(_FIRST_OFFSETS_MAX, settings.batch_rows_max)
        #: Whether it has ever been up to date, and whether it is not now.
        self._was_level = False
        self._is_behind = True
        self._given_s: float | None = None
        self._due_s = 0.0
        self._rows = 0
        self._bytes = 0
        # Guards what follows; held for moments only.
        self._changed = threading.Condition()
        self._has_news = True
        self._reason: K2Error | None = None
        self._cursor: duckdb.DuckDBPyConnection | None = None
        self._ended = False
        self._forget: Callable[[], None] | None = None

    def begin(self) -> None:
        """Hear of publications from now on."""
        self._forget = self._lake.listen(self._wake)

    @property
    def cut(self) -> str:
        """The text of the cut that it stands at: all rows below have been given."""
        return Cut({self._followed.table: TableCut(self._snapshot_id, self._at)}).to_text()

    # -- reading

    def read(self) -> pa.RecordBatch:
        """The next rows, as soon as there are some; without any, after a while, no rows. `cut` then says how far.

        Raises our errors, which end it; what can be gone on from says so, and from where.
        """
        self._given_s = None
        began_s = self._clock.monotonic_s()
        try:
            while True:
                self._check()
                now_s = self._clock.monotonic_s()
                batch = self.advance() if self._is_due() else None
                took_s = self._clock.monotonic_s() - now_s
                now_s += took_s
                alive_s = began_s + self._settings.subscription_keep_alive_s - now_s
                if batch is not None and batch.num_rows:
                    rest_s = max(self._settings.subscription_interval_ms_min / 1000, _REST * took_s)
                    self._due_s = now_s + min(rest_s, _REST_S_MAX)
                    return self._given(batch, now_s)
                if alive_s <= 0:
                    return self._given(empty_batch(self.schema), now_s)
                if not self._is_behind:
                    self._wait(alive_s)
        except Exception as error:  # noqa: BLE001  (whatever it is, nothing stays held)
            ours = self._with_cut(translated(error))
            self._end(type(ours).__name__)
            raise ours from None

    def _given(self, batch: pa.RecordBatch, now_s: float) -> pa.RecordBatch:
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        self._given_s = now_s
        return batch

    def _is_due(self) -> bool:
        """True when there is something to look for now."""
        if self._is_behind:
            return True
        with self._changed:
            if not self._has_news or self._clock.monotonic_s() < self._due_s:
                return False
            self._has_news = False
            return True

    def _wait(self, timeout_s: float) -> None:
        """Until there is news and it is time for it; at most for `timeout_s`."""
        with self._changed:
            wait_s = min(timeout_s, _GONE_STEP_S)
            if self._has_news:
                wait_s = min(wait_s, self._due_s - self._clock.monotonic_s())
                if wait_s > 0:
                    self._changed.wait_for(lambda: self._reason is not None, wait_s)
            else:
                self._changed.wait_for(lambda: self._has_news or self._reason is not None, wait_s)
        if self._is_gone():
            raise StatementCancelled("the client left its subscription")

    def _check(self) -> None:
        if self._reason is not None:
            raise self._reason

    def advance(self) -> pa.RecordBatch | None:
        """The rows of the next stretch, behind which it then stands; None when nothing is new, or nothing is exact now.

        Does not wait for news. Raises our errors.
        """
        for attempt in range(_READS_MAX):
            try:
                self._admission.acquire(lambda: self._reason is not None or self._is_gone())
            except Unavailable:  # The server is busy with statements; a moment later there may be a place.
                self._is_behind, self._has_news = False, True
                self._due_s = self._clock.monotonic_s() + _BUSY_S
                return None
            try:
                return self._stretch()
            except TailGap:  # The publisher wakes whoever waits once it is over.
                self._is_behind = False
                return None
            except SnapshotExpired:
                if attempt == _READS_MAX - 1:
                    raise
            finally:
                self._admission.release()
        return None

    def _stretch(self) -> pa.RecordBatch | None:
        cursor = self._cursors.take()
        is_whole = False
        try:
            with self._changed:
                self._check()
                self._cursor = cursor
            cursor.execute(BEGIN)
            while True:
                now, until, select = self._lake.stretch(cursor, self._followed.table, self._choose)
                self._check_distance(now)
                if until == self._at:
                    self._is_behind, batch = False, None
                    break
                batch = self._run(cursor, select)
                if self._fits(batch, until):
                    break
            cursor.execute("ROLLBACK")
            is_whole = True
        except duckdb.Error as error:
            self._check()
            raise translated(error) from None
        finally:
            with self._changed:
                self._cursor = None
                is_whole = is_whole and self._reason is None
            if is_whole:
                self._cursors.give_back(cursor)
            else:
                cursor.close()
        self._check()
        self._at, self._snapshot_id = until, now.snapshot_id
        self._is_behind = offsets_between(until, now.offsets) > 0
        self._was_level = self._was_level or not self._is_behind
        return batch

    def _choose(self, now: TableCut) -> tuple[PartitionOffsets, PartitionOffsets]:
        return self._at, slice_end(self._at, now.offsets, self._offsets_max)

    def _run(self, cursor: duckdb.DuckDBPyConnection, select: str) -> pa.RecordBatch:
        ordered = f"SELECT * FROM ({select}) {_ORDER}"
        text = rewritten(self._followed.tree, lambda ref: ordered, schema=MARKET)
        reader = cursor.execute(text, self._followed.values or None).to_arrow_reader(self._settings.batch_rows_max)
        found = reader.schema
        if not in_utc(without_dictionaries(found)).equals(self.schema):
            raise Unavailable("the table changed since the subscription was planned; subscribe again")
        whole = reader.read_all()
        if not found.equals(self.schema):
            whole = whole.cast(self.schema)
        batches = whole.combine_chunks().to_batches()
        batch = batches[0] if batches else empty_batch(self.schema)
        check_unsigned(batch, self._unsigned)
        return batch

    def _fits(self, batch: pa.RecordBatch, until: PartitionOffsets) -> bool:
        """True when it can be sent as one message. Sets how far the next stretch may go, by how full this one was."""
        rows_max, bytes_max = self._settings.batch_rows_max, self._settings.batch_bytes_max
        fill = max(batch.num_rows / rows_max, batch.nbytes / bytes_max)
        span = offsets_between(self._at, until)
        if fill > 1 and span > 1:
            self._offsets_max = max(1, min(span // 2, int(span / fill * 0.8)))
            return False
        if fill < 0.5 and span == self._offsets_max:
            self._offsets_max = min(self._offsets_max * 2, rows_max * _SPARSE)
        return True

    def _check_distance(self, now: TableCut) -> None:
        behind_max = self._settings.subscription_rows_behind_max
        if self._was_level and (behind := offsets_between(self._at, now.offsets)) > behind_max:
            raise LimitExceeded(
                f"the subscriber is {behind:,} rows behind, more than the {behind_max:,} that "
                "K2_FLIGHT_SUBSCRIPTION_ROWS_BEHIND_MAX allows; read faster, or select less"
            )

    # -- ending

    def cancel(self, reason: K2Error | None = None) -> None:
        """Stop soon: the reader gets `reason`, the first one given. Returns at once; nothing stays held."""
        with self._changed:
            if self._reason is None:
                self._reason = reason or StatementCancelled("the subscription was cancelled")
            if self._cursor is not None:
                self._cursor.interrupt()
            self._changed.notify_all()
        self._end(type(self._reason).__name__)

    def close(self) -> None:
        """Its reader has left. Idempotent."""
        self._end("cancelled")

    @property
    def is_cancelled(self) -> bool:
        return self._reason is not None

    def is_abandoned(self) -> bool:
        """False: only its reader's thread may ask whether the client is there."""
        return False

    def late(self, now_s: float) -> K2Error | None:
        """Why it ends: its reader has left a batch lying for too long. None while that is not so."""
        given_s, stall_s = self._given_s, self._settings.subscription_stall_s_max
        if given_s is None or now_s - given_s <= stall_s:
            return None
        return LimitExceeded(
            f"the subscriber has taken nothing for {stall_s:g} s (K2_FLIGHT_SUBSCRIPTION_STALL_S_MAX) and was let go; "
            "read on at once when a batch has come"
        )

    def _end(self, status: str) -> None:
        with self._changed:
            if self._ended:
                return
            self._ended = True
        if self._forget is not None:
            self._forget()
        self._on_end(status, self._rows, self._bytes)

    def _wake(self) -> None:
        with self._changed:
            self._has_news = True
            self._changed.notify_all()

    def _with_cut(self, error: BaseException) -> BaseException:
        """The error; one that a new subscription would not meet says from where that is to go on."""
        if not isinstance(error, (Unavailable, TailGap, SnapshotExpired, LimitExceeded)):
            return error
        cut = self.cut.replace("'", "''")
        where = f"'{cut}'" if len(cut) <= _CUT_LENGTH_MAX else "and the cut of the last batch"
        return type(error)(f"{error.message}; no row is lost: subscribe again FROM CUT {where}")
