"""Small results, kept: the same statement with the same parameters, for the same principal at the same cut, has the
same result. The cut is in the key, so nothing is ever invalidated; what is not asked for again makes room.

Kept are queries of which it is certain that they give the same rows each time: every function that they call is one
that the engine itself calls consistent, and what they read has its cut.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence, Set

import pyarrow as pa
from prometheus_client import CollectorRegistry, Counter, Gauge

from flight_server.engine.dialect import VARYING_WORDS, Consistent
from flight_server.engine.running import ENTRY_BYTES_MAX
from flight_server.engine.session_options import RESEARCH
from flight_server.engine.statements import Statement, StatementKind

#: What an entry takes beside its Arrow buffers.
_ENTRY_BYTES = 2_048
#: Words that show the catalog, which is not part of the cut.
_CATALOG_WORDS = frozenset(
    """
    information_schema pg_catalog temp show describe desc summarize explain pragma sqlite_master ops research
    """.split()  # noqa: SIM905  (reads better than twelve quoted strings)
)
Key = tuple[str, str, bytes, str | None]


class ReadyResult:
    """A result that is there already; is read as a running statement is."""

    def __init__(self, schema: pa.Schema, batches: Sequence[pa.RecordBatch], cut: str | None) -> None:
        self.schema = schema
        self.cut = cut
        self._batches = iter(batches)

    def read(self) -> pa.RecordBatch | None:
        return next(self._batches, None)

    def close(self) -> None:
        self._batches = iter(())

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self._batches


class Results:
    """Thread-safe; at most `bytes_max` of results, those used last."""

    def __init__(self, *, bytes_max: int, registry: CollectorRegistry) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, tuple[pa.Schema, Sequence[pa.RecordBatch], int]] = OrderedDict()
        self._bytes = 0
        self._consistent = Consistent()
        self._hits = Counter("k2_result_cache_hits", "Results that were there already", registry=registry)
        self._misses = Counter("k2_result_cache_misses", "Results that could be kept and were not", registry=registry)
        held = Gauge("k2_result_cache_bytes", "What the kept results take", registry=registry)
        held.set_function(lambda: self._bytes)

    def learn(self, consistent: Consistent) -> None:
        """Which functions there are that give the same each time."""
        self._consistent = consistent

    def key(
        self, statement: Statement, principal: str, parameters: pa.RecordBatch | None, cut: str | None, tables: Set[str]
    ) -> Key | None:
        """The key of a query's result; None when it must not, or need not, be kept.

        `tables` are the names of tables that have no cut: those of `research`.
        """
        if self._bytes_max == 0 or statement.kind is not StatementKind.QUERY:
            return None
        if statement.reads_tables and cut is None:
            return None
        if not statement.calls <= self._consistent.functions:
            return None
        if not statement.words.isdisjoint(VARYING_WORDS) or not statement.words.isdisjoint(_CATALOG_WORDS):
            return None
        if RESEARCH in statement.words or not statement.words.isdisjoint(tables):
            return None
        bound = b""
        if parameters is not None:
            if parameters.nbytes > _ENTRY_BYTES:
                return None
            bound = bytes(parameters.schema.serialize()) + bytes(parameters.serialize())
        return (statement.text, principal, bound, cut)

    def find(self, key: Key) -> ReadyResult | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
        if found is None:
            self._misses.inc()
            return None
        self._hits.inc()
        return ReadyResult(found[0], found[1], key[3])

    def keep(self, key: Key, schema: pa.Schema, batches: Sequence[pa.RecordBatch]) -> None:
        size = _ENTRY_BYTES + len(key[0]) + len(key[2]) + len(key[3] or "") + sum(batch.nbytes for batch in batches)
        if size > min(ENTRY_BYTES_MAX + _ENTRY_BYTES, self._bytes_max):
            return
        with self._lock:
            before = self._kept.pop(key, None)
            self._bytes += size - (before[2] if before is not None else 0)
            self._kept[key] = (schema, batches, size)
            while self._bytes > self._bytes_max:
                _, (*_, gone) = self._kept.popitem(last=False)
                self._bytes -= gone
