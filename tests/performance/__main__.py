"""`just bench [NAME...]`: run the benchmarks, print one table, write bench-results/latest.json.

Each benchmark is a function that returns rows of figures. `--scale 0.1` makes the data smaller, for a first look.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from common.settings import TelemetrySettings
from common.telemetry import configure_logging
from tests.performance import (
    bench_cancel,
    bench_commits,
    bench_decode,
    bench_export,
    bench_flight,
    bench_freshness,
    bench_hours,
    bench_ingest,
    bench_live,
    bench_load,
    bench_peers,
    bench_publication,
    bench_read_view,
    bench_recovery,
    bench_sink,
    bench_store,
    bench_taq,
    bench_verify,
)
from tests.performance.figures import Figure

BENCHES: dict[str, Callable[[float], list[Figure]]] = {
    "asof": bench_taq.run_asof,
    "decode": bench_decode.run,
    "ingest": bench_ingest.run,
    "freshness": bench_freshness.run,
    "hours": bench_hours.run,
    "sink": bench_sink.run,
    "commits": bench_commits.run,
    "export": bench_export.run,
    "flight": bench_flight.run,
    "cancel": bench_cancel.run,
    "live": bench_live.run,
    "load": bench_load.run,
    "peers": bench_peers.run,
    "publication": bench_publication.run,
    "read_view": bench_read_view.run,
    "recovery": bench_recovery.run,
    "store": bench_store.run,
    "taq": bench_taq.run,
    "verify": bench_verify.run,
}


#: These need package registries or minutes: they run when they are named.
_ON_REQUEST = frozenset({"asof", "commits", "hours", "peers", "read_view", "recovery", "store", "taq", "verify"})


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on."""

    at: str
    cores: int
    python: str
    duckdb: str
    pyarrow: str
    load_1min: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="just bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHES, []], help="which; without, all but peers and read_view")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=Path("bench-results/latest.json"))
    arguments = parser.parse_args()
    configure_logging(TelemetrySettings.load(log_level="error"), service="bench")
    machine = Machine(
        datetime.now(UTC).isoformat(timespec="seconds"),
        os.cpu_count() or 0,
        platform.python_version(),
        duckdb.__version__,
        pa.__version__,
        round(os.getloadavg()[0], 2),
    )
    figures: list[Figure] = []
    for name in arguments.names or (name for name in BENCHES if name not in _ON_REQUEST):
        figures += BENCHES[name](arguments.scale)
    table = Table("benchmark", "figure", "value", "unit", "beside it", title=f"K2 on {machine.cores} cores")
    for figure in figures:
        table.add_row(
            figure.benchmark, figure.name, f"{figure.value:,.3f}".rstrip("0").rstrip("."), figure.unit, figure.beside
        )
    Console().print(table)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": asdict(machine), "scale": arguments.scale, "figures": [asdict(figure) for figure in figures]}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
