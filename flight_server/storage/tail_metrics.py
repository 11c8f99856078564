"""What the tail says of itself to Prometheus: how old rows are when they are shown, and how many it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, Summary
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flight_server.storage.latencies import Ages


class TailMetrics(Collector):
    """Told of each publication; how many rows the tail holds is asked when somebody reads the metrics."""

    def __init__(self, tail_rows: Callable[[], Mapping[str, int]], registry: CollectorRegistry) -> None:
        """`tail_rows` may be called from any thread."""
        self._tail_rows = tail_rows
        self._slowest = Histogram(
            "k2_freshness_seconds",
            "From reading a record off the socket to its being visible to queries, slowest row of each publication",
            registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        mean = Summary(
            "k2_freshness_mean_seconds",
            "The mean age of each publication's rows since the socket: when read of the log, when visible to queries",
            ["until"],
            registry=registry,
        )
        self._read, self._visible = mean.labels("read"), mean.labels("visible")
        registry.register(self)

    def published(self, ages: Ages | None) -> None:
        """Rows of these ages were published."""
        if ages is not None:
            self._slowest.observe(ages.slowest_us / 1e6)
            self._read.observe(ages.read_us / 1e6)
            self._visible.observe(ages.visible_us / 1e6)

    def collect(self) -> Iterator[Metric]:
        gauge = GaugeMetricFamily("k2_tail_rows", "Rows held beyond the snapshot", labels=["table"])
        for name, rows in self._tail_rows().items():
            gauge.add_metric([name], rows)
        yield gauge
