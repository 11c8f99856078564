"""Checks side by side: each found in its place, whatever the others do, within the time that there is."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import BrokerError, K2Error
from k2 import doctor
from k2.checks import Check, Found, Off, examined, lines_of, to_json


def failing(error: Exception) -> Callable[[], str]:
    def look() -> str:
        raise error

    return look


def test_each_check_is_told_in_its_place() -> None:
    checks = [
        Check("fine", lambda: "as\n  it should be", "nothing"),
        Check("down", failing(BrokerError("the broker is gone")), "start it"),
        Check("unset", failing(Off("not asked for")), "set it"),
        Check("broken", failing(ZeroDivisionError("by zero")), "call for help"),
    ]
    found = examined(checks, timeout_s=60)
    assert [(one.name, one.state, one.what, one.todo) for one in found] == [
        ("fine", "ok", "as it should be", None),
        ("down", "failed", "the broker is gone", "start it"),
        ("unset", "off", "not asked for", None),
        ("broken", "failed", "ZeroDivisionError: by zero", "call for help"),
    ]


def test_all_are_looked_at_at_once() -> None:
    """Each waits for all others to have begun; one after the other they would never end."""
    barrier = threading.Barrier(5, timeout=60)

    def look() -> str:
        return str(barrier.wait() >= 0)

    found = examined([Check(str(number), look, "") for number in range(5)], timeout_s=60)
    assert [one.what for one in found] == ["True"] * 5


def test_one_that_never_answers_has_failed_and_holds_nobody_up() -> None:
    never = threading.Event()
    checks = [Check("hung", lambda: str(never.wait()), "unplug it"), Check("fine", lambda: "here", "")]
    hung, fine = examined(checks, timeout_s=0.5)
    assert (hung.state, hung.what, hung.todo) == ("failed", "no answer within 0.5 s", "unplug it")
    assert fine.state == "ok"
    never.set()


def test_the_screen_and_the_document() -> None:
    found = [
        Found("broker", "ok", "all is well there", None, 1.0),
        Found("store", "failed", "word " * 30, "do " * 30, 2.0),
    ]
    lines = list(lines_of(found, width=80))
    assert lines[0] == "ok      broker  all is well there"
    assert lines[1].startswith("failed  store   word word")
    assert any(line.startswith(" " * 16 + "-> do do") for line in lines)
    assert all(len(line) <= 80 for line in lines)
    tree = json.loads(to_json(found))
    assert tree["ok"] is False
    assert tree["checks"][0] == {
        "name": "broker",
        "state": "ok",
        "what": "all is well there",
        "todo": None,
        "took_ms": 1.0,
    }
    assert json.loads(to_json(found[:1]))["ok"] is True


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "are free at" in doctor.disk(tmp_path / "not" / "made" / "yet")

    class Usage:
        total, free = 1000 * 1024**3, 40 * 1024**3

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _path: Usage)
    with pytest.raises(K2Error, match="less than 5%"):
        doctor.disk(tmp_path)


def test_a_password_is_not_shown() -> None:
    assert doctor._shown("postgresql://k2:se@cret@db:5432/k2") == "postgresql://db:5432/k2"
    assert doctor._shown("sqlite:////data/catalog.db") == "sqlite:////data/catalog.db"


@pytest.mark.parametrize(
    ("offset_s", "took_s", "said"),
    [(0.25, 0.1, "250 ms behind Binance Spot's, give or take 50 ms"), (-0.25, 0.0, "250 ms ahead of Binance Spot's")],
)
def test_the_clocks(offset_s: float, took_s: float, said: str) -> None:
    exchange = doctor.Exchange(doctor.VENUES["binance"], None, doctor.IngestSettings(), timeout_s=1)
    exchange._offset_s.set_result((offset_s, took_s))
    assert said in exchange.clock()


def test_a_clock_that_is_off() -> None:
    exchange = doctor.Exchange(doctor.VENUES["binance"], None, doctor.IngestSettings(), timeout_s=1)
    exchange._offset_s.set_result((1.6, 0.4))
    with pytest.raises(K2Error, match="1600 ms behind"):
        exchange.clock()
    unsure = doctor.Exchange(doctor.VENUES["binance"], None, doctor.IngestSettings(), timeout_s=1)
    unsure._offset_s.set_result((1.6, 1.4))
    assert "give or take 700 ms" in unsure.clock()
