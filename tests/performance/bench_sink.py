"""Kafka to committed Iceberg: a preloaded topic on the embedded broker; one sink process, and two that share it.

What two on one table lose to each other's commits is told by the same two on a table each: everything else is equal.
Their shares of the partitions are fixed, since what is measured is not how long a group takes to let them in.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from common.datasets import TRADES, Dataset
from common.log import KafkaLog, Share
from common.offsets import PartitionOffsets
from common.settings import KafkaSettings, LakeSettings, SinkSettings, TelemetrySettings
from common.telemetry import configure_logging
from k2.broker import EmbeddedBroker
from sink.service import SinkService
from sink.table import IcebergTable
from tests.performance.figures import Figure
from tests.performance.market_data import messages

_ROWS = 2_000_000
_TOPIC = TRADES.topic(asset_class="crypto", exchange="binance")
#: Few large commits, as a sink makes them that catches up, and the many of one that is fresh.
_COMMIT_ROWS = {"by default": None, "commits of 50,000 rows": 50_000}


@dataclass(frozen=True)
class _Taken:
    """How several sinks took in the topic together, and what each of them said at its end."""

    rows: int
    seconds: float
    sinks: Sequence[Mapping[str, Any]]

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds

    @property
    def rows_per_cpu_s(self) -> float:
        return self.rows / sum(sink["cpu_s"] for sink in self.sinks)

    @property
    def beside(self) -> str:
        parts = ("poll_s", "decode_s", "write_s", "commit_s")
        spent = ", ".join(f"{part[:-2]} {sum(sink[part] for sink in self.sinks):.2f} s" for part in parts)
        commits, conflicts = (sum(sink[name] for sink in self.sinks) for name in ("commits", "conflicts"))
        rss = " and ".join(f"{sink['rss_mib']:.0f}" for sink in self.sinks)
        return f"{commits} commits, {conflicts} conflicts; {spent}; peak {rss} MiB"


def run(scale: float) -> list[Figure]:
    count = int(_ROWS * scale)
    figures: list[Figure] = []
    with EmbeddedBroker() as broker:
        kafka = KafkaSettings.load(bootstrap_servers=broker.bootstrap_servers)
        log = KafkaLog(kafka)
        log.ensure_topics([_TOPIC])
        _preload(kafka, count)
        ends = log.end_offsets(log.topics(TRADES.topic_pattern).values())
        assert sum(ends.values()) == count
        for name, commit_rows in _COMMIT_ROWS.items():
            one = _take(kafka, ends, commit_rows, sinks=1, tables=1)
            apart = _take(kafka, ends, commit_rows, sinks=2, tables=2)
            together = _take(kafka, ends, commit_rows, sinks=2, tables=1)
            for what, taken in (
                ("one process", one),
                ("two processes, a table each", apart),
                ("two processes, one table", together),
            ):
                figures.append(Figure("sink", f"{what}, {name}", taken.rows_per_s, "rows/s", taken.beside))
                figures.append(
                    Figure(
                        "sink", "per CPU second", taken.rows_per_cpu_s, "rows/s", "the sinks; the broker has its own"
                    )
                )
            lost = 100 * (1 - together.rows_per_s / apart.rows_per_s)
            figures.append(Figure("sink", f"lost to the other's commits, {name}", lost, "%", "one table beside two"))
    return figures


def _take(kafka: KafkaSettings, ends: PartitionOffsets, commit_rows: int | None, *, sinks: int, tables: int) -> _Taken:
    with tempfile.TemporaryDirectory(prefix="k2-bench-") as folder, contextlib.ExitStack() as stack:
        lakes = [LakeSettings.load(data_dir=Path(folder) / str(number)) for number in range(tables)]
        for lake in lakes:
            IcebergTable.open(lake, TRADES)
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.performance.bench_sink", _task(kafka, lake, commit_rows, number, sinks)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number, lake in ((number, lakes[number % tables]) for number in range(sinks))
        ]
        for child in children:
            stack.callback(child.kill)
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
        begin_s = time.perf_counter()
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        said = [json.loads(child.stdout.readline()) for child in children if child.stdout is not None]
        seconds = time.perf_counter() - begin_s
        for child in children:
            child.communicate()
            assert child.returncode == 0
        taken_in = PartitionOffsets()
        for lake in lakes:
            taken_in = taken_in.advanced(IcebergTable.open(lake, TRADES).committed_offsets())
        assert taken_in == ends
        assert sum(IcebergTable.open(lake, TRADES).rows for lake in lakes) == sum(ends.values())
    return _Taken(sum(ends.values()), seconds, said)


def _task(kafka: KafkaSettings, lake: LakeSettings, commit_rows: int | None, number: int, sinks: int) -> str:
    return json.dumps(
        {
            "servers": kafka.bootstrap_servers,
            "data_dir": str(lake.data_dir),
            "commit_rows_max": commit_rows,
            "partitions": list(range(number, kafka.topic_partitions, sinks)),
        }
    )


class _Fixed:
    """A member whose share never changes."""

    def __init__(self, shares: Set[Share]) -> None:
        self._shares = shares

    def follow(self, topics: Iterable[str]) -> None: ...

    def serve(self, on_revoke: Callable[[Set[Share], bool], None]) -> Set[Share]:
        return self._shares

    def note(self, next_offsets: Mapping[Share, int]) -> None: ...

    def close(self) -> None: ...


class _Sink(SinkService):
    """A sink as `k2 sink` runs it, but for how it gets its partitions. Without bars: they are another benchmark's."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        settings = SinkSettings.load(commit_rows_max=task["commit_rows_max"], bars=False)
        kafka = KafkaSettings.load(bootstrap_servers=task["servers"])
        super().__init__(kafka, LakeSettings.load(data_dir=Path(task["data_dir"])), settings, datasets=(TRADES,))
        self.shares = frozenset(Share(_TOPIC, number) for number in task["partitions"])

    def _join(self, dataset: Dataset, client_id: str) -> Any:
        return _Fixed(self.shares)


def _child(task: Mapping[str, Any]) -> None:
    """A sink process: it says that it is ready, waits to be told, and says how it went."""
    configure_logging(TelemetrySettings.load(log_level="error"), service="bench")
    sink = _Sink(task)
    log = KafkaLog(KafkaSettings.load(bootstrap_servers=task["servers"]))
    ends = log.end_offsets(log.topics(TRADES.topic_pattern).values())
    mine = PartitionOffsets({p: n for p, n in ends.items() if p.partition in task["partitions"]})
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    cpu_before_s = time.process_time()
    sink.start()
    waiter = threading.Event()
    while not sink.stats()[TRADES.name].drained(mine):
        if sink.failure is not None:
            raise sink.failure
        waiter.wait(0.005)
    stats = sink.stats()[TRADES.name]
    said = {
        "cpu_s": time.process_time() - cpu_before_s,
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "commits": stats.commits,
        "conflicts": stats.conflicts,
        "poll_s": stats.poll_s,
        "decode_s": stats.decode_s,
        "write_s": stats.write_s,
        "commit_s": stats.commit_s,
    }
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()
    sink.stop()


def _preload(kafka: KafkaSettings, count: int) -> None:
    values = messages(20_000)
    producer = Producer(kafka.client_config() | {"linger.ms": 20, "queue.buffering.max.messages": 1_000_000})
    for number in range(count):
        while True:
            try:
                producer.produce(_TOPIC, values[number % len(values)], partition=number % kafka.topic_partitions)
                break
            except BufferError:
                producer.poll(0.05)
        if number % 10_000 == 0:
            producer.poll(0)
    producer.flush()


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
