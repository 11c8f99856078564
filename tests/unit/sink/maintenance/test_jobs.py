"""How jobs report, and how they are stopped."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import ClassVar

import pytest

from common.errors import Interrupted
from sink.maintenance.jobs import Report, Unwatched, counted, in_bytes, in_time


@dataclass(frozen=True)
class Part:
    files: int

    def to_json(self) -> dict[str, int]:
        return {"files": self.files}


@dataclass(frozen=True)
class Swept(Report):
    job: ClassVar[str] = "sweep"

    files: int
    parts: tuple[Part, ...] = ()


def test_a_report_is_its_fields_as_json() -> None:
    report = Swept("market.trades", False, 3, (Part(1), Part(2)))
    assert report.to_json() == {
        "job": "sweep",
        "table": "market.trades",
        "dry_run": False,
        "files": 3,
        "parts": [{"files": 1}, {"files": 2}],
    }


def test_a_job_that_nobody_stops_goes_on() -> None:
    watch = Unwatched(threading.Event())
    watch.step("list files", 3)
    watch.advance(3)


def test_a_job_is_stopped_at_its_next_step() -> None:
    stop = threading.Event()
    watch = Unwatched(stop)
    stop.set()
    with pytest.raises(Interrupted, match="list files"):
        watch.step("list files")
    with pytest.raises(Interrupted):
        watch.advance()


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_000, "1.0 kB"), (3_420_000, "3.4 MB"), (5 * 10**15, "5000.0 TB")],
)
def test_bytes_for_people(nbytes: int, text: str) -> None:
    assert in_bytes(nbytes) == text


def test_one_file_is_no_files() -> None:
    assert [counted(n, "file") for n in (0, 1, 1_000)] == ["0 files", "1 file", "1,000 files"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (1.5, "1.5 s"), (60, "1 m"), (90, "90 s"), (3_600, "1 h"), (86_400, "24 h")]
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert in_time(seconds) == text
