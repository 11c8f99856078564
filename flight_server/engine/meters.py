"""What Prometheus is told of statements: how many, how long, how much they gave, and what is open now."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 300)


class Meters:
    """Thread-safe."""

    def __init__(self, registry: CollectorRegistry, now: Mapping[tuple[str, str], Callable[[], float]]) -> None:
        """`now` are gauges: (name, text) -> what the value is when it is asked for."""
        self._statements = Counter("k2_statements", "Statements that ended", ["kind", "status"], registry=registry)
        self._seconds = Histogram(
            "k2_statement_seconds",
            "From the start of a statement to the end of its result",
            ["kind"],
            registry=registry,
            buckets=_BUCKETS_S,
        )
        self._labelled: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._rows = Counter("k2_result_rows", "Rows given to clients", registry=registry)
        self._bytes = Counter("k2_result_bytes", "Bytes of Arrow buffers given to clients", registry=registry)
        self._open = Gauge("k2_open_statements", "Statements that run now", registry=registry)
        for (name, text), value in now.items():
            Gauge(name, text, registry=registry).set_function(value)

    def began(self) -> None:
        """One more statement runs; `ended` is called for each."""
        self._open.inc()

    def ended(self, kind: str, status: str, *, seconds: float, rows: int, nbytes: int) -> None:
        self._open.dec()
        found = self._labelled.get((kind, status))
        if found is None:
            found = self._labelled[kind, status] = (self._statements.labels(kind, status), self._seconds.labels(kind))
        counted, timed = found
        counted.inc()
        timed.observe(seconds)
        self._rows.inc(rows)
        self._bytes.inc(nbytes)
