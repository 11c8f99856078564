"""The thread that keeps the bars, beside the sink's own. What goes wrong with bars holds up no trade."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.clock import Clock
from common.datasets import BARS, TRADES, Bars
from common.errors import K2Error
from common.settings import LakeSettings
from common.telemetry import get_logger
from sink.bars_table import BarsTable
from sink.bars_worker import BarsStats, BarsWorker
from sink.pool import give_back
from sink.table import IcebergTable

_log = get_logger("sink")
_BACKOFF_S_FIRST, _BACKOFF_S_MAX = 0.5, 30.0


def open_worker(lake: LakeSettings, clock: Clock, bars: Sequence[Bars] = tuple(BARS.values())) -> BarsWorker:
    """A worker on the warehouse's tables, which are made when missing. Raises SettingsError, CatalogError."""
    return BarsWorker(IcebergTable.open(lake, TRADES), [BarsTable.open(lake, each) for each in bars], clock)


class BarsService(Collector):
    """Takes the trades into the bars every `interval_ms`, until stopped. One instance runs once.

    What a round cannot do (a catalog that does not answer, a volume that does not fit) is told and tried again; the
    bars are as they were until then, and the trades go on.

    `is_ours` says whether this one is to work now: of several sinks on the same tables one is enough. Two that believe
    so at the same moment are no harm, since the tables are the fence.
    """

    def __init__(
        self, lake: LakeSettings, clock: Clock, *, interval_ms: int, is_ours: Callable[[], bool] = lambda: True
    ) -> None:
        self._lake = lake
        self._clock = clock
        self._interval_s = interval_ms / 1000
        self._is_ours = is_ours
        self._stopping = threading.Event()
        self._worker: BarsWorker | None = None
        self._thread = threading.Thread(target=self._run, name="k2-sink-bars", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Take in what the trades have by now, and end; False when it did not end in time. Idempotent."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stats(self) -> dict[str, BarsStats]:
        """The counters by table; none until the tables are open."""
        return {} if self._worker is None else self._worker.stats

    def collect(self) -> Iterator[Metric]:
        """The counters for Prometheus."""
        stats = list(self.stats().values())
        for name, what, attribute in (
            ("written", "Bars written, those that were corrected included.", "bars_written"),
            ("commits", "Snapshots of bars committed.", "commits"),
            ("conflicts", "Commits of bars that found another writer's first.", "conflicts"),
        ):
            counter = CounterMetricFamily(f"k2_bars_{name}", what, labels=["table"])
            for one in stats:
                counter.add_metric([one.table], getattr(one, attribute))
            yield counter
        behind = GaugeMetricFamily("k2_bars_behind", "Trades that the bars have not taken in yet.", labels=["table"])
        for one in stats:
            behind.add_metric([one.table], one.behind)
        yield behind

    def _run(self) -> None:
        failures = 0
        while True:
            is_last = self._stopping.is_set()
            if not self._is_ours():
                if is_last:
                    return
                self._stopping.wait(self._interval_s)
                continue
            try:
                if self._worker is None:
                    self._worker = open_worker(self._lake, self._clock)
                is_left = self._worker.step()
                give_back()
                if failures:
                    _log.info("the bars go on", failures=failures)
                failures = 0
            except K2Error as error:
                failures += 1
                is_left = False
                _log.warning("the bars wait and try again", reason=error.message)
            except Exception:  # noqa: BLE001 - see below
                # A thread's last frame: bars are made of trades that are safe, and whoever reads them is told by the
                # gauge how far behind they are.
                _log.exception("the bars' worker broke; the trades go on, the bars do not until the sink starts again")
                return
            if is_last:
                return
            if not is_left:
                wait_s = min(_BACKOFF_S_FIRST * 2 ** (failures - 1), _BACKOFF_S_MAX) if failures else self._interval_s
                self._stopping.wait(wait_s)
