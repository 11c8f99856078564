"""The Flight SQL actions, and what DoPut carries: preparing, binding, closing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
from pyarrow import flight

from common.errors import InvalidStatement, LimitExceeded, Unsupported
from flight_server.engine.engine import Engine
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol.commands import ACTION_BODIES, decode_action, name_of, wrap
from flight_server.service.prepared import PreparedStatements

#: Parameters travel in the ticket, twice: well below the 16 MiB that a gRPC message of ADBC may have.
_PARAMETER_BYTES_MAX = 4 * 1024**2

#: Flight's own actions that Flight SQL clients send; later issues answer them.
_FLIGHT_ACTIONS = frozenset(
    ("CancelFlightInfo", "RenewFlightEndpoint", "SetSessionOptions", "GetSessionOptions", "CloseSession")
)


class Actions:
    """DoAction and DoPut. Each method raises our errors."""

    def __init__(self, engine: Engine, prepared: PreparedStatements) -> None:
        self._engine = engine
        self._prepared = prepared
        self._offered: dict[str, tuple[str, Callable[[Any], list[bytes]]]] = {
            "CreatePreparedStatement": ("Prepare an SQL statement.", self._create),
            "ClosePreparedStatement": ("Forget a prepared statement.", self._close),
        }

    def types(self) -> list[flight.ActionType]:
        return [flight.ActionType(name, text) for name, (text, _) in self._offered.items()]

    def run(self, action: flight.Action) -> list[bytes]:
        """The results of an action, each the body of one Result."""
        name = str(action.type)
        if name not in ACTION_BODIES:
            known = "not offered yet" if name in _FLIGHT_ACTIONS else "not known"
            raise Unsupported(f"the action {name[:100]!r} is {known}; K2 offers {', '.join(self._offered)}")
        body = action.body.to_pybytes() if action.body is not None else b""
        command = decode_action(name, body)
        if name not in self._offered:
            raise Unsupported(f"K2 does not offer the action {name} yet; it offers {', '.join(self._offered)}")
        return self._offered[name][1](command)

    def put(self, command: Any, reader: flight.MetadataRecordBatchReader, writer: flight.FlightMetadataWriter) -> None:
        """DoPut: parameters for a prepared query. Statements that change data are not offered yet."""
        if isinstance(command, sql.CommandPreparedStatementQuery):
            handle = command.prepared_statement_handle
            self._bind(handle, _one_batch(reader))
            answer = sql.DoPutPreparedStatementResult(prepared_statement_handle=handle)
            writer.write(pa.py_buffer(answer.SerializeToString()))
            return
        if isinstance(command, sql.CommandStatementUpdate):
            self._refuse_update(command.query)
        if isinstance(command, sql.CommandPreparedStatementUpdate):
            self._refuse_update(self._prepared.get(command.prepared_statement_handle).query)
        raise Unsupported(f"K2 does not offer {name_of(command)} yet; DoPut only binds the parameters of queries")

    def _create(self, request: sql.ActionCreatePreparedStatementRequest) -> list[bytes]:
        if request.HasField("transaction_id"):
            raise Unsupported("K2 does not offer transactions over Flight SQL yet; leave transaction_id out")
        info = self._engine.describe(request.query)
        answer = sql.ActionCreatePreparedStatementResult(
            prepared_statement_handle=self._prepared.add(request.query),
            dataset_schema=info.result_schema.serialize().to_pybytes(),
            is_update=False,
        )
        if len(info.parameter_schema):
            answer.parameter_schema = info.parameter_schema.serialize().to_pybytes()
        return [wrap(answer)]

    def _close(self, request: sql.ActionClosePreparedStatementRequest) -> list[bytes]:
        self._prepared.close(request.prepared_statement_handle)
        return []

    def _bind(self, handle: bytes, parameters: pa.RecordBatch) -> None:
        statement = self._prepared.get(handle)
        if parameters.nbytes > _PARAMETER_BYTES_MAX:
            raise LimitExceeded(
                f"{parameters.nbytes:,} bytes of parameters are more than the {_PARAMETER_BYTES_MAX:,} that one "
                "statement may bind; bind fewer rows at a time"
            )
        self._engine.check_parameters(statement.query, parameters)
        self._prepared.bind(handle, parameters)

    def _refuse_update(self, query: str) -> None:
        self._engine.describe(query)  # an INSERT and its like are refused in there, by name
        raise Unsupported("the statement returns rows and changes nothing; run it as a query")


def _one_batch(reader: flight.MetadataRecordBatchReader) -> pa.RecordBatch:
    """All parameter rows of a stream as one batch, read no further than is allowed."""
    batches: list[pa.RecordBatch] = []
    size = 0
    try:
        for chunk in reader:
            if chunk.data is not None:
                batches.append(chunk.data)
                size += chunk.data.nbytes
            if size > _PARAMETER_BYTES_MAX:
                break
        schema = reader.schema
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise InvalidStatement(f"the bound parameters are no readable Arrow stream ({error})") from None
    combined = pa.Table.from_batches(batches, schema).combine_chunks().to_batches()
    return combined[0] if combined else pa.RecordBatch.from_pylist([], schema=schema)
