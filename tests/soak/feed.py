"""`just soak feed --minutes 30 --symbols 500`: a market in which something goes wrong every few seconds, and a broker
that is killed again and again.

The exchange, `k2 ingest binance`, a sink, maintenance and a Flight SQL server, as processes on a real Apache Kafka, at
half of the rate that this machine was just seen to hold. Everything that ingest/faults.py knows, by a seeded plan; and
every few minutes the broker is killed and stays away for 20 s. At the end: is every trade that the exchange says it
sent in the table, once? Is every gap closed? Does any process hold more files, threads or sockets than when the run
was warm, or ever more memory? Prints tables, writes bench-results/soak-feed.json, and ends with 1 when something is
wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import clients
from common.clock import SystemClock
from common.errors import K2Error, SettingsError
from ingest.faults import FaultKind, FaultPlan
from ingest.market import market_symbols
from tests.integration.kafka_server import KafkaServer
from tests.performance.scraped import Metrics
from tests.soak.calibration import held_rate
from tests.soak.parts import Parts
from tests.soak.reports import drained, say, verified
from tests.soak.resources import WARM_UP, Held, Reading, Watch, memory_of, slope_per_hour
from tests.support.maven import java_and_maven
from tests.support.missing import MissingTool
from tests.support.processes import Process

BROKER_AWAY_S = 20.0
#: How long anything may take to come up, and the exchange to make a round.
_PATIENCE_S = 300.0
#: How long the last gaps may take: 500 symbols are 500 requests, of which Binance's limit allows some 190 a minute.
_WHOLE_S_MAX = 900.0
#: A process may hold so much more at the end than at the beginning: a pool of threads grows when it is first used.
_MORE = Held(files=6, threads=8, sockets=3)
#: What counts as growth without end, by the line of least squares behind the first third of the run. What parts take
#: for a moment and give back moves memory by some 30 MB: of runs that are shorter the line says nothing.
_SLOPE_MB_PER_HOUR_MAX, _SLOPE_MINUTES_MIN = 100.0, 20.0
#: Rows that the server keeps in memory: so few that they are all there before the line begins.
_HOT_WINDOW_BYTES = 64 * 1024**2
_FIGURES = {
    "trades": 'k2_ingest_records_total{dataset="trades"}',
    "backfilled": "k2_ingest_backfilled_trades_total",
    "gaps_open": "k2_ingest_gaps_open",
    "missing_ids": "k2_ingest_missing_ids",
    "lost_ids": "k2_ingest_lost_ids_total",
    "gaps": "k2_ingest_trade_gaps",
    "queued": "k2_ingest_queued_messages",
    "connections": "k2_ingest_connections",
    "reconnects": "k2_ingest_reconnects_total",
    "rest_requests": "k2_ingest_rest_requests_total",
    "rest_limited": "k2_ingest_rest_limited_total",
}
_COUNTS = (
    "SELECT symbol, count(*) AS trades, count(DISTINCT trade_id) AS ids, min(trade_id) AS first_id, "
    "max(trade_id) AS last_id FROM market.trades GROUP BY symbol ORDER BY symbol"
)
_GAPS = "SELECT state, count(*) AS gaps, sum(last_id - first_id + 1)::BIGINT AS ids FROM ops.gaps GROUP BY state"
_INCOMPLETE = "SELECT symbol FROM ops.completeness WHERE NOT complete ORDER BY symbol"
_SAMPLES_SHOWN, _WIDTH = 12, 140


@dataclass
class Outcome:
    """What the run found; `faults` is empty when nothing is wrong."""

    opened: Mapping[str, int] = field(default_factory=dict)
    closed: Mapping[str, int] = field(default_factory=dict)
    inflicted: dict[str, int] = field(default_factory=dict)
    counts: list[dict[str, Any]] = field(default_factory=list)
    gaps: list[dict[str, Any]] = field(default_factory=list)
    readings: Sequence[Reading] = ()
    held: dict[str, tuple[Held, Held]] = field(default_factory=dict)
    slopes: dict[str, float] = field(default_factory=dict)
    verified: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    last_gaps_s: float = 0.0
    faults: list[str] = field(default_factory=list)


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="just soak feed", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, help="trades a second; without it, half of what the machine holds")
    parser.add_argument("--symbols", type=int, default=500)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two faults, on average")
    parser.add_argument("--broker-every", type=float, default=300.0, help="seconds; 0: the broker is left alone")
    parser.add_argument("--seed", type=int, default=1, help="of the market and the faults")
    parser.add_argument("--output", type=Path, default=Path("bench-results/soak-feed.json"))
    given = parser.parse_args(words)
    try:
        market_symbols(given.symbols)
        FaultPlan.seeded(given.seed, seconds=given.minutes * 60, every_s=given.every)
        java_and_maven()
    except (SettingsError, MissingTool) as error:
        parser.error(str(error))
    if given.rate is not None and not given.rate > 0:
        parser.error("the rate must be above 0")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no part is left running
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="k2-soak-") as folder:
        rate = given.rate or held_rate(Path(folder) / "calibration", "kafka", symbols=given.symbols, sinks=1) / 2
        say(f"{rate:,.0f} trades a second of {given.symbols} symbols for {given.minutes:g} minutes")
        said: Mapping[str, Any] = {}
        run = _Run(Path(folder), rate, given)
        try:
            outcome = run.go()
        finally:
            said = run.end()
    _show(outcome)
    machine = {"cores": os.cpu_count(), "load_1min_before": load_before, "load_1min_after": os.getloadavg()[0]}
    about = {"rate": rate, **{name: getattr(given, name) for name in ("minutes", "symbols", "every", "seed")}}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine, "run": about, "at_us": SystemClock().now_us(), **_as_json(outcome), "said": said}
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if outcome.faults else 0


class _Run:
    """The parts and the order of events."""

    def __init__(self, folder: Path, rate: float, given: argparse.Namespace) -> None:
        self._given, self._seconds = given, given.minutes * 60
        (folder / "broker").mkdir()
        self._kafka = KafkaServer(folder / "broker")
        self._kafka.start()
        self._parts = Parts(
            self._kafka.bootstrap_servers,
            folder,
            rate=rate,
            symbols=given.symbols,
            sinks=1,
            env={"K2_TELEMETRY_METRICS_PORT": "0", "K2_FLIGHT_HOT_WINDOW_BYTES": str(_HOT_WINDOW_BYTES)},
        )
        plan = ("--seed", str(given.seed), "--seconds", str(self._seconds), "--every", str(given.every))
        market = ("--symbols", str(given.symbols), "--rate", str(rate))
        self._exchange = Process(*market, *plan, env={}, module="tests.soak.exchange")
        self._outcome = Outcome()
        #: What the parts held when the run was warm.
        self._before: Mapping[str, Held] = {}

    def go(self) -> Outcome:
        out = self._outcome
        url = self._exchange.wait_for(r"exchange at (\S+)", _PATIENCE_S)[1]
        self._parts.start_behind(",".join(market_symbols(self._given.symbols)), url)
        if not self._come_true(lambda figures: figures["connections"] == 2, _PATIENCE_S):
            raise K2Error("ingest never had two connections")
        out.opened = self._told("open")["opened"]
        watch = Watch(lambda: self._parts.pids, self._figures, max(2.0, self._seconds / 360))
        watch.start()
        begin_s = time.monotonic()
        out.inflicted["broker_down"] = self._disturb(begin_s)
        out.seconds = time.monotonic() - begin_s
        closed = self._told("close")
        out.closed = closed["closed"]
        out.inflicted |= closed["inflicted"]
        say(f"the exchange has closed; it did {out.inflicted}")
        begin_s = time.monotonic()
        if not self._come_true(lambda f: not (f["gaps"] or f["gaps_open"] or f["queued"]), _WHOLE_S_MAX):
            out.faults.append(f"ingest has gaps still after {_WHOLE_S_MAX:.0f} s: {self._figures()}")
        out.last_gaps_s = time.monotonic() - begin_s
        self._come_true(lambda figures: figures["connections"] == 2, _PATIENCE_S)
        after = self._held()
        out.held = {name: (held, after[name]) for name, held in self._before.items() if name in after}
        out.readings = watch.end()
        if (code := self._parts.stop("ingest")) != 0:
            out.faults.append(f"ingest ended with {code}")
        out.faults += drained(self._parts)
        self._ask()
        codes = {name: self._parts.stop(name) for name in ("maintain", *self._parts.sinks, "serve")}
        out.faults += [f"{name} ended with {code}" for name, code in codes.items() if code]
        out.verified = verified(self._parts)
        out.faults += [f"{one['table']}: {finding}" for one in out.verified for finding in one["findings"]]
        self._judge()
        return out

    def end(self) -> Mapping[str, Any]:
        """Leave no process behind; what each said last."""
        self._parts.kill_all()
        self._exchange.kill()
        self._kafka.stop()
        return self._parts.last_lines()

    def _disturb(self, begin_s: float) -> int:
        """Until the time is over: kill the broker now and then, and look after the parts. How often it was killed."""
        kills, every_s = 0, self._given.broker_every
        next_s = begin_s + every_s / 2
        while time.monotonic() < begin_s + self._seconds:
            time.sleep(1.0)
            self._restart_the_ended()
            is_due = bool(every_s) and next_s <= time.monotonic() < begin_s + self._seconds - BROKER_AWAY_S
            # Not at the beginning: behind the broker's first absence there is ops.shed, which has a worker in the sink.
            # And long after the last absence, when all are connected again.
            is_warm = time.monotonic() > begin_s + self._seconds * WARM_UP
            if is_warm and not self._before and (is_due or not every_s):
                self._before = self._held()
            if is_due:
                self._kafka.kill()
                time.sleep(BROKER_AWAY_S)
                self._kafka.start()
                kills += 1
                next_s += every_s
                say(f"{time.monotonic() - begin_s:5.0f} s: the broker was away; {self._figures()}")
        self._before = self._before or self._held()
        return kills

    def _restart_the_ended(self) -> None:
        """That one ended is wrong; the run goes on to show what else is."""
        for fault in self._parts.ended():
            self._outcome.faults.append(fault)
            say(fault)
            name = fault.partition(" ")[0]
            self._parts.kill(name)
            self._parts.start(name)

    def _told(self, word: str) -> dict[str, Any]:
        """Tell the exchange; its answer."""
        self._exchange.tell(word)
        answer = self._exchange.wait_for(rf'^(\{{"{word}.*)', _PATIENCE_S)
        found: dict[str, Any] = json.loads(answer[1])
        return found

    def _figures(self) -> dict[str, float]:
        """Of ingest; none while it is not there."""
        try:
            now = Metrics(self._parts.metrics_of("ingest")).read()
        except (OSError, AssertionError):
            return {}
        return {name: now[metric] for name, metric in _FIGURES.items()}

    def _come_true(self, holds: Any, s_max: float) -> bool:
        deadline_s = time.monotonic() + s_max
        while time.monotonic() < deadline_s:
            if (figures := self._figures()) and holds(figures):
                return True
            time.sleep(0.5)
        return False

    def _held(self) -> dict[str, Held]:
        return {name: Held.by(pid) for name, pid in self._parts.pids.items()}

    def _ask(self) -> None:
        with clients.connect(self._parts.uri) as connection:
            self._outcome.counts = connection.arrow(_COUNTS).to_pylist()
            self._outcome.gaps = connection.arrow(_GAPS).to_pylist()
            incomplete = [row["symbol"] for row in connection.arrow(_INCOMPLETE).to_pylist()]
        if incomplete:
            self._outcome.faults.append(f"{len(incomplete)} symbols are not complete, {incomplete[0]} among them")

    def _judge(self) -> None:
        out = self._outcome
        out.faults += wrong_counts(out.counts, out.opened, out.closed)
        out.faults += [f"{row['gaps']} gaps are {row['state']}" for row in out.gaps if row["state"] != "filled"]
        out.faults += [f"nothing was {kind.value}" for kind in FaultKind if not out.inflicted.get(kind.value)]
        out.faults += [f"{name} {what}" for name, (old, new) in out.held.items() for what in more_held(old, new)]
        names = dict.fromkeys(name for one in out.readings for name in one.rss_bytes)
        out.slopes = {name: slope_per_hour(memory_of(name, out.readings)) for name in names}
        if self._given.minutes >= _SLOPE_MINUTES_MIN:
            out.faults += [
                f"{name} grew by {slope:.0f} MB an hour, more than {_SLOPE_MB_PER_HOUR_MAX:.0f}"
                for name, slope in out.slopes.items()
                if slope > _SLOPE_MB_PER_HOUR_MAX
            ]


def wrong_counts(
    counts: Sequence[Mapping[str, Any]], opened: Mapping[str, int], closed: Mapping[str, int]
) -> list[str]:
    """What is wrong with the table's counts, against the ids of the exchange's first and last round. Pure."""
    faults, found = [], {row["symbol"]: row for row in counts}
    for symbol, last_id in closed.items():
        row = found.get(symbol)
        if row is None:
            faults.append(f"{symbol} is missing")
            continue
        if row["trades"] != row["ids"]:
            faults.append(f"{symbol} has {row['trades']} trades, {row['ids']} ids")
        missing = row["last_id"] - row["first_id"] + 1 - row["ids"]
        if missing or row["first_id"] > opened[symbol] or row["last_id"] < last_id:
            faults.append(
                f"{symbol} has {row['first_id']} to {row['last_id']} without {missing} of them; "
                f"the exchange sent {opened[symbol]} to {last_id}"
            )
    return faults


def more_held(before: Held, after: Held) -> list[str]:
    """What a process holds more of than it may. Pure."""
    pairs = zip(asdict(before).items(), asdict(after).values(), asdict(_MORE).values(), strict=True)
    return [f"has {new} {what}, {old} when it was warm" for (what, old), new, more in pairs if new > old + more]


def _as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "seconds": round(outcome.seconds, 1),
        "trades": sum(row["trades"] for row in outcome.counts),
        "sent": sum(last - outcome.opened[symbol] + 1 for symbol, last in outcome.closed.items()),
        "inflicted": outcome.inflicted,
        "gaps": outcome.gaps,
        "last_gaps_s": round(outcome.last_gaps_s, 1),
        "held": {name: [asdict(one) for one in pair] for name, pair in outcome.held.items()},
        "rss_slope_mb_per_hour": {name: round(slope, 1) for name, slope in outcome.slopes.items()},
        "readings": [asdict(one) for one in outcome.readings],
        "verified": outcome.verified,
        "faults": outcome.faults,
    }


def _show(outcome: Outcome) -> None:
    console = Console(width=_WIDTH)
    over_time = Table("s", *_FIGURES)
    seen = [one for one in outcome.readings if one.figures]
    for one in seen[:: max(1, len(seen) // _SAMPLES_SHOWN)]:
        over_time.add_row(f"{one.at_s:.0f}", *(f"{one.figures[name]:,.0f}" for name in _FIGURES))
    console.print(over_time)
    holds = Table("process", "RSS MB, first", "highest", "last", "MB an hour", "files", "threads", "sockets")
    for name, (old, new) in outcome.held.items():
        rss = [one.rss_bytes[name] / 1e6 for one in outcome.readings if name in one.rss_bytes]
        figures = [f"{rss[0]:.0f}", f"{max(rss):.0f}", f"{rss[-1]:.0f}", f"{outcome.slopes[name]:+.1f}"] if rss else []
        pairs = zip(asdict(old).values(), asdict(new).values(), strict=True)
        holds.add_row(name, *figures, *(f"{a} -> {b}" for a, b in pairs))
    console.print(holds)
    inflicted = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.inflicted.items()))
    console.print(f"{sum(outcome.inflicted.values())} faults in {outcome.seconds:,.0f} s: {inflicted}")
    trades = sum(row["trades"] for row in outcome.counts)
    gaps = ", ".join(f"{row['gaps']:,} gaps of {row['ids']:,} trades {row['state']}" for row in outcome.gaps)
    console.print(
        f"{trades:,} trades of {len(outcome.counts)} symbols; {gaps}, the last {outcome.last_gaps_s:.0f} s after"
    )
    for fault in outcome.faults:
        console.print(f"WRONG: {fault}", markup=False)
    console.print("nothing wrong" if not outcome.faults else f"{len(outcome.faults)} things are wrong")
