"""A connection to K2, or to any Flight SQL server, through ADBC: SQL in, Arrow out.

    with clients.connect("grpc://127.0.0.1:50051") as k2:
        k2.polars("SELECT symbol, count(*) FROM market.trades GROUP BY symbol")

A Connection belongs to one thread at a time. Each statement reads one consistent cut of the tables, which comes with
the result (`cut`) and reads the same rows again when it is given back (`at`).
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies
from weakref import WeakSet

import polars as pl
import pyarrow as pa
from adbc_driver_flightsql import ConnectionOptions, DatabaseOptions, dbapi
from pyarrow import flight

from clients.bulk import BulkStream
from clients.closing import Closing
from clients.cuts import Instant, as_of_text, cut_of_partition
from clients.errors import ClientError, ConnectError, QueryError, query_error
from clients.subscription import Access, AsyncSubscription, Subscription, flight_error, varint

if TYPE_CHECKING:
    import pandas as pd

SCHEMES = ("grpc", "grpc+tcp", "grpc+tls")
# One record batch is one gRPC message. K2 slices its batches below 15 MiB; other servers do not all slice, and ADBC's
# own limit of 16 MiB would refuse theirs. 256 MiB is only a bound: nothing of that size is allocated ahead.
MESSAGE_BYTES_MAX = 256 * 1024 * 1024
_AS_OF = f"{ConnectionOptions.OPTION_SESSION_OPTION_PREFIX.value}k2.as_of"
_TIMEOUTS = (DatabaseOptions.TIMEOUT_QUERY, DatabaseOptions.TIMEOUT_FETCH, DatabaseOptions.TIMEOUT_UPDATE)

Parameters = Sequence[object]


def connect(
    uri: str,
    *,
    username: str | None = None,
    password: str | None = None,
    token: str | None = None,
    ca_file: Path | None = None,
    headers: Mapping[str, str] | None = None,
    connect_timeout_s: float = 5.0,
    options: Mapping[str, str] | None = None,
) -> Connection:
    """A Connection that has already answered a statement.

    `uri` is grpc://host:port or, with TLS, grpc+tls://host:port; `ca_file` holds PEM certificates to trust there.
    `username` and `password`, or a bearer `token`, are sent when given. `headers` go with every call, their names in
    lower case. `options` are further ADBC database options and win over all others. `connect_timeout_s` bounds this
    call only; a statement has the server's limits. Raises ConnectError: a wrong URI, nobody listening, not a Flight
    SQL server, or not let in.
    """
    host, port = _address(uri)
    if not getproxies().get("https"):  # through a proxy only the driver can reach the server
        _knock(uri, host, port, connect_timeout_s)
    database_options: dict[str, str] = {
        DatabaseOptions.WITH_MAX_MSG_SIZE.value: str(MESSAGE_BYTES_MAX),
        DatabaseOptions.WITH_COOKIE_MIDDLEWARE.value: "true",
        **{timeout.value: str(connect_timeout_s) for timeout in _TIMEOUTS},
        **{f"{DatabaseOptions.RPC_CALL_HEADER_PREFIX.value}{name}": value for name, value in (headers or {}).items()},
    }
    if username is not None:
        database_options["username"] = username
    if password is not None:
        database_options["password"] = password
    if token is not None:
        database_options[DatabaseOptions.AUTHORIZATION_HEADER.value] = f"Bearer {token}"
    if ca_file is not None:
        database_options[DatabaseOptions.TLS_ROOT_CERTS.value] = _read(ca_file)
    raw: dbapi.Connection | None = None
    try:
        raw = dbapi.connect(uri, db_kwargs={**database_options, **(options or {})}, autocommit=True)
        access = Access(uri, username, password, token, ca_file, headers or {}, options or {})
        connection = Connection(raw, uri, access)
        connection.arrow("SELECT 1")
        raw.adbc_connection.set_options(
            **{timeout.value: "0" for timeout in _TIMEOUTS if timeout.value not in (options or {})}
        )
    except (ClientError, dbapi.Error) as error:
        if raw is not None:
            raw.close()
        raise _connect_error(uri, error) from None
    return connection


class Connection(Closing):
    """Runs statements on one Flight SQL session. Close it, or use it as a context manager."""

    def __init__(self, raw: dbapi.Connection, uri: str, access: Access | None = None) -> None:
        self._raw = raw
        self._access = access or Access(uri)
        self._streams: WeakSet[ResultStream | BulkStream] = WeakSet()
        self._bulk: tuple[flight.FlightClient, flight.FlightCallOptions] | None = None
        self._starting: Sequence[bytes] = ()
        self._streams_lock = threading.Lock()  # for both: `cancel` looks at them from another thread
        self._closed = False
        self.uri = uri
        self.cut: str | None = None
        """The cut of the latest result: the one instant that it is of. None where it read no tables."""

    def arrow(self, sql: str, parameters: Parameters | None = None, *, at: Instant | None = None) -> pa.Table:
        """The whole result as a pyarrow Table, in the types that the server sent. Raises QueryError.

        `parameters` fill the `?` of the statement in order. `at` reads the tables of `market` as they were: at the cut
        of an earlier result, in a snapshot, or at a time.
        """
        with self.stream(sql, parameters, at=at) as stream:
            return stream.read_all()

    def polars(self, sql: str, parameters: Parameters | None = None, *, at: Instant | None = None) -> pl.DataFrame:
        """The whole result as a polars DataFrame; decimals stay exact. Raises QueryError."""
        frame = pl.from_arrow(self.arrow(sql, parameters, at=at))
        return frame if isinstance(frame, pl.DataFrame) else frame.to_frame()

    def pandas(self, sql: str, parameters: Parameters | None = None, *, at: Instant | None = None) -> pd.DataFrame:
        """The whole result as a pandas DataFrame with Arrow-backed dtypes, so that decimals and nulls stay exact.

        Raises QueryError, and ClientError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ClientError("pandas is not installed; install it with: pip install 'k2[pandas]'") from None
        return self.arrow(sql, parameters, at=at).to_pandas(types_mapper=pandas.ArrowDtype)

    def stream(self, sql: str, parameters: Parameters | None = None, *, at: Instant | None = None) -> ResultStream:
        """The result batch by batch, as the server produces it; memory does not grow with its size. Raises QueryError.

        One at a time: the driver ends what is not read to its end when the connection's next statement begins.
        The server keeps the view of its tables until the stream has been read to its end or closed; use one that may be
        left half read as a context manager.
        """
        if self._closed:
            raise ClientError(f"the connection to {self.uri} is closed; make a new one with clients.connect")
        try:
            cursor = self._raw.cursor()
        except dbapi.Error as error:
            raise query_error(error) from None
        try:
            partitions, schema = self._announced(cursor, sql, parameters, at)
            with self._streams_lock:
                self._starting = partitions  # the driver waits for the first rows before there is a stream
            stream = ResultStream(cursor, schema, partitions)
        except BaseException as error:
            self._starting = ()
            _let_go(cursor)
            if isinstance(error, dbapi.Error | pa.ArrowException | OSError):
                raise query_error(error) from None
            raise
        self.cut = stream.cut
        with self._streams_lock:
            self._starting = ()
            self._streams.add(stream)
        return stream

    def bulk(self, sql: str, *, at: Instant | None = None) -> BulkStream:
        """As `stream`, for results of millions of rows: it is announced by the driver and read past it, by pyarrow's
        own client, which needs less CPU for each batch; it may be read beside the connection's other statements."""
        if self._closed:
            raise ClientError(f"the connection to {self.uri} is closed; make a new one with clients.connect")
        try:
            with self._raw.cursor() as cursor:
                partitions, schema = self._announced(cursor, sql, None, at)
            if self._bulk is None:
                self._bulk = self._access.client()
            stream = BulkStream(*self._bulk, partitions, schema)
        except dbapi.Error as error:
            raise query_error(error) from None
        except (pa.ArrowException, flight.FlightError, OSError) as error:
            raise flight_error(error) from None
        self.cut = stream.cut
        with self._streams_lock:
            self._streams.add(stream)
        return stream

    def _announced(
        self, cursor: dbapi.Cursor, sql: str, parameters: Parameters | None, at: Instant | None
    ) -> tuple[list[bytes], pa.Schema]:
        """The parts of the result, not read yet: their instant is fixed when this returns."""
        if at is None:
            return cursor.adbc_execute_partitions(sql, parameters)
        before = self._raw.adbc_connection.get_option(_AS_OF)
        wanted = as_of_text(at)
        self._read_at(wanted)
        set_to = self._raw.adbc_connection.get_option(_AS_OF)
        try:
            announced = cursor.adbc_execute_partitions(sql, parameters)
            if bool(set_to) != bool(wanted) or self._raw.adbc_connection.get_option(_AS_OF) != set_to:
                # The driver connects again by itself, and a server that started anew takes the old session's cookie
                # for that of a new one, without its options: what was announced is then of now.
                raise QueryError(
                    "the server lost this session while the statement was announced; run it again", code="UNAVAILABLE"
                )
            return announced
        finally:
            self._read_at(before)

    def _read_at(self, instant: str) -> None:
        """By SQL, for what the driver says of an option that was not taken leaves out the server's reason."""
        quoted = instant.replace("'", "''")
        with self._raw.cursor() as cursor:
            cursor.execute(f"SET \"k2.as_of\" = '{quoted}'")

    def subscribe(
        self, sql: str, from_: str | None = None, *, resume_s_max: float = 60.0, with_empty: bool = False
    ) -> Subscription:
        """The rows of `sql` and then each one that arrives, once, without an end; on a connection of its own.

        `sql` is a SELECT of columns, filters and functions of one row over one table of `market`. `from_` is the cut to
        go on from, "now" for nothing of what is there already, None for all of it. A connection that was lost is had
        back, and gone on with from the last cut; `resume_s_max` bounds each time how long that may take. `with_empty`
        gives also the batches without rows that tell how far it is. Raises QueryError.
        """
        return Subscription(self._access, sql, from_, resume_s_max=resume_s_max, with_empty=with_empty)

    def asubscribe(
        self, sql: str, from_: str | None = None, *, resume_s_max: float = 60.0, with_empty: bool = False
    ) -> AsyncSubscription:
        """As `subscribe`, for `async for`. Errors come when it is entered, or with the first row."""
        return AsyncSubscription(self._access, sql, from_, resume_s_max=resume_s_max, with_empty=with_empty)

    def cancel(self) -> None:
        """End the results that are being read, from whatever thread: who reads one gets a QueryError, CANCELLED.

        Asks the server to, on a connection of its own, because the driver's own cancel does not reach a call that waits
        for its first rows. Raises QueryError where the server cannot be told.
        """
        with self._streams_lock:
            started = [partition for stream in self._streams for partition in stream.partitions_left]
            partitions = [*self._starting, *started]
        if not partitions:
            return
        try:
            client, options = self._access.client()
            with contextlib.closing(client):
                for partition in partitions:
                    # CancelFlightInfoRequest: field 1 is the FlightInfo.
                    body = b"\x0a" + varint(len(partition)) + partition
                    list(client.do_action(flight.Action("CancelFlightInfo", body), options))
        except (pa.ArrowException, flight.FlightError, OSError) as error:
            raise query_error(error) from None

    def close(self) -> None:
        """End the session on the server, and every stream that is still open. May be called again."""
        self._closed = True
        with self._streams_lock:
            streams = list(self._streams)
        for stream in streams:
            stream.close()
        if self._bulk is not None:
            self._bulk[0].close()
        _let_go(self._raw)


class ResultStream(Closing):
    """One result: its `schema` and, when iterated, its batches, once. Raises QueryError where the server fails.

    `cut` is the instant that it is of, as text: give it back as `at`, or to `subscribe`. None where no table was read.
    """

    def __init__(self, cursor: dbapi.Cursor, schema: pa.Schema, partitions: Sequence[bytes]) -> None:
        """The first part begins at once; raises what the driver raises.

        One part after another: the driver ends what is half read when its connection begins with the next.
        """
        self._cursor = cursor
        self._partitions = list(partitions)
        self._reader = self._next_reader()
        self._closed = False
        self.schema: pa.Schema = schema if self._reader is None else self._reader.schema
        self.cut = cut_of_partition(partitions[0]) if partitions else None

    @property
    def partitions_left(self) -> Sequence[bytes]:
        """The parts of it that are not read to their end, each a FlightInfo."""
        return [] if self._closed or self._reader is None else self._partitions

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        while self._reader is not None:
            try:
                batch = self._reader.read_next_batch()
            except StopIteration:
                batch = None
            except (dbapi.Error, pa.ArrowException, OSError) as error:
                raise query_error(error) from None
            if batch is not None:
                yield batch
                continue
            self._partitions = self._partitions[1:]
            try:
                self._reader = self._next_reader()
            except (dbapi.Error, pa.ArrowException, OSError) as error:
                raise query_error(error) from None
        self.close()

    def _next_reader(self) -> pa.RecordBatchReader | None:
        if not self._partitions:
            return None
        self._cursor.adbc_read_partition(self._partitions[0])
        return self._cursor.fetch_record_batch()

    def read_all(self) -> pa.Table:
        """What has not been iterated yet, as one Table. Raises QueryError."""
        return pa.Table.from_batches(list(self), self.schema)

    def close(self) -> None:
        """Let the statement go, finished or not; the server stops working on it. May be called again."""
        self._closed = True
        _let_go(self._cursor)


def _address(uri: str) -> tuple[str, int]:
    """Host and port of `uri`. Raises ConnectError."""
    hint = "write it as grpc://host:port, or grpc+tls://host:port with TLS"
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConnectError(f"'{uri}' is no address of a Flight SQL server; {hint}", code="INVALID_ARGUMENT") from None
    if parts.scheme not in SCHEMES or not host or not port:
        raise ConnectError(f"'{uri}' is no address of a Flight SQL server; {hint}", code="INVALID_ARGUMENT")
    return host, port


def _knock(uri: str, host: str, port: int, timeout_s: float) -> None:
    """Say at once, and why, when nobody listens: the driver would try again for ten seconds and more."""
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError as error:
        reason = (
            "it did not answer in time" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        )
        raise ConnectError(
            f"no server could be reached at {uri} ({reason}); start one with `k2 serve`, or correct the address",
            code="UNAVAILABLE",
        ) from None


def _connect_error(uri: str, error: Exception) -> ConnectError:
    failure = error if isinstance(error, ClientError) else query_error(error)
    if failure.code in {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
        return ConnectError(f"{uri} did not let this client in: {failure}", code=failure.code)
    return ConnectError(f"the server at {uri} does not answer as a Flight SQL server: {failure}", code=failure.code)


def _read(ca_file: Path) -> str:
    try:
        return ca_file.read_text()
    except OSError as error:
        raise ConnectError(
            f"the certificates in {ca_file} cannot be read: {error.strerror}", code="INVALID_ARGUMENT"
        ) from None


def _let_go(held: dbapi.Connection | dbapi.Cursor) -> None:
    """Close it. A server that cannot be told any more has let go already: there is nothing to report then."""
    try:
        held.close()
    except dbapi.Error:
        # The driver (1.13) has released it all the same, but does not mark it so: closing it again, which it does
        # itself when the object is collected, would end in a RuntimeError.
        held._closed = True
