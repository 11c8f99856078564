"""`k2 tables orphans --delete` again and again, with a grace time far shorter than `k2 maintain` may have."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

#: Longer than any query and any commit of the run take.
GRACE_S = 60
_EVERY_S = 20.0


class Sweeper(threading.Thread):
    """`deleted` files so far; `faults` are sweeps that failed for another reason than a catalog that was busy."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(name="sweeper")
        self._command = [sys.executable, "-m", "k2.cli", "tables", "orphans", "--delete", "--json"]
        self._command += ["--older-than", f"{GRACE_S}s", "--data-dir", str(data_dir)]
        self._ended = threading.Event()
        self.deleted = 0
        self.faults: list[str] = []

    def run(self) -> None:
        while not self._ended.wait(_EVERY_S):
            done = subprocess.run(self._command, capture_output=True, text=True, check=False)
            reports: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
            self.deleted += sum(report.get("files_deleted", 0) for report in reports)
            if done.returncode not in (0, 3):
                self.faults.append(f"a sweep ended with {done.returncode}: {done.stderr.strip()[-300:]}")

    def end(self) -> None:
        self._ended.set()
        self.join()
