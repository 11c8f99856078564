"""Rows as they arrive, as an iterator and as an async iterator, which go on by themselves after a lost connection.

    with k2.subscribe("SELECT symbol, price FROM market.trades", "now") as arrivals:
        for arrival in arrivals:
            print(arrival.batch.num_rows, arrival.cut)

Guarantee: together, the batches have each row of the query behind the start once, in the order of offsets within a
Kafka partition. `cut` tells how far they go: whoever has worked up a batch and keeps its cut goes on from there another
day.

Through pyarrow.flight and not ADBC, which does not show what comes beside a batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
from adbc_driver_flightsql import DatabaseOptions
from google.protobuf.any_pb2 import Any as AnyMessage
from pyarrow import flight
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from clients.closing import Closing
from clients.cuts import cut_of_metadata
from clients.errors import ClientError, QueryError

_COMMAND = "type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery"
#: A peer that vanished without a word is noticed after both; the server's own signs of life come more often.
_PINGS = [("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000)]
_WAIT_S_FIRST, _WAIT_S_MAX = 0.1, 5.0


@dataclass(frozen=True)
class Arrival:
    """Some rows, and the cut that their reader stands at when it has them. Without rows it only tells how far."""

    batch: pa.RecordBatch
    cut: str


@dataclass(frozen=True)
class Access:
    """How a server is reached and who asks: what `clients.connect` was told, ADBC's database options included."""

    uri: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    def client(self) -> tuple[flight.FlightClient, flight.FlightCallOptions]:
        """A connection of its own, and what goes with each of its calls. Raises pyarrow's errors and OSError."""
        options = dict(self.options)
        roots = None if self.ca_file is None else self.ca_file.read_text()
        client = flight.FlightClient(
            self.uri,
            tls_root_certs=options.get(DatabaseOptions.TLS_ROOT_CERTS.value, roots),
            cert_chain=options.get(DatabaseOptions.MTLS_CERT_CHAIN.value),
            private_key=options.get(DatabaseOptions.MTLS_PRIVATE_KEY.value),
            override_hostname=options.get(DatabaseOptions.TLS_OVERRIDE_HOSTNAME.value),
            disable_server_verification=options.get(DatabaseOptions.TLS_SKIP_VERIFY.value) == "true",
            generic_options=_PINGS,
        )
        prefix = DatabaseOptions.RPC_CALL_HEADER_PREFIX.value
        named = {name.removeprefix(prefix): value for name, value in options.items() if name.startswith(prefix)}
        headers = [(name.encode(), value.encode()) for name, value in {**self.headers, **named}.items()]
        if given := options.get(DatabaseOptions.AUTHORIZATION_HEADER.value):
            headers.append((b"authorization", given.encode()))
        elif self.token is not None:
            headers.append((b"authorization", f"Bearer {self.token}".encode()))
        elif self.username is not None:
            try:
                headers.append(client.authenticate_basic_token(self.username, self.password or ""))
            except BaseException:
                client.close()
                raise
        return client, flight.FlightCallOptions(headers=headers)


class Subscription(Iterator[Arrival], Closing):
    """Iterate it from one thread; `close` may be called from any. Use it as a context manager.

    Raises QueryError where the query cannot be followed, where the server ended it for a reason of its reader's, and
    when the connection could not be had back within `resume_s_max`; `cut` is then where to go on from.
    """

    def __init__(
        self, access: Access, sql: str, start: str | None, *, resume_s_max: float = 60.0, with_empty: bool = False
    ) -> None:
        """As Connection.subscribe. Returns when the server has taken the subscription up."""
        self._access = access
        self._query = sql.strip().rstrip(";")
        self._resume_s_max = resume_s_max
        self._with_empty = with_empty
        self._closed = threading.Event()
        self._client: flight.FlightClient | None = None
        self._reader: flight.FlightStreamReader | None = None
        self._reconnects = 0
        self.schema: pa.Schema
        self.cut = ""
        """The text of the cut behind which everything is still to come."""
        try:
            self._connect("" if start is None else " FROM NOW" if start == "now" else f" FROM CUT {_literal(start)}")
        except Exception as error:  # noqa: BLE001  (whatever it is, the connection goes back)
            self.close()
            raise flight_error(error) from None

    @property
    def reconnects(self) -> int:
        """How often the connection was lost and had back."""
        return self._reconnects

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Arrival:
        """The next rows; blocks until there are some. StopIteration only after `close`."""
        while not self._closed.is_set():
            try:
                batch, cut = self._read_on()
            except Exception as error:  # noqa: BLE001  (whatever it is, the connection goes back)
                if self._closed.is_set():
                    break
                self.close()
                raise flight_error(error) from None
            self.cut = cut or self.cut
            if batch.num_rows or self._with_empty:
                return Arrival(batch, self.cut)
        raise StopIteration

    def close(self) -> None:
        """End it, here and on the server; whoever waits in `next` gets StopIteration. May be called again."""
        self._closed.set()
        self._drop()

    def __del__(self) -> None:
        """One that was forgotten ends too: pyarrow lets the call go on for as long as the process lives."""
        with contextlib.suppress(Exception):
            self.close()

    def _read_on(self) -> tuple[pa.RecordBatch, str | None]:
        """The next message; after a lost connection the next one of another connection."""
        try:
            return self._read()
        except Exception as error:
            if not self._is_loss(error):
                raise
        retrying = Retrying(
            retry=retry_if_exception(self._is_loss),
            stop=stop_after_delay(self._resume_s_max),
            wait=wait_random_exponential(multiplier=_WAIT_S_FIRST, max=_WAIT_S_MAX),
            sleep=self._pause,
            reraise=True,
        )
        return retrying(self._read_again)

    def _read_again(self) -> tuple[pa.RecordBatch, str | None]:
        self._drop()
        self._connect(f" FROM CUT {_literal(self.cut)}")
        self._reconnects += 1
        return self._read()

    def _pause(self, seconds: float) -> None:
        self._closed.wait(seconds)

    def _is_loss(self, error: BaseException) -> bool:
        """True for what a lost connection, or a server that starts or stops, looks like."""
        lost = (flight.FlightUnavailableError, flight.FlightTimedOutError, ConnectionError)
        return isinstance(error, lost) and not self._closed.is_set()

    def _read(self) -> tuple[pa.RecordBatch, str | None]:
        reader = self._reader
        if reader is None:
            raise flight.FlightUnavailableError("the subscription has no connection")
        try:
            chunk = reader.read_chunk()
        except StopIteration:
            raise flight.FlightUnavailableError("the server ended the subscription without a word") from None
        metadata = chunk.app_metadata
        return chunk.data, cut_of_metadata(None if metadata is None else metadata.to_pybytes())

    def _connect(self, behind: str) -> None:
        text = f"SUBSCRIBE ({self._query}\n){behind}".encode()
        self._client, options = self._access.client()
        command = AnyMessage(type_url=_COMMAND, value=b"\x0a" + varint(len(text)) + text)
        descriptor = flight.FlightDescriptor.for_command(command.SerializeToString())
        info = self._client.get_flight_info(descriptor, options)
        start = cut_of_metadata(info.app_metadata)
        if start is None:
            raise ClientError(f"the server at {self._access.uri} does not offer SUBSCRIBE")
        self.schema = info.schema
        self._reader = self._client.do_get(info.endpoints[0].ticket, options)
        self.cut = start
        if self._closed.is_set():  # meanwhile, by another thread
            self._drop()

    def _drop(self) -> None:
        reader, self._reader = self._reader, None
        client, self._client = self._client, None
        with contextlib.suppress(pa.ArrowException, flight.FlightError):  # it is gone already
            if reader is not None:
                reader.cancel()
        with contextlib.suppress(pa.ArrowException, flight.FlightError):
            if client is not None:
                client.close()


class AsyncSubscription(AsyncIterator[Arrival]):
    """The same as an async iterator. It waits on a thread of its own; the loop is never blocked.

    Use it with `async with`, or call `aclose`.
    """

    def __init__(
        self, access: Access, sql: str, start: str | None, *, resume_s_max: float = 60.0, with_empty: bool = False
    ) -> None:
        """As Connection.asubscribe. Does not connect before it is entered, or the first row is asked for."""
        self._make = functools.partial(
            Subscription, access, sql, start, resume_s_max=resume_s_max, with_empty=with_empty
        )
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="k2-subscription")
        self._under: Subscription | None = None
        self._closed = False

    @property
    def cut(self) -> str | None:
        """As Subscription.cut; None before it is connected."""
        return None if self._under is None else self._under.cut

    @property
    def reconnects(self) -> int:
        return 0 if self._under is None else self._under.reconnects

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Arrival:
        """The next rows. A task that is cancelled while it waits here ends the subscription."""
        if self._closed:
            raise StopAsyncIteration
        try:
            arrival = await asyncio.get_running_loop().run_in_executor(self._threads, self._next)
        except asyncio.CancelledError:
            self._end()
            raise
        if arrival is None:
            raise StopAsyncIteration
        return arrival

    async def aclose(self) -> None:
        """End it, here and on the server. May be called again."""
        self._end()

    async def __aenter__(self) -> Self:
        await asyncio.get_running_loop().run_in_executor(self._threads, self._connected)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _connected(self) -> Subscription:
        if self._under is None:
            self._under = self._make()
            if self._closed:
                self._under.close()
        return self._under

    def _next(self) -> Arrival | None:
        return next(self._connected(), None)

    def _end(self) -> None:
        self._closed = True
        if self._under is not None:
            self._under.close()
        self._threads.shutdown(wait=False)


def flight_error(error: Exception) -> ClientError:
    """The error of ours for what pyarrow's client raised."""
    if isinstance(error, ClientError):
        return error
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "UNKNOWN")
    message = str(error).partition(". Detail: ")[0].partition(". gRPC client debug context")[0]
    return QueryError(message.strip() or "the server gave no reason", code=code)


#: pyarrow's class of an error -> gRPC's word for it.
_CODES: tuple[tuple[Any, str], ...] = (
    (flight.FlightUnavailableError, "UNAVAILABLE"),
    (flight.FlightTimedOutError, "DEADLINE_EXCEEDED"),
    (flight.FlightUnauthenticatedError, "UNAUTHENTICATED"),
    (flight.FlightUnauthorizedError, "PERMISSION_DENIED"),
    (flight.FlightCancelledError, "CANCELLED"),
    (flight.FlightInternalError, "INTERNAL"),
    (pa.ArrowInvalid, "INVALID_ARGUMENT"),
    (pa.ArrowKeyError, "NOT_FOUND"),
    (pa.ArrowNotImplementedError, "UNIMPLEMENTED"),
)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    parts = b""
    while value > 0x7F:
        parts += bytes([value & 0x7F | 0x80])
        value >>= 7
    return parts + bytes([value])
