"""A running statement as a Flight data stream, and its end on every path.

The generator's `finally` runs when the result is read to its end, when it fails, when the client cancels or vanishes
(gRPC drops the stream, Python drops the generator), and also when nobody ever reads the first batch: that is why the
generator is started before it is handed over. A statement whose client stays but stops reading is ended by
its deadline.

pyarrow's GeneratorStream and not RecordBatchStream: only there does an error inside the stream keep its gRPC status,
and has a batch metadata. A whole result without a cut needs neither, and is sent without a turn of Python's lock.
With the engine reading ahead on its own thread it is as fast (10M rows x 4 columns: 0.46 s against 0.45 to 0.55 s).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
from pyarrow import flight

from flight_server.engine.read_ahead import ROWS_OF_MANY, ReadAhead
from flight_server.engine.results import ReadyResult
from flight_server.engine.running import RunningStatement
from flight_server.engine.shapes import empty_batch
from flight_server.engine.subscriptions import Subscription
from flight_server.service.status import on_the_wire

#: So many batches are read before a stream begins, at most: of several parameter sets each gives one of its own.
_BEGUN_MAX = 2


def stream_of(
    statement: RunningStatement | ReadyResult | Subscription, log: Callable[[], Any]
) -> flight.FlightDataStream:
    """The statement's result; its cut comes as app_metadata of the first batch, `{"cut": "..."}`.

    Each batch of a subscription has one: the cut that the subscriber stands at with it.
    """
    if isinstance(statement, Subscription):
        items = _arriving(statement, log)
    else:
        batches, ended = _begun(statement)
        if ended and statement.cut is None:
            return table_stream(pa.Table.from_batches(batches, statement.schema))
        if ended:
            return flight.GeneratorStream(statement.schema, _whole(statement, batches))
        items = _items(statement, batches, log)
    next(items)
    return flight.GeneratorStream(statement.schema, items)


def _begun(statement: RunningStatement | ReadyResult) -> tuple[list[pa.RecordBatch], bool]:
    """The first batches, and whether they are all. Raises our errors.

    A result of one small batch is had whole, and its statement ended, before the stream begins: then that needs no
    code of ours, and no turn of Python's lock, for each of its steps.
    """
    batches = []
    while (batch := statement.read()) is not None:
        batches.append(batch)
        if batch.num_rows >= ROWS_OF_MANY or len(batches) == _BEGUN_MAX:
            return batches, False
    return batches, True


def _whole(
    statement: RunningStatement | ReadyResult, batches: list[pa.RecordBatch]
) -> Iterator[pa.RecordBatch | tuple[pa.RecordBatch, bytes]]:
    """All of a result that has a cut, as GeneratorStream takes it: the cut travels beside the first batch."""
    first, *rest = batches or [empty_batch(statement.schema)]
    return iter([(first, cut_metadata(statement.cut)), *rest])


@lru_cache(maxsize=16)
def cut_metadata(cut: str | None) -> bytes:
    """A cut as app_metadata, of a FlightInfo or of a batch. Remembered: many statements are of one cut."""
    return json.dumps({"cut": cut}).encode()


def _arriving(subscription: Subscription, log: Callable[[], Any]) -> Generator[Any, None, None]:
    """As `_items`, without an end of its own."""
    try:
        yield None
        while True:
            batch = subscription.read()
            yield batch, cut_metadata(subscription.cut)
    except Exception as error:  # noqa: BLE001  (whatever it is, it must not leave with a traceback)
        raise on_the_wire(error, log()) from None
    finally:
        subscription.close()


def table_stream(table: pa.Table) -> flight.FlightDataStream:
    """A small table that is already there."""
    return flight.RecordBatchStream(table)


def _items(
    statement: RunningStatement | ReadyResult, begun: Sequence[pa.RecordBatch], log: Callable[[], Any]
) -> Generator[Any, None, None]:
    """First None, then what GeneratorStream takes. `begun` is not empty."""
    batches = ReadAhead(statement, begun)
    try:
        yield None
        metadata = None if statement.cut is None else cut_metadata(statement.cut)
        for batch in batches:
            yield batch if metadata is None else (batch, metadata)
            metadata = None
    except Exception as error:  # noqa: BLE001  (whatever it is, it must not leave with a traceback)
        raise on_the_wire(error, log()) from None
    finally:
        batches.close()
