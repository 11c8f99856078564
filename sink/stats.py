"""The sink's counters: of one dataset as a value, of all of them for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.offsets import PartitionOffsets


@dataclass(frozen=True)
class SinkStats:
    """One dataset's counters since the worker was made, as of the end of its last step.

    `rows_read` counts decoded rows, those read a second time after a recovery included. `read` is how far the log was
    read, `committed` how far the table has taken it in, `resting` that it is not read because of load. The `_s` figures
    are seconds spent in each part of the loop.
    """

    dataset: str
    rows_read: int = 0
    rows_committed: int = 0
    rows_held: int = 0
    bytes_read: int = 0
    commits: int = 0
    dead_letters: int = 0
    conflicts: int = 0
    recoveries: int = 0
    rebalances: int = 0
    partitions: int = 0
    holding: bool = False
    resting: bool = False
    read: PartitionOffsets = field(default_factory=PartitionOffsets)
    committed: PartitionOffsets = field(default_factory=PartitionOffsets)
    snapshot_id: int | None = None
    poll_s: float = 0.0
    decode_s: float = 0.0
    write_s: float = 0.0
    commit_s: float = 0.0

    def drained(self, end_offsets: PartitionOffsets) -> bool:
        """True when every record below `end_offsets` is in a committed snapshot or in the dead-letter topic."""
        return not self.holding and self.read.advanced(self.committed).covers(end_offsets)


class StatsCollector(Collector):
    """The counters for Prometheus, read when they are asked for."""

    def __init__(self, stats: Callable[[], Iterable[SinkStats]], running: Callable[[], bool]) -> None:
        self._stats = stats
        self._running = running

    def collect(self) -> Iterator[Metric]:
        stats = list(self._stats())
        counters = (
            ("rows_read", "Rows decoded, those read again after a recovery included.", "rows_read"),
            ("rows_committed", "Rows in committed snapshots.", "rows_committed"),
            ("read_bytes", "Bytes of Avro read.", "bytes_read"),
            ("commits", "Snapshots committed.", "commits"),
            ("dead_letters", "Messages sent to the dead letters.", "dead_letters"),
            ("conflicts", "Commits that found another writer's first.", "conflicts"),
            ("recoveries", "Times a worker started over from its table.", "recoveries"),
            ("rebalances", "Times its consumer group gave the sink other partitions.", "rebalances"),
            ("poll_seconds", "Time spent waiting for and fetching messages.", "poll_s"),
            ("decode_seconds", "Time spent decoding.", "decode_s"),
            ("write_seconds", "Time spent sorting and writing data files.", "write_s"),
            ("commit_seconds", "Time spent committing to the catalog.", "commit_s"),
        )
        for name, what, attribute in counters:
            counter = CounterMetricFamily(f"k2_sink_{name}", what, labels=["dataset"])
            for one in stats:
                counter.add_metric([one.dataset], getattr(one, attribute))
            yield counter
        gauges = (
            ("held_rows", "Rows read and not committed yet.", "rows_held"),
            ("partitions", "Partitions that this sink reads.", "partitions"),
            ("resting", "1 while it is not read because of load.", "resting"),
        )
        for name, what, attribute in gauges:
            gauge = GaugeMetricFamily(f"k2_sink_{name}", what, labels=["dataset"])
            for one in stats:
                gauge.add_metric([one.dataset], getattr(one, attribute))
            yield gauge
        yield GaugeMetricFamily("k2_sink_running", "0 when the sink ended by itself.", value=int(self._running()))
