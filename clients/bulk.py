"""A result of millions of rows, read by pyarrow's client, batch after batch, without a copy of its own.

The driver hands each batch through its own runtime into Arrow's C interface; here a batch is what came off the wire.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pyarrow as pa
from pyarrow import flight

from clients.closing import Closing
from clients.cuts import cut_of_partition
from clients.subscription import flight_error


class BulkStream(Closing):
    """One result: its `schema` and, when iterated, its batches, once, in the order of its parts. Raises QueryError
    where the server fails.

    `cut` is the instant that it is of, as text; None where no table was read.
    """

    def __init__(
        self,
        client: flight.FlightClient,
        options: flight.FlightCallOptions,
        partitions: Sequence[bytes],
        schema: pa.Schema,
    ) -> None:
        """`partitions` are FlightInfos that were announced. The first begins at once; raises what pyarrow raises."""
        self._client, self._options = client, options
        self._partitions = list(partitions)
        self._reader = self._next_reader()
        self.schema: pa.Schema = schema if self._reader is None else self._reader.schema
        self.cut = cut_of_partition(partitions[0]) if partitions else None

    @property
    def partitions_left(self) -> Sequence[bytes]:
        """The parts of it that are not read to their end, each a FlightInfo."""
        return [] if self._reader is None else self._partitions

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        while self._reader is not None:
            try:
                batch = self._reader.read_chunk().data
            except StopIteration:
                self._partitions = self._partitions[1:]
                self._reader = None
                batch = None
            except (pa.ArrowException, flight.FlightError, OSError) as error:
                raise flight_error(error) from None
            if batch is not None:
                yield batch
                continue
            try:
                self._reader = self._next_reader()
            except (pa.ArrowException, flight.FlightError, OSError) as error:
                raise flight_error(error) from None

    def _next_reader(self) -> flight.FlightStreamReader | None:
        if not self._partitions:
            return None
        (endpoint,) = flight.FlightInfo.deserialize(self._partitions[0]).endpoints
        return self._client.do_get(endpoint.ticket, self._options)

    def close(self) -> None:
        """Let the statement go, finished or not; the server stops working on it. May be called again."""
        reader, self._reader = self._reader, None
        with contextlib.suppress(pa.ArrowException, flight.FlightError):  # it is gone already
            if reader is not None:
                reader.cancel()
