"""DoPut: parameters for a prepared query, statements that change something, rows to be taken in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyarrow import flight

from common.errors import InvalidStatement, LimitExceeded, StatementCancelled, Unsupported
from flight_server.engine.requests import Request
from flight_server.engine.shapes import empty_batch
from flight_server.engine.writing import IfThere, Ingest
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.service.commands import Call, Statements, refusal_of, transaction_of
from flight_server.service.prepared import PreparedStatements

#: Parameters travel in the ticket, twice: well below the 16 MiB that a gRPC message of ADBC may have.
_PARAMETER_BYTES_MAX = 4 * 1024**2

_Options = sql.CommandStatementIngest.TableDefinitionOptions
_IF_THERE = {
    _Options.TABLE_EXISTS_OPTION_UNSPECIFIED: IfThere.FAIL,
    _Options.TABLE_EXISTS_OPTION_FAIL: IfThere.FAIL,
    _Options.TABLE_EXISTS_OPTION_APPEND: IfThere.APPEND,
    _Options.TABLE_EXISTS_OPTION_REPLACE: IfThere.REPLACE,
}


class Puts:
    """Answers DoPut. Raises our errors."""

    def __init__(self, statements: Statements, prepared: PreparedStatements) -> None:
        self._engine = statements.engine
        self._writing = statements.writing
        self._prepared = prepared

    def put(
        self,
        command: Any,
        call: Call,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
    ) -> None:
        """Take what comes with the command, and write the one answer that it has."""
        answer: Any
        if isinstance(command, sql.CommandPreparedStatementQuery):
            answer = self._bind(command.prepared_statement_handle, reader, call)
        elif isinstance(command, sql.CommandStatementUpdate):
            request = Request(command.query, transaction_id=transaction_of(command))
            answer = sql.DoPutUpdateResult(record_count=self._writing.run(request, call.caller, call.is_gone))
        elif isinstance(command, sql.CommandPreparedStatementUpdate):
            answer = sql.DoPutUpdateResult(record_count=self._update(command.prepared_statement_handle, reader, call))
        elif isinstance(command, sql.CommandStatementIngest):
            answer = sql.DoPutUpdateResult(record_count=self._ingest(command, reader, call))
        else:
            raise Unsupported(refusal_of(command))
        try:
            writer.write(pa.py_buffer(answer.SerializeToString()))
        except OSError:
            raise StatementCancelled("the client left before it had its answer") from None

    def _bind(
        self, handle: bytes, reader: flight.MetadataRecordBatchReader, call: Call
    ) -> sql.DoPutPreparedStatementResult:
        statement = self._prepared.get(handle, call.caller.principal)
        parameters = pa.Table.from_batches(list(_batches(reader, _PARAMETER_BYTES_MAX)), reader.schema)
        batch = _one_batch(parameters)
        self._engine.plans.check_parameters(statement.query, batch)
        self._prepared.bind(handle, batch, call.caller.principal)
        return sql.DoPutPreparedStatementResult(prepared_statement_handle=handle)

    def _update(self, handle: bytes, reader: flight.MetadataRecordBatchReader, call: Call) -> int:
        """Once per row of parameters, in their order; all rows of all batches are one change."""
        statement = self._prepared.get(handle, call.caller.principal)
        transaction_id = self._engine.transaction_now(statement.transaction_id, call.caller)
        parameters = None
        if self._engine.plans.statement(statement.query).parameters:
            batches = list(_batches(reader, None))
            parameters = _one_batch(pa.Table.from_batches(batches, reader.schema)) if batches else statement.parameters
        request = Request(statement.query, parameters, transaction_id=transaction_id)
        return self._writing.run(request, call.caller, call.is_gone)

    def _ingest(self, command: sql.CommandStatementIngest, reader: flight.MetadataRecordBatchReader, call: Call) -> int:
        options = command.table_definition_options
        ingest = Ingest(
            table=command.table,
            schema=command.schema if command.HasField("schema") else None,
            catalog=command.catalog if command.HasField("catalog") else None,
            temporary=command.temporary,
            create=options.if_not_exist != _Options.TABLE_NOT_EXIST_OPTION_FAIL,
            if_there=_IF_THERE.get(options.if_exists, IfThere.FAIL),
        )
        if not ingest.table:
            raise InvalidStatement("the ingest names no table; set CommandStatementIngest.table")
        rows = pa.RecordBatchReader.from_batches(_schema(reader), _batches(reader, None))
        return self._writing.ingest(ingest, rows, call.caller, transaction_of(command), call.is_gone)


def _schema(reader: flight.MetadataRecordBatchReader) -> pa.Schema:
    try:
        return reader.schema
    except (pa.ArrowException, OSError) as error:
        raise InvalidStatement(f"what came with the command is no readable Arrow stream ({error})") from None


def _batches(reader: flight.MetadataRecordBatchReader, bytes_max: int | None) -> Iterator[pa.RecordBatch]:
    """The batches of a stream, each whole, read no further than is allowed. Raises LimitExceeded, InvalidStatement."""
    size = 0
    try:
        for chunk in reader:
            if chunk.data is None:
                continue
            # Nobody has checked what a stranger's offsets point at: they could name any memory of this process.
            chunk.data.validate(full=True)
            size += chunk.data.nbytes
            if bytes_max is not None and size > bytes_max:
                raise LimitExceeded(
                    f"more than {bytes_max:,} bytes of parameters came, which is what one statement may bind; bind "
                    "fewer rows at a time"
                )
            yield chunk.data
    except (pa.ArrowException, OSError) as error:
        raise InvalidStatement(f"what came with the command is no readable Arrow stream ({error})") from None


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    combined = table.combine_chunks().to_batches()
    return combined[0] if combined else empty_batch(table.schema)
