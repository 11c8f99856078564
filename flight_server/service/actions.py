"""The actions of Flight SQL, and those of Flight that its clients send: preparing, transactions, sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from pyarrow import flight

from common.errors import InvalidStatement, Unsupported
from flight_server.engine.session_options import OptionValue
from flight_server.protocol import Flight_pb2 as messages
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol.commands import ACTION_BODIES, decode_action, decode_command, wrap
from flight_server.protocol.tickets import StatementHandle
from flight_server.service.commands import Call, Statements, refusal_of, transaction_of
from flight_server.service.prepared import PreparedStatement, PreparedStatements

Answers = list[bytes]


class Actions:
    """DoAction. Each method raises our errors."""

    def __init__(self, statements: Statements, prepared: PreparedStatements) -> None:
        self._statements = statements
        self._engine = statements.engine
        self._writing = statements.writing
        self._prepared = prepared
        self._offered: dict[str, tuple[str, Callable[[Any, Call], Answers]]] = {
            "CreatePreparedStatement": ("Prepare an SQL statement.", self._create),
            "ClosePreparedStatement": ("Forget a prepared statement.", self._close),
            "BeginTransaction": ("Begin a transaction: one cut for all of its statements.", self._begin),
            "EndTransaction": ("Commit a transaction, or roll it back.", self._end),
            "CancelFlightInfo": ("Stop what a FlightInfo's tickets give.", self._cancel),
            "CancelQuery": ("The older form of CancelFlightInfo.", self._cancel_query),
            "RenewFlightEndpoint": ("The same endpoint, good for longer.", self._renew),
            "SetSessionOptions": ("Set options of the session.", self._set_options),
            "GetSessionOptions": ("All options of the session.", self._get_options),
            "CloseSession": ("End the session and all that it holds.", self._close_session),
        }

    def types(self) -> list[flight.ActionType]:
        return [flight.ActionType(name, text) for name, (text, _) in self._offered.items()]

    def run(self, action: flight.Action, call: Call) -> Answers:
        """The results of an action, each the body of one Result."""
        name = str(action.type)
        if name not in ACTION_BODIES:
            raise Unsupported(f"the action {name[:100]!r} is not known; K2 offers {', '.join(self._offered)}")
        body = action.body.to_pybytes() if action.body is not None else b""
        command = decode_action(name, body)
        if name in ("BeginSavepoint", "EndSavepoint"):
            raise Unsupported(
                "K2 has no savepoints, because its engine, DuckDB, has none; use a transaction for each part that is "
                "to be rolled back by itself"
            )
        if name not in self._offered:
            raise Unsupported(refusal_of(command))
        return self._offered[name][1](command, call)

    # -- prepared statements

    def _create(self, request: sql.ActionCreatePreparedStatementRequest, call: Call) -> Answers:
        caller, transaction_id = call.caller, transaction_of(request)
        info = self._engine.plans.describe(request.query, caller, transaction_id)
        session = self._engine.plans.session(caller, transaction_id)
        statement = PreparedStatement(
            request.query,
            caller.principal,
            session.id if session is not None else caller.session_id,
            transaction_id,
        )
        is_query = info.statement.is_query
        parameters = (
            info.parameter_schema if is_query else self._writing.parameter_schema(request.query, caller, transaction_id)
        )
        answer = sql.ActionCreatePreparedStatementResult(
            prepared_statement_handle=self._prepared.add(statement), is_update=not is_query
        )
        if is_query:  # without a schema JDBC takes the statement for an update
            answer.dataset_schema = info.result_schema.serialize().to_pybytes()
        if len(parameters):
            answer.parameter_schema = parameters.serialize().to_pybytes()
        return [wrap(answer)]

    def _close(self, request: sql.ActionClosePreparedStatementRequest, call: Call) -> Answers:
        self._prepared.close(request.prepared_statement_handle, call.caller.principal)
        return []

    # -- transactions

    def _begin(self, request: sql.ActionBeginTransactionRequest, call: Call) -> Answers:
        return [wrap(sql.ActionBeginTransactionResult(transaction_id=self._writing.begin(call.caller)))]

    def _end(self, request: sql.ActionEndTransactionRequest, call: Call) -> Answers:
        if request.action == sql.ActionEndTransactionRequest.END_TRANSACTION_UNSPECIFIED:
            raise InvalidStatement("EndTransaction says neither commit nor roll back; send one of both")
        commit = request.action == sql.ActionEndTransactionRequest.END_TRANSACTION_COMMIT
        self._writing.end(request.transaction_id, call.caller, commit=commit)
        return []

    # -- tickets

    def _cancel(self, request: messages.CancelFlightInfoRequest, call: Call) -> Answers:
        done = self._cancel_all(request.info, call)
        status = messages.CANCEL_STATUS_CANCELLED if done else messages.CANCEL_STATUS_NOT_CANCELLABLE
        # A bare message: Flight's own actions are not wrapped in an Any.
        return [messages.CancelFlightInfoResult(status=status).SerializeToString()]

    def _cancel_query(self, request: sql.ActionCancelQueryRequest, call: Call) -> Answers:
        try:
            info = messages.FlightInfo.FromString(request.info)
        except DecodeError:
            raise InvalidStatement("CancelQuery takes a serialised FlightInfo; what came is none") from None
        done = self._cancel_all(info, call)
        results = sql.ActionCancelQueryResult
        result = results.CANCEL_RESULT_CANCELLED if done else results.CANCEL_RESULT_NOT_CANCELLABLE
        return [wrap(sql.ActionCancelQueryResult(result=result))]

    def _cancel_all(self, info: messages.FlightInfo, call: Call) -> bool:
        handles = [self._handle(endpoint.ticket.ticket, call) for endpoint in info.endpoint]
        stopped = [self._engine.cancel(handle.id, call.caller) for handle in handles if handle is not None]
        return any(stopped)

    def _renew(self, request: messages.RenewFlightEndpointRequest, call: Call) -> Answers:
        handle = self._handle(request.endpoint.ticket.ticket, call)
        renewed = messages.FlightEndpoint()
        renewed.CopyFrom(request.endpoint)
        if handle is None:  # a catalog command is its own ticket and is good for ever
            renewed.ClearField("expiration_time")
            return [renewed.SerializeToString()]
        expires_us = self._statements.expiry_us()
        self._engine.renew(handle.id)
        renewed.ticket.ticket = self._statements.seal.ticket(replace(handle, expires_us=expires_us))
        expiry = Timestamp()
        expiry.FromMicroseconds(expires_us)
        renewed.expiration_time.CopyFrom(expiry)
        return [renewed.SerializeToString()]

    def _handle(self, ticket: bytes, call: Call) -> StatementHandle | None:
        """The statement handle in a ticket of ours; None for a ticket that is a command. Raises InvalidStatement."""
        command = decode_command(ticket, where="Ticket.ticket")
        if not isinstance(command, sql.TicketStatementQuery):
            return None
        return self._statements.seal.open(
            command.statement_handle, principal=call.caller.principal, now_us=self._statements.now_us()
        )

    # -- sessions

    def _set_options(self, request: messages.SetSessionOptionsRequest, call: Call) -> Answers:
        options = {name: _value(option) for name, option in request.session_options.items()}
        errors = self._writing.set_options(options, call.caller)
        answer = messages.SetSessionOptionsResult()
        for name, (error, _) in errors.items():
            answer.errors[name].value = messages.SetSessionOptionsResult.ErrorValue.Value(error.name)
        return [answer.SerializeToString()]

    def _get_options(self, request: messages.GetSessionOptionsRequest, call: Call) -> Answers:
        answer = messages.GetSessionOptionsResult()
        for name, value in self._writing.options(call.caller).items():
            _put(answer.session_options[name], value)
        return [answer.SerializeToString()]

    def _close_session(self, request: messages.CloseSessionRequest, call: Call) -> Answers:
        session = self._engine.plans.session(call.caller, None)
        self._prepared.close_session(session.id if session else call.caller.session_id, call.caller.principal)
        self._writing.close_session(call.caller)
        return [messages.CloseSessionResult(status=messages.CloseSessionResult.CLOSED).SerializeToString()]


def _value(option: messages.SessionOptionValue) -> OptionValue:
    kind = option.WhichOneof("option_value")
    if kind is None:
        return None
    if kind == "string_list_value":
        return list(option.string_list_value.values)
    value: OptionValue = getattr(option, kind)
    return value


def _put(option: messages.SessionOptionValue, value: OptionValue) -> None:
    if isinstance(value, bool):
        option.bool_value = value
    elif isinstance(value, int):
        option.int64_value = value
    elif isinstance(value, float):
        option.double_value = value
    elif isinstance(value, list):
        option.string_list_value.values.extend(value)
    elif value is not None:
        option.string_value = value
