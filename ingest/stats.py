"""The counters of an ingest: as values of one moment, and for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.degradation import Level


@dataclass(frozen=True, slots=True)
class IngestStats:
    """Counters since start. `frames` = records + duplicates + echoes + ignored + dead letters, once all are handled.

    Duplicates and echoes are both events that the log had already: an echo was told by its bytes (ingest/echoes.py).
    """

    frames: int
    trades: int
    quotes: int
    instruments: int
    records: dict[str, int]
    duplicates_dropped: dict[str, int]
    echoes_dropped: int
    ignored: int
    dead_letters: int
    produced: int
    acknowledged: int
    queued: int
    connected: bool
    connections: int
    reconnects: int
    rotations: int
    gaps: int
    gaps_open: int
    backfilled: int
    missing_ids: int
    lost_ids: int
    oldest_gap_s: float
    log_messages_read: int
    checkpoints: int
    level: Level
    shed: dict[str, int]
    thinned: dict[str, int]


class Counted(Protocol):
    """An ingest, as far as it is counted."""

    def stats(self) -> IngestStats: ...
    def watched_counters(self) -> list[tuple[str, str, int]]: ...
    def watched_levels(self) -> list[tuple[str, str, float]]: ...


class StatsCollector(Collector):
    """The counters for Prometheus, read when they are asked for, so that the path of a frame pays nothing."""

    def __init__(self, service: Counted) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        stats = self._service.stats()
        for name, what, value in (
            ("frames", "Frames read off the websocket.", stats.frames),
            ("ignored_events", "Well-formed frames of no use.", stats.ignored),
            ("dead_letters", "Frames sent to the dead letters.", stats.dead_letters),
            ("produced_messages", "Messages handed to the producer.", stats.produced),
            ("acknowledged_messages", "Messages committed: all in-sync replicas have them.", stats.acknowledged),
            ("echoes_dropped", "Frames that another connection had brought, byte for byte.", stats.echoes_dropped),
            ("reconnects", "Connections made again after one was lost.", stats.reconnects),
            ("rotations", "Connections replaced before they ended.", stats.rotations),
            ("checkpoints", "Ledger checkpoints written.", stats.checkpoints),
            *self._service.watched_counters(),
            ("backfilled_trades", "Missing trades that the venue was asked for.", stats.backfilled),
        ):
            yield CounterMetricFamily(f"k2_ingest_{name}", what, value=value)
        for name, what, level in self._service.watched_levels():
            yield GaugeMetricFamily(f"k2_ingest_{name}", what, value=level)
        records = CounterMetricFamily("k2_ingest_records", "Records taken in.", labels=["dataset"])
        duplicates = CounterMetricFamily(
            "k2_ingest_duplicates_dropped", "Records the log had already.", labels=["dataset"]
        )
        for dataset, taken in stats.records.items():
            records.add_metric([dataset], taken)
        for dataset, dropped in stats.duplicates_dropped.items():
            duplicates.add_metric([dataset], dropped)
        yield records
        yield duplicates
        shed = CounterMetricFamily("k2_ingest_shed_records", "Records not taken under load.", labels=["dataset"])
        for dataset, count in stats.shed.items():
            shed.add_metric([dataset], count)
        yield shed
        thinned = CounterMetricFamily(
            "k2_ingest_thinned_records", "Records taken without their optional fields.", labels=["dataset"]
        )
        for dataset, count in stats.thinned.items():
            thinned.add_metric([dataset], count)
        yield thinned
        yield GaugeMetricFamily("k2_ingest_load_level", "0, normal, to 4: how little is taken.", value=stats.level)
        yield GaugeMetricFamily("k2_ingest_queued_messages", "Messages not acknowledged yet.", value=stats.queued)
        yield GaugeMetricFamily("k2_ingest_trade_gaps", "Ranges of trade ids that are missing.", value=stats.gaps)
        yield GaugeMetricFamily("k2_ingest_gaps_open", "Gaps that are not closed.", value=stats.gaps_open)
        yield GaugeMetricFamily("k2_ingest_missing_ids", "Trade ids missing in these.", value=stats.missing_ids)
        yield CounterMetricFamily("k2_ingest_lost_ids", "Trade ids given up as lost.", value=stats.lost_ids)
        yield GaugeMetricFamily(
            "k2_ingest_oldest_gap_seconds", "Age of the oldest gap that is not closed.", value=stats.oldest_gap_s
        )
        yield GaugeMetricFamily(
            "k2_ingest_connected", "1 while each stream comes in over a connection.", value=int(stats.connected)
        )
