"""Point queries through ADBC all the time, their times kept; whoever is not there to answer is asked again.

They are asked by a process of their own: in the one that takes samples of the lake, each sample holds the interpreter
up, and so whoever measures in it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe

import numpy as np

import clients
from clients import ClientError, Connection

#: A point query every 50 ms: enough for a p99 of each stretch, little beside the load.
_PAUSE_S = 0.05
#: How often the newest id of one symbol is asked for, which is no point query and not counted. Of the last seconds of
#: one symbol, so that it is little work, and no more at the end than at the beginning.
_NEWEST_S = 0.5
_FIRST = "SELECT symbol, max(trade_id) AS newest FROM market.trades GROUP BY symbol"
_NEWEST = (
    "SELECT max(trade_id) AS newest FROM market.trades "
    "WHERE symbol = '{symbol}' AND event_time > now() - INTERVAL 10 SECONDS"
)


@dataclass(frozen=True)
class Stretch:
    """The answers of a stretch of the run."""

    answers: int
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass
class Answers:
    """`taken` are (seconds since the start, milliseconds) of the answers; `faults` what was wrong with any of them."""

    taken: list[tuple[float, float]] = field(default_factory=list)
    refused: int = 0
    empty: set[tuple[str, int]] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)

    def stretches(self, seconds: float, count: int) -> list[Stretch]:
        """That many equal stretches of a run of so many seconds; of one without answers all times are 0. Pure."""
        found = []
        for number in range(count):
            begin, end = seconds * number / count, seconds * (number + 1) / count
            times = [ms for at, ms in self.taken if begin <= at < end or (number == count - 1 and at >= end)]
            p50, p99 = np.percentile(times, [50, 99]) if times else (0.0, 0.0)
            found.append(
                Stretch(len(times), round(float(p50), 2), round(float(p99), 2), round(max(times, default=0), 2))
            )
        return found


class Asker:
    """A process with one client, from `start` to `end`. It also ends when whoever started it is gone."""

    def __init__(self, uri: str, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_ask_until_ended, args=(uri, seed, time.monotonic(), theirs), name="asker", daemon=True
        )
        self._theirs = theirs

    def start(self) -> None:
        self._process.start()
        self._theirs.close()

    def end(self) -> Answers:
        """Raises EOFError when the process died."""
        self._pipe.send(None)
        answers: Answers = self._pipe.recv()
        self._process.join()
        return answers


def _ask_until_ended(uri: str, seed: int, begin_s: float, pipe: Pipe) -> None:
    client = _Client(uri, seed, begin_s)
    client.run(pipe)
    with contextlib.suppress(OSError):  # nobody is there to be told
        pipe.send(client.answers)


class _Client:
    """A trade that was there once must be there, once, in each later answer."""

    def __init__(self, uri: str, seed: int, begin_s: float) -> None:
        self._uri = uri
        self._random = random.Random(seed)
        self._begin_s = begin_s
        self._newest: dict[str, int] = {}
        self._turn = 0
        self.answers = Answers()

    def run(self, ended: Pipe) -> None:
        connection: Connection | None = None
        next_newest_s = 0.0
        while not ended.poll(_PAUSE_S):
            try:
                connection = connection or clients.connect(self._uri, connect_timeout_s=1.0)
                if not self._newest:
                    self._newest = {row["symbol"]: row["newest"] for row in connection.arrow(_FIRST).to_pylist()}
                elif time.monotonic() >= next_newest_s:
                    self._ask_for_newest(connection)
                    next_newest_s = time.monotonic() + _NEWEST_S
                else:
                    self._ask(connection)
            except ClientError:  # the server was killed, or starts
                self.answers.refused += 1
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _ask_for_newest(self, connection: Connection) -> None:
        """Of one symbol, by turns."""
        symbol = sorted(self._newest)[self._turn % len(self._newest)]
        self._turn += 1
        found = connection.arrow(_NEWEST.format(symbol=symbol))["newest"][0].as_py()
        if found is None:  # ingest was killed: nothing came lately
            return
        if found < self._newest[symbol]:
            self.answers.faults.append(f"{symbol} ended at {self._newest[symbol]}, and later at {found}")
        self._newest[symbol] = max(self._newest[symbol], found)

    def _ask(self, connection: Connection) -> None:
        symbol = self._random.choice(sorted(self._newest))
        trade_id = self._random.randint(1, self._newest[symbol])
        begin_s = time.perf_counter()
        rows = connection.arrow(
            f"SELECT trade_id, price, quantity FROM market.trades WHERE symbol = '{symbol}' AND trade_id = {trade_id}"
        ).num_rows
        taken_ms = (time.perf_counter() - begin_s) * 1000
        self.answers.taken.append((time.monotonic() - self._begin_s, taken_ms))
        if rows > 1:
            self.answers.faults.append(f"{symbol} {trade_id} was there {rows} times")
        if rows == 0:  # lost with a killed ingest, until it is filled
            self.answers.empty.add((symbol, trade_id))
