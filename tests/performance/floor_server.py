"""The floor: a Flight SQL server that does nothing, made of pyarrow as K2's is: each statement has the same ready row.

What a client's two calls take here no server in Python that is built on pyarrow can take less than.

python -m tests.performance.floor_server says on its standard error where it is, as `k2 serve` does.
"""

from __future__ import annotations

import sys

import pyarrow as pa
from pyarrow import flight

from flight_server.protocol.sql_info import SQL_INFO

#: What `SELECT 1` gives.
_ROW = pa.table({"1": pa.array([1], pa.int32())})


class Floor(flight.FlightServerBase):  # type: ignore[misc]
    """No session, no credentials, no statement: a ticket, and the row."""

    def get_flight_info(
        self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor
    ) -> flight.FlightInfo:
        if b"CommandGetSqlInfo" in descriptor.command:  # what ADBC asks when it connects
            return flight.FlightInfo(SQL_INFO, descriptor, [flight.FlightEndpoint(b"nothing", [])])
        return flight.FlightInfo(_ROW.schema, descriptor, [flight.FlightEndpoint(b"the row", [])])

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.FlightDataStream:
        return flight.RecordBatchStream(SQL_INFO.empty_table() if ticket.ticket == b"nothing" else _ROW)


def main() -> None:
    server = Floor("grpc://127.0.0.1:0")
    sys.stderr.write(f"Flight SQL at grpc://127.0.0.1:{server.port}\n")
    sys.stderr.flush()
    server.wait()


if __name__ == "__main__":
    main()
