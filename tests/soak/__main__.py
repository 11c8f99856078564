"""`just soak --minutes 20`: everything at once, for long, while one part after another is killed. `just soak feed` is
another one, see tests/soak/feed.py.

A simulated exchange, ingest, a broker, sinks, maintenance every few seconds and a Flight SQL server, as processes, at
half of the rate that this machine was just seen to hold. One SIGKILL a minute to one of them by turns, and a restart.
Point queries all the time. At the end: is every trade there once, do the tables verify, did anything grow? Prints
tables, writes bench-results/soak.json, and ends with 1 when something is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import clients
from common.clock import SystemClock
from common.errors import K2Error
from tests.soak import feed
from tests.soak.asking import Answers, Asker, Stretch
from tests.soak.calibration import held_rate
from tests.soak.parts import Parts, broker, kind_here
from tests.soak.reports import drained, say, verified
from tests.soak.sampling import Sample, Sampler, grown
from tests.soak.sweeping import GRACE_S, Sweeper

#: What is killed, by turns.
VICTIMS = ("ingest", "sink-1", "serve", "maintain")
_SAMPLES_SHOWN = 12
#: After so many grace times something must have been deleted: a file waits for two of them.
_GRACES_MAX = 5
_COUNTS = (
    "SELECT symbol, count(*) AS trades, count(DISTINCT trade_id) AS ids, min(trade_id) AS first_id, "
    "max(trade_id) AS last_id FROM market.trades GROUP BY symbol ORDER BY symbol"
)


@dataclass(frozen=True)
class Outcome:
    """What the run found; `faults` is empty when nothing is wrong."""

    counts: list[dict[str, Any]]
    verified: list[dict[str, Any]]
    answers: Answers
    samples: Sequence[Sample]
    kills: dict[str, int]
    orphans_deleted: int
    seconds: float
    faults: list[str]


def main() -> None:
    if sys.argv[1:2] == ["feed"]:
        sys.exit(feed.main(sys.argv[2:]))
    parser = argparse.ArgumentParser(prog="just soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, help="trades a second; without it, half of what the machine holds")
    parser.add_argument("--symbols", type=int, default=20)
    parser.add_argument("--sinks", type=int, default=2)
    parser.add_argument("--kill-every", type=float, default=60.0, help="seconds; 0: nothing is killed")
    parser.add_argument("--broker", choices=["kafka", "embedded"], help="without it: Apache Kafka where there is Java")
    parser.add_argument("--output", type=Path, default=Path("bench-results/soak.json"))
    given = parser.parse_args()
    kind = given.broker or kind_here()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="k2-soak-") as folder:
        rate = given.rate or held_rate(Path(folder) / "calibration", kind, symbols=given.symbols, sinks=given.sinks) / 2
        say(f"{rate:,.0f} trades a second for {given.minutes:g} minutes on {kind}")
        with broker(kind, Path(folder) / "broker") as servers:
            parts = Parts(servers, Path(folder), rate=rate, symbols=given.symbols, sinks=given.sinks)
            try:
                outcome = _run(parts, given.minutes * 60, given.kill_every)
            finally:
                parts.kill_all()
    _show(outcome)
    machine = {
        "cores": os.cpu_count(),
        "load_1min_before": round(load_before, 2),
        "load_1min_after": round(os.getloadavg()[0], 2),
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    run = {"rate": rate, "broker": kind, **{name: getattr(given, name) for name in ("minutes", "symbols", "sinks")}}
    result = {
        "machine": machine,
        "run": run,
        **_as_json(outcome),
        "starts_failed": parts.starts_failed,
        "said": parts.last_lines(),
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if outcome.faults else 0)


def _run(parts: Parts, seconds: float, kill_every_s: float) -> Outcome:
    parts.start_all()
    asker = Asker(parts.uri, seed=1)
    sampler = Sampler(parts.lake, lambda: parts.pids, interval_s=max(2.0, seconds / 120))
    kills = dict.fromkeys(VICTIMS, 0)
    faults: list[str] = []
    sweeper = Sweeper(parts.lake.data_dir)
    asker.start()
    for thread in (sampler, sweeper):
        thread.daemon = True  # a run that fails ends all the same
        thread.start()
    begin_s = time.monotonic()
    try:
        for turn in range(1, 10**6):
            next_s = begin_s + turn * kill_every_s if kill_every_s else begin_s + seconds
            while time.monotonic() < min(next_s, begin_s + seconds):
                time.sleep(0.5)
                faults += parts.ended()
                if faults:
                    raise K2Error(faults[0])
            # The last part of a minute is left to the recovery.
            if time.monotonic() - begin_s > seconds - kill_every_s / 2:
                break
            victim = VICTIMS[(turn - 1) % len(VICTIMS)]
            parts.kill(victim)
            kills[victim] += 1
            parts.start(victim)
            say(f"{time.monotonic() - begin_s:5.0f} s: killed {victim}, it is up again")
    except K2Error as error:
        say(str(error))
    took_s = time.monotonic() - begin_s
    faults += [f"{name} ended with {code}" for name in ("ingest", "simulate") if (code := parts.stop(name))]
    faults += drained(parts)
    samples, answers = sampler.end(), asker.end()
    sweeper.end()
    faults += sweeper.faults
    if not sweeper.deleted and took_s > _GRACES_MAX * GRACE_S:
        faults.append(f"no file was deleted by sweeps with a grace time of {GRACE_S} s")
    faults += grown(samples)
    with clients.connect(parts.uri) as connection:
        counts = connection.arrow(_COUNTS).to_pylist()
    codes = {name: parts.stop(name) for name in ("maintain", *parts.sinks, "serve")}
    faults += [f"{name} ended with {code}" for name, code in codes.items() if code]
    reports = verified(parts)
    faults += answers.faults
    faults += [
        f"{row['symbol']} has {row['trades']} trades, {row['ids']} ids" for row in counts if row["trades"] != row["ids"]
    ]
    missing = sum(row["last_id"] - row["first_id"] + 1 - row["ids"] for row in counts)
    if missing:
        faults.append(f"{missing:,} trades that the exchange sent are missing")
    faults += [f"{one['table']}: {finding}" for one in reports for finding in one["findings"]]
    return Outcome(counts, reports, answers, samples, kills, sweeper.deleted, took_s, faults)


def _as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "at_us": SystemClock().now_us(),
        "seconds": round(outcome.seconds, 1),
        "kills": outcome.kills,
        "orphans_deleted": outcome.orphans_deleted,
        "trades": sum(row["trades"] for row in outcome.counts),
        "queries": {
            "stretches": [asdict(one) for one in _stretches(outcome)],
            "taken": [(round(at_s, 1), round(ms, 1)) for at_s, ms in outcome.answers.taken],
            "refused": outcome.answers.refused,
            "empty": len(outcome.answers.empty),
        },
        "samples": [asdict(sample) for sample in outcome.samples],
        "verified": outcome.verified,
        "faults": outcome.faults,
    }


def _stretches(outcome: Outcome) -> list[Stretch]:
    """In each of them, where the run is long enough, each victim is killed as often: the server that has just started
    answers slowly."""
    rounds = sum(outcome.kills.values()) / len(VICTIMS)
    return outcome.answers.stretches(outcome.seconds, round(rounds) if rounds > 2 else 4)


def _show(outcome: Outcome) -> None:
    console = Console()
    growth = Table("s", "rows", "data files", "files", "snapshots", "manifests", "metadata kB")
    step = max(1, len(outcome.samples) // _SAMPLES_SHOWN)
    for one in outcome.samples[::step]:
        figures = (one.rows, one.data_files, one.files, one.snapshots, one.manifests, one.metadata_nbytes // 1000)
        growth.add_row(f"{one.at_s:.0f}", *(f"{figure:,}" for figure in figures))
    console.print(growth)
    memory = Table("process", "RSS MB, first", "highest", "last")
    for name in dict.fromkeys(name for one in outcome.samples for name in one.rss_mb):
        seen = [one.rss_mb[name] for one in outcome.samples if one.rss_mb.get(name)]
        memory.add_row(name, *(str(value) for value in ((seen[0], max(seen), seen[-1]) if seen else ())))
    console.print(memory)
    queries = Table("s", "answers", "p50 ms", "p99 ms", "max ms")
    stretches = _stretches(outcome)
    for number, one in enumerate(stretches):
        begin_s = number * outcome.seconds / len(stretches)
        queries.add_row(f"{begin_s:.0f}", *(f"{figure:,}" for figure in asdict(one).values()))
    console.print(queries)
    trades = sum(row["trades"] for row in outcome.counts)
    console.print(
        f"{trades:,} trades of {len(outcome.counts)} symbols; killed: {outcome.kills}; "
        f"{outcome.orphans_deleted:,} orphans deleted; "
        f"{outcome.answers.refused} queries met no server, {len(outcome.answers.empty)} found no trade at first"
    )
    for fault in outcome.faults:
        console.print(f"WRONG: {fault}", markup=False)
    console.print("nothing wrong" if not outcome.faults else f"{len(outcome.faults)} things are wrong")


if __name__ == "__main__":
    main()
