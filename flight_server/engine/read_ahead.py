"""A result read ahead on a thread of its own, so that the engine works on the next batch while one is being sent.

Measured with 10M rows of 4 columns on two cores: 0.45 s with it, 0.65 s without. Results of one small batch never start
the thread, which would cost them 0.1 ms.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence

import pyarrow as pa

from common.heap import heap
from flight_server.engine.results import ReadyResult
from flight_server.engine.running import RunningStatement

#: Batches held beyond the one being sent: enough to keep both sides busy, at most 16 MiB at the default batch size.
_AHEAD = 2
#: A batch of this many rows says that more will come.
ROWS_OF_MANY = 8_192


class ReadAhead:
    """Iterate it to the end, or `close` it; both end the statement. One consumer."""

    def __init__(self, statement: RunningStatement | ReadyResult, begun: Sequence[pa.RecordBatch] = ()) -> None:
        """`begun` was read off the statement already and comes first."""
        self._statement = statement
        self._begun = deque(begun)
        self._ready: deque[pa.RecordBatch | BaseException | None] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            while (batch := self._next()) is not None:
                yield batch
        finally:
            self.close()

    def close(self) -> None:
        """End the statement and the thread; returns when both have ended."""
        with self._changed:
            first, self._closed = not self._closed, True
            self._changed.notify_all()
        self._statement.close()
        if self._thread is not None:
            self._thread.join()
            if first:
                heap.end_large_result()

    def _next(self) -> pa.RecordBatch | None:
        if self._thread is None:
            batch = self._begun.popleft() if self._begun else self._statement.read()
            if batch is not None and batch.num_rows >= ROWS_OF_MANY and not self._begun:
                self._thread = threading.Thread(target=self._run, name="k2-read-ahead", daemon=True)
                heap.begin_large_result()
                self._thread.start()
            return batch
        with self._changed:
            self._changed.wait_for(lambda: bool(self._ready))
            outcome = self._ready.popleft()
            self._changed.notify_all()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _run(self) -> None:
        outcome: pa.RecordBatch | BaseException | None
        while True:
            try:
                outcome = self._statement.read()
            except BaseException as error:  # noqa: BLE001  (it is raised again on the consumer's thread)
                outcome = error
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._ready) < _AHEAD)
                if self._closed:
                    return
                self._ready.append(outcome)
                self._changed.notify_all()
            if outcome is None or isinstance(outcome, BaseException):
                return
