"""A way to a server that is had back when it is lost: statements that only read are run again, at the same cut.

Guarantee: a statement's rows come once each, all of one cut, however often the connection breaks meanwhile; or an
error is raised, after which what came is no whole. A whole result is read again as a whole. Of a stream, rows have been
handed on by then: it is read again at its cut, and the rows that come are compared with those that were handed on.
Where they are the same ones in the same order, all others of the cut are still to come, and the stream goes on with
them. Where they are not, because the statement does not say in which order its rows come, it ends with an error.

A change is run once. When the connection is lost meanwhile, nobody here knows whether it was made.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Self, TypeVar
from weakref import WeakSet

import polars as pl
import pyarrow as pa
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from clients.closing import Closing
from clients.connection import Connection, Parameters, ResultStream
from clients.errors import ClientError, ConnectError, QueryError
from clients.results import Result
from clients.statements import kind_of

T = TypeVar("T")
_WAIT_S_FIRST, _WAIT_S_MAX = 0.1, 5.0


class Link:
    """Whole results on one connection, and each stream on one of its own, for a stream does not outlive the driver's
    next statement. May be used from several threads; whole results take turns."""

    def __init__(self, connect: Callable[[], Connection], *, resume_s_max: float) -> None:
        """Connects once, at once. `resume_s_max` bounds each time how long a lost server is asked for again.

        Raises ConnectError.
        """
        self._connect = connect
        self._resume_s_max = resume_s_max
        self.lock = threading.RLock()
        self._closed = False
        self._left = threading.Event()  # closed or cancelled: nothing is tried again
        self._connection: Connection | None = connect()
        self._streaming: WeakSet[Connection] = WeakSet()
        self._streaming_lock = threading.Lock()
        self.reconnects = 0
        """How often the connection was lost and had back."""

    def read(self, sql: str, parameters: Parameters | None, at: str | None) -> Result:
        """The whole result. Raises QueryError, ConnectError where the server stays away, ClientError for what is not
        run here."""
        cut = at

        def once() -> Result:
            nonlocal cut
            with self.lock:
                connection, opened = self.open(sql, parameters, cut)
                with opened as stream:
                    cut = cut or stream.cut
                    try:
                        return Result(stream.read_all(), stream.cut)
                    except ClientError as error:
                        if self.is_loss(error):
                            self.drop(connection)
                        raise

        if self.check(sql) == "read":
            return self.again(once)
        try:
            return once()
        except ClientError as error:
            if not self.is_loss(error):
                raise
            raise QueryError(
                "the connection was lost while this change was under way, so that it may have been made or not "
                f"({error}); look whether it was, and run it again if not",
                code="UNAVAILABLE",
            ) from None

    def stream(self, sql: str, parameters: Parameters | None, at: str | None) -> Batches:
        """The result batch by batch. Raises as `read`."""
        if self.check(sql) != "read":
            raise ClientError("stream is for statements that only read; run a change with sql", code="INVALID_ARGUMENT")
        return Batches(self, sql, parameters, at)

    def check(self, sql: str) -> str:
        """The statement's kind. Raises ClientError for what a lost connection would undo without a word."""
        kind = kind_of(sql)
        if kind == "session":
            raise ClientError(
                "K2 keeps no session, because one is gone with a lost connection: settings, USE, transactions and "
                "prepared statements are for clients.connect; to read several statements at one instant use k2.now()",
                code="INVALID_ARGUMENT",
            )
        return kind

    def open(self, sql: str, parameters: Parameters | None, at: str | None) -> tuple[Connection, ResultStream]:
        """Run it once, and on what; connects where there is no connection."""
        with self.lock:
            self._check_open()
            if self._connection is None:
                self._connection = self._connect()
                self.reconnects += 1
            connection = self._connection
            try:
                return connection, connection.stream(sql, parameters, at=at)
            except ClientError as error:
                if self.is_loss(error):
                    self.drop(connection)
                raise

    def connect(self) -> Connection:
        """A connection for a stream. Raises ConnectError."""
        self._check_open()
        connection = self._connect()
        with self._streaming_lock:
            self._streaming.add(connection)
        return connection

    def again(self, action: Callable[[], T]) -> T:
        """What it gives, with as many tries as lost connections take within `resume_s_max`."""
        if not self._closed:
            self._left.clear()
        retrying = Retrying(
            retry=retry_if_exception(self.is_loss),
            stop=stop_after_delay(self._resume_s_max),
            wait=wait_random_exponential(multiplier=_WAIT_S_FIRST, max=_WAIT_S_MAX),
            sleep=self._pause,
            reraise=True,
        )
        return retrying(action)

    def _pause(self, seconds: float) -> None:
        self._left.wait(seconds)

    def is_loss(self, error: BaseException) -> bool:
        """True for what a lost connection, or a server that starts or stops, looks like.

        A server that started anew knows no login of before: a new connection logs in again.
        """
        if not isinstance(error, ClientError) or self._left.is_set():
            return False
        forgotten = error.code == "UNAUTHENTICATED" and not isinstance(error, ConnectError)
        return error.code == "UNAVAILABLE" or forgotten

    def drop(self, connection: Connection) -> None:
        """Do without it from now on: the next statement connects anew, unless another one has done so."""
        with self.lock:
            connection.close()
            if self._connection is connection:
                self._connection = None

    def cancel(self) -> None:
        """End what is being read, from whatever thread. Raises QueryError."""
        self._left.set()
        for connection in self._connections():
            connection.cancel()

    def close(self) -> None:
        """End it, here and on the server. May be called again."""
        self._closed = True
        self._left.set()
        with self.lock:
            for connection in self._connections():
                self.drop(connection)

    def _connections(self) -> list[Connection]:
        with self._streaming_lock:
            streaming = list(self._streaming)
        return streaming if self._connection is None else [self._connection, *streaming]

    def _check_open(self) -> None:
        if self._closed:
            raise ClientError("this K2 is closed; make a new one with clients.K2(uri)")


class Batches(Iterator[pa.RecordBatch], Closing):
    """One result as it comes: its `schema`, its `cut`, and when iterated its batches, once.

    Memory does not grow with it. Raises QueryError where the server fails, and where the connection was lost and the
    rest cannot be told from what was handed on. Use it as a context manager where it may be left half read.
    """

    def __init__(self, link: Link, sql: str, parameters: Parameters | None, at: str | None) -> None:
        """Returns when the server has announced the result."""
        self._link = link
        self._sql = sql
        self._parameters = parameters
        self._at = at
        self._given = RowDigest()
        self.cut: str | None = None
        """The instant that it is of, as text, for `K2.at`. None where no table was read."""
        self.schema: pa.Schema
        self._connection: Connection | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        link.again(self._open)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> pa.RecordBatch:
        while True:
            try:
                batch = next(self._batches)
            except StopIteration:
                self.close()
                raise
            except ClientError as error:
                if not self._link.is_loss(error):
                    raise
                batch = self._go_on(error)
                if batch is None:
                    continue
            if batch.num_rows:
                self._given.add(batch)
                return batch

    def _go_on(self, error: ClientError) -> pa.RecordBatch | None:
        """Read it again up to where it broke; what was read beyond that is given. Raises QueryError."""
        self.close()
        self._link.reconnects += 1
        if not self._given.rows:
            return self._link.again(self._open)
        if self.cut is None or not self._given.is_known:
            why = "it has no single cut" if self.cut is None else "it has a type whose values cannot be compared here"
            raise QueryError(
                f"the connection was lost after {self._given.rows:,} rows ({error}), and the rest of this result "
                f"cannot be had: {why}; read it whole with sql",
                code="ABORTED",
            )
        return self._link.again(self._skip)

    def _open(self) -> None:
        self._connection = self._link.connect()
        try:
            stream = self._connection.stream(self._sql, self._parameters, at=self._at or self.cut)
        except BaseException:
            self.close()
            raise
        self._batches = iter(stream)
        self.schema, self.cut = stream.schema, stream.cut

    def _skip(self) -> pa.RecordBatch | None:
        self._open()
        seen, left, rest = RowDigest(), self._given.rows, None
        try:
            while left and (batch := next(self._batches, None)) is not None:
                seen.add(batch.slice(0, left))
                rest = batch.slice(left) if batch.num_rows > left else None
                left -= min(left, batch.num_rows)
        except ClientError:
            self.close()
            raise
        if seen.digest != self._given.digest:
            self.close()
            raise QueryError(
                f"the connection was lost after {self._given.rows:,} rows, and read again at the same cut the rows "
                "came in another order; let the statement end in an ORDER BY in which no two rows are equal, or read "
                "it whole with sql",
                code="ABORTED",
            )
        return rest

    def read_all(self) -> pa.Table:
        """What has not been iterated yet, as one Table. Raises QueryError."""
        return pa.Table.from_batches(list(self), self.schema)

    def close(self) -> None:
        """Let the statement go, finished or not. May be called again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class RowDigest:
    """How many rows there were, and a digest of their values in order, however they were cut into batches."""

    def __init__(self) -> None:
        self.rows = 0
        self.is_known = True
        """False once there was a type that polars has no values for."""
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        if not self.is_known or not batch.num_columns:
            return
        try:
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            self._hash.update(frame.hash_rows().to_numpy().tobytes())
        except (pl.exceptions.PolarsError, pa.ArrowException):
            self.is_known = False

    @property
    def digest(self) -> tuple[int, bytes]:
        return self.rows, self._hash.digest()
