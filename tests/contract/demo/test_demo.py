"""`k2 demo` as a user starts it: a process of its own, what it prints and answers, and that it ends cleanly."""

from __future__ import annotations

import gzip
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest

import clients
from clients import ClientError
from tests.support.command import Done, command

k2_here = pytest.fixture(command)

_PER_SYMBOL = (
    "SELECT symbol, count(*) AS trades, count(DISTINCT trade_id) AS ids, min(trade_id) AS first_id, "
    "max(trade_id) AS last_id, sum(quantity) AS volume FROM market.trades GROUP BY symbol"
)


def demo(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "k2.cli", "demo", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(*arguments: str) -> dict[str, Any]:
    """Run to the end; the JSON summary."""
    process = demo("--once", "--json", *arguments)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    summary: dict[str, Any] = json.loads(out)
    return summary


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def oracle(captures: list[Path]) -> dict[str, dict[str, Any]]:
    """Per symbol, read off the captures with nothing of K2."""
    symbols: dict[str, dict[int, tuple[Decimal, Decimal]]] = {}
    for path in captures:
        with gzip.open(path, "rt") as lines:
            for line in lines:
                message = json.loads(line.partition(" ")[2])
                if str(message.get("stream", "")).endswith("@trade"):
                    data = message["data"]
                    symbols.setdefault(data["s"], {})[data["t"]] = (Decimal(data["p"]), Decimal(data["q"]))
    return {
        symbol: {
            "trades": len(trades),
            "first_id": min(trades),
            "last_id": max(trades),
            "gapless": True,
            "volume": sum(quantity for _price, quantity in trades.values()),
            "notional": sum(price * quantity for price, quantity in trades.values()),
            "first_price": trades[min(trades)][0],
            "last_price": trades[max(trades)][0],
        }
        for symbol, trades in symbols.items()
    }


def exact(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the JSON summary with its decimals as decimals again."""
    decimals = ("volume", "notional", "first_price", "last_price")
    return {name: Decimal(value) if name in decimals else value for name, value in row.items() if name != "symbol"}


def test_a_simulated_market_twice_on_one_data_directory(tmp_path: Path) -> None:
    """The second run goes on behind the first: a new broker, no row lost, none twice."""
    arguments = ("--seconds", "2", "--rate", "500", "--data-dir", str(tmp_path / "lake"))
    first, second = finished(*arguments), finished(*arguments)
    assert 0 < first["rows"]["market.trades"] < second["rows"]["market.trades"]
    assert all(row["gapless"] for row in second["queries"][0]["rows"])
    assert first["cut"]["market.trades"]["snapshot"] is not None
    assert first["freshness_ms"]["from"] == "exchange event"
    assert first["freshness_ms"]["p50"] is not None


def test_the_captures_give_exactly_what_they_hold_while_a_client_watches(
    captures: dict[str, Path], tmp_path: Path
) -> None:
    files = [str(path) for path in captures.values()]
    port = free_port()
    faults: list[str] = []
    answers = 0
    ended = threading.Event()

    def watch() -> None:
        """Every 50 ms: each symbol a gapless prefix, and never shorter than before."""
        nonlocal answers
        seen: dict[str, int] = {}
        connection = None
        while not ended.wait(0.05):
            try:
                connection = connection or clients.connect(f"grpc://127.0.0.1:{port}", connect_timeout_s=1.0)
                rows = connection.arrow(_PER_SYMBOL).to_pylist()
            except ClientError:  # not up yet, or over already
                continue
            answers += bool(rows)
            for row in rows:
                whole = row["trades"] == row["ids"] == row["last_id"] - row["first_id"] + 1
                if not whole or row["trades"] < seen.get(row["symbol"], 0):
                    faults.append(str(row))
                seen[row["symbol"]] = row["trades"]
        if connection is not None:
            connection.close()

    watcher = threading.Thread(target=watch)
    watcher.start()
    arguments = ("--speed", "60", "--replay", *files, "--data-dir", str(tmp_path / "lake"))
    try:
        first = finished(*arguments, "--flight-port", str(port))
    finally:
        ended.set()
        watcher.join()
    assert faults == []
    assert answers > 5
    second = finished("--speed", "max", *arguments[2:])
    wanted = oracle(list(captures.values()))
    for summary in (first, second):
        assert summary["rows"]["market.trades"] == 16_253
        assert summary["rows"]["market.quotes"] == 69_211
        assert {row["symbol"]: exact(row) for row in summary["queries"][0]["rows"]} == wanted
    assert first["duplicates_dropped"] == 0
    assert second["duplicates_dropped"] >= 16_253 + 69_211


@pytest.mark.parametrize("arguments", [(), ("--json",)], ids=["panel", "json"])
def test_ctrl_c_ends_everything_and_leaves_no_process(arguments: tuple[str, ...], tmp_path: Path) -> None:
    port = free_port()
    process = demo("--rate", "300", "--flight-port", str(port), "--data-dir", str(tmp_path / "lake"), *arguments)
    for _attempt in range(600):
        try:
            with clients.connect(f"grpc://127.0.0.1:{port}") as connection:
                if connection.arrow("SELECT count(*) FROM market.trades").column(0)[0].as_py():
                    break
        except ClientError:
            time.sleep(0.05)
    else:
        process.kill()
        pytest.fail("the demo never answered: " + (process.communicate()[1] or ""))
    family = psutil.Process(process.pid).children(recursive=True)
    assert family, "the embedded broker is a process of its own"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "Traceback" not in out + err
    _gone, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--replay", "no-such-capture.gz"), 2, "no-such-capture.gz"),
        (("--speed", "fast"), 2, "--speed is a number above 0 or max"),
        (("--live", "--replay", "x.gz"), 2, "--live and --replay exclude each other"),
        (("--data-dir", "/proc/k2"), 2, "cannot be written"),
        (("--rate", "0"), 2, "above 0"),
        (("--unknown",), 2, "No such option"),
    ],
)
def test_wrong_use_gets_one_clear_sentence(
    k2_here: Callable[..., Done], arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = k2_here("demo", "--once", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_port_in_use_and_a_second_demo_on_the_same_directory_are_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = demo("--once", "--flight-port", str(taken.getsockname()[1]), "--data-dir", str(tmp_path / "a"))
        _out, err = process.communicate(timeout=60)
        assert process.returncode == 2, err
        assert str(taken.getsockname()[1]) in err
        assert "Traceback" not in err
    first = demo("--json", "--data-dir", str(tmp_path / "b"))
    try:
        lock = tmp_path / "b" / "demo" / "ingest.lock"
        for _attempt in range(600):
            if lock.exists() and lock.read_text():
                break
            time.sleep(0.05)
        second = demo("--once", "--data-dir", str(tmp_path / "b"))
        _out, err = second.communicate(timeout=60)
        assert second.returncode == 2, err
        assert f"process {first.pid}" in err
    finally:
        first.send_signal(signal.SIGINT)
        assert first.wait(10) == 0
