"""Looks at the sink's load once in a while: its memory, and how far its datasets are behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.clock import Clock
from common.datasets import TRADES
from common.degradation import Level
from common.memory import memory_limit_bytes, resident_bytes
from common.offsets import PartitionOffsets
from common.settings import SinkSettings
from common.telemetry import get_logger
from sink.load import FULL, Allowance, SinkLoad, records_behind
from sink.pool import give_back
from sink.stats import SinkStats

_log = get_logger("sink")

#: What one `look` sees: the counters by dataset, and where the log ended when it was last asked.
Seen = Callable[[], tuple[Mapping[str, SinkStats], PartitionOffsets]]


class LoadWatch(Collector):
    """The load of one sink as its workers heed it, as its log tells it, and for Prometheus.

    `look` is called from one thread; all else from any.
    """

    def __init__(
        self,
        settings: SinkSettings,
        seen: Seen,
        clock: Clock,
        *,
        rss_bytes: Callable[[], int | None] = resident_bytes,
    ) -> None:
        """Raises SettingsError for levels that do not rise."""
        self._load = SinkLoad(settings)
        self._is_on = settings.load_levels
        self._memory_bytes_max = settings.memory_bytes_max or memory_limit_bytes()
        self._seen = seen
        self._clock = clock
        self._rss_bytes = rss_bytes
        self._behind: dict[str, int] = {}
        self._rss = 0

    @property
    def level(self) -> Level:
        return self._load.level

    @property
    def records_behind(self) -> Mapping[str, int]:
        """Records of each dataset that are in no table yet, as of the last look at the log."""
        return self._behind

    def allowance(self, dataset: str) -> Allowance:
        """What the dataset's worker may do now."""
        return self._load.allowance(dataset) if self._is_on else FULL

    def look(self) -> None:
        """Take in the load as of now, and say when the level changes."""
        stats, ends = self._seen()
        # A worker that starts over does not say where it reads: then what was known of it stands.
        self._behind = self._behind | {
            name: records_behind(ends, one.read, one.rows_held) for name, one in stats.items() if one.read
        }
        self._rss = self._rss_bytes() or 0
        memory_percent = 100 * self._rss / self._memory_bytes_max
        if not self._is_on:
            return
        changed = self._load.observe(
            records_behind=self._behind.get(TRADES.name, 0),
            memory_percent=memory_percent,
            rows_read=sum(one.rows_read for one in stats.values()),
            now_s=self._clock.monotonic_s(),
        )
        if self._load.memory_level:
            give_back()  # what Arrow keeps for later is memory that others lack
        if changed:
            self._tell(stats, memory_percent)

    def collect(self) -> Iterator[Metric]:
        """The load for Prometheus."""
        yield GaugeMetricFamily("k2_sink_load_level", "0, normal, to 4: how much waits.", value=self.level)
        yield GaugeMetricFamily("k2_sink_resident_bytes", "This process's memory.", value=self._rss)
        behind = GaugeMetricFamily(
            "k2_sink_behind_records", "Records of the log that are in no table yet.", labels=["dataset"]
        )
        for name, records in self._behind.items():
            behind.add_metric([name], records)
        yield behind

    def _tell(self, stats: Mapping[str, SinkStats], memory_percent: float) -> None:
        level = self._load.level
        facts = {
            "load_level": level.name,
            "waiting": [name for name in stats if not self.allowance(name).reads],
            "trades_behind": self._behind.get(TRADES.name, 0),
            "memory_percent": round(memory_percent),
        }
        if level is Level.CIRCUIT_BREAK:
            _log.error(
                "the sink waits, for its memory is nearly used up; nothing is lost, the log has it: give it more and "
                "set K2_SINK_MEMORY_BYTES_MAX, or lower K2_SINK_COMMIT_BYTES_MAX",
                **facts,
            )
        elif level:
            _log.warning("load", **facts)
        else:
            _log.info("load", **facts)
