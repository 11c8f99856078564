"""`k2 maintain` as a process of its own."""

from __future__ import annotations

from pathlib import Path

import psutil

from tests.support.processes import Process


def test_it_stands_back_where_cores_are_short_and_ends_cleanly(tmp_path: Path) -> None:
    own = psutil.Process().nice()
    env = {"K2_TELEMETRY_METRICS_PORT": "0", "K2_MAINTENANCE_NICE": "3"}
    process = Process("maintain", "--data-dir", str(tmp_path), env=env)
    try:
        process.wait_for("keeping the tables")
        main = psutil.Process(process.pid)
        threads = [Path(f"/proc/{process.pid}/task/{thread.id}/stat").read_text() for thread in main.threads()]
        assert {int(stat.rpartition(")")[2].split()[16]) for stat in threads} == {min(19, own + 3)}
    finally:
        code = process.stop()
    assert code == 0
