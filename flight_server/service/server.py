"""The gRPC face: each call decoded, handed to who answers it, and its errors put into words for the wire."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from prometheus_client import CollectorRegistry, Counter, Histogram
from pyarrow import flight

from common.errors import K2Error, Unsupported
from common.settings import FlightSettings
from common.telemetry import correlation, get_logger
from flight_server.access.gate import Gate
from flight_server.protocol.commands import ACTION_BODIES, decode_command, name_of
from flight_server.service.actions import Actions
from flight_server.service.commands import Call, Statements, handler_of, query_handlers
from flight_server.service.middleware import Arrived, CallFactory, Handshakes, arrived
from flight_server.service.prepared import PreparedStatements
from flight_server.service.puts import Puts
from flight_server.service.status import on_the_wire
from flight_server.service.streaming import cut_metadata
from flight_server.service.tls import Transport

#: What FlightEndpoint makes of any other time, by a cast.
_EXPIRY = pa.timestamp("ns")


class FlightSqlServer(flight.FlightServerBase):  # type: ignore[misc]
    """Serves as soon as it is made. Raises OSError when the address cannot be had."""

    def __init__(
        self,
        location: str,
        statements: Statements,
        settings: FlightSettings,
        prepared: PreparedStatements,
        *,
        registry: CollectorRegistry,
        gate: Gate,
        transport: Transport,
    ) -> None:
        self._log = get_logger("flight_server.service")
        self._handlers = query_handlers(statements, settings, prepared)
        self._actions = Actions(statements, prepared)
        self._puts = Puts(statements, prepared)
        self._calls = Counter("k2_flight_calls", "Flight calls", ["method", "command", "status"], registry=registry)
        self._counted: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self._expiry: tuple[int, pa.Scalar] | None = None
        self._seconds = Histogram(
            "k2_flight_call_seconds",
            "A call until its answer; for DoGet until its stream begins",
            ["method"],
            registry=registry,
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 300),
        )
        super().__init__(
            location,
            auth_handler=None if gate.certificates else Handshakes(),
            tls_certificates=list(transport.certificates) or None,
            verify_client=transport.client_ca is not None,
            root_certificates=transport.client_ca,
            middleware={"call": CallFactory(gate)},
        )

    # -- what Flight SQL uses

    def get_flight_info(
        self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor
    ) -> flight.FlightInfo:
        with self._call(context, "GetFlightInfo") as call:
            command = call.decoded(lambda: decode_command(descriptor.command))
            answer = handler_of(self._handlers, command).announce(command, call.of(context))
            metadata = b"" if answer.cut is None else cut_metadata(answer.cut)
            expires = None if answer.expires_us is None else self._expiry_of(answer.expires_us)
            # No locations: the client is to ask on the connection it has.
            endpoints = [flight.FlightEndpoint(ticket, [], expires) for ticket in answer.tickets]
            return flight.FlightInfo(
                answer.schema, descriptor, endpoints, answer.records, answer.size, answer.ordered, metadata
            )

    def _expiry_of(self, expires_us: int) -> pa.Scalar:
        """Kept for the tickets of the same second: making a time for pyarrow takes 30 µs."""
        kept = self._expiry
        if kept is None or kept[0] != expires_us:
            kept = self._expiry = (expires_us, pa.scalar(expires_us * 1_000, _EXPIRY))
        return kept[1]

    def get_schema(self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor) -> flight.SchemaResult:
        with self._call(context, "GetSchema", flight_errors=False) as call:
            command = call.decoded(lambda: decode_command(descriptor.command))
            return flight.SchemaResult(handler_of(self._handlers, command).schema(command, call.of(context)))

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.FlightDataStream:
        with self._call(context, "DoGet") as call:
            command = call.decoded(lambda: decode_command(ticket.ticket, where="Ticket.ticket"))
            return handler_of(self._handlers, command).stream(command, call.of(context))

    def do_put(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
    ) -> None:
        with self._call(context, "DoPut") as call:
            command = call.decoded(lambda: decode_command(descriptor.command))
            self._puts.put(command, call.of(context), reader, writer)

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> list[bytes]:
        with self._call(context, "DoAction") as call:
            call.command = str(action.type) if action.type in ACTION_BODIES else "unknown"
            if action.type == "CloseSession":
                call.arrived.credentials.revoke(context)
            return self._actions.run(action, call.of(context))

    def list_actions(self, context: flight.ServerCallContext) -> list[flight.ActionType]:
        with self._call(context, "ListActions"):
            return self._actions.types()

    # -- what it does not

    def list_flights(self, context: flight.ServerCallContext, criteria: bytes) -> Iterator[flight.FlightInfo]:
        with self._call(context, "ListFlights"):
            raise Unsupported("K2 does not list flights; ask for its tables with GetTables")

    def do_exchange(self, context: flight.ServerCallContext, *_: object) -> None:
        with self._call(context, "DoExchange"):
            raise Unsupported("K2 does not offer DoExchange; send queries with GetFlightInfo and DoGet")

    @contextmanager
    def _call(self, context: flight.ServerCallContext, method: str, *, flight_errors: bool = True) -> Iterator[_Call]:
        started_s = time.perf_counter()
        call = _Call(self._log)
        status = "ok"
        try:
            call.arrived = arrived(context)
            with correlation(call.arrived.correlation_id):
                call.arrived.credentials.admission(context)
                yield call
        except Exception as error:  # noqa: BLE001  (whatever it is, it must not leave with a traceback)
            status = type(error).__name__ if isinstance(error, K2Error) else "Internal"
            call.log.debug("a call was refused", method=method, command=call.command, error=str(error))
            raise on_the_wire(error, call.log, flight_errors=flight_errors) from None
        finally:
            self._count(method, call.command, status, time.perf_counter() - started_s)

    def _count(self, method: str, command: str, status: str, seconds: float) -> None:
        """Finding a metric by its labels takes longer than counting; there are some hundred combinations at most."""
        found = self._counted.get((method, command, status))
        if found is None:
            found = (self._calls.labels(method, command, status), self._seconds.labels(method))
            self._counted[method, command, status] = found
        found[0].inc()
        found[1].observe(seconds)


class _Call:
    """One call: what came with it, the name of what it carries, once known, and a log that says which call it is."""

    arrived: Arrived

    def __init__(self, log: Any) -> None:
        self.command = "unknown"
        self._log = log

    @property
    def log(self) -> Any:
        """Bound by hand: streams go on after the call's own context has ended."""
        found = getattr(self, "arrived", None)
        return self._log if found is None else self._log.bind(correlation_id=found.correlation_id)

    def of(self, context: flight.ServerCallContext) -> Call:
        """The call as handlers take it. Raises Unauthenticated."""
        return Call(self.arrived.caller(context), context.is_cancelled, lambda: self.log)

    def decoded(self, decode: Callable[[], Any]) -> Any:
        command = decode()
        self.command = name_of(command)
        return command
