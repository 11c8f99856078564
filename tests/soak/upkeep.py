"""The jobs of maintenance in a loop, every few seconds, as a process that can be killed: `python -m tests.soak.upkeep`.

Far more often than anybody would run them, so that they meet commits, queries and kills.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from common.clock import SystemClock
from common.datasets import BARS, DATASETS
from common.errors import K2Error
from common.settings import LakeSettings
from sink.maintenance.compaction import CompactionPolicy, compact
from sink.maintenance.expiry import ExpiryPolicy, expire
from sink.maintenance.jobs import Report
from sink.maintenance.orphans import remove_orphans
from sink.maintenance.tables import AnyTable, open_tables

EVERY_S = 3.0
#: Longer than any query and any commit of the run take.
GRACE_S = 60.0
_POLICY = ExpiryPolicy(snapshots_kept_min=20, age_us_min=10_000_000)
_TABLES = (*(dataset.table for dataset in DATASETS.values()), *(bars.table for bars in BARS.values()))


def jobs(table: AnyTable) -> list[Report]:
    """One round over one table."""
    now_us = SystemClock().now_us()
    return [
        compact(table, CompactionPolicy(), now_us),
        expire(table, _POLICY, now_us),
        remove_orphans(table, now_us=now_us, grace_s=GRACE_S, delete=True),
    ]


def main() -> None:
    lake = LakeSettings.load(data_dir=Path(sys.argv[1]))
    sys.stderr.write(f"maintaining {lake.data_dir}\n")
    sys.stderr.flush()
    while True:
        begin_s = time.monotonic()
        for table in open_tables(lake):
            if table.name in _TABLES:
                try:
                    for report in jobs(table):
                        sys.stderr.write(f"{report.table}: {report.job}: {report.to_text()}\n")
                except K2Error as error:
                    sys.stderr.write(f"{table.name}: {error}\n")
        time.sleep(max(0.0, EVERY_S - (time.monotonic() - begin_s)))


if __name__ == "__main__":
    main()
