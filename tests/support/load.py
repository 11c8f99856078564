"""Clients that do what clients do, many at once: `python -m tests.support.load URI CLIENTS OPERATIONS SECONDS SEED`.

Each client is a thread with ADBC connections of its own, every other one with cookies; it draws operations from a seed
until it has done its number of them, or until the seconds are over, and checks each answer. `market.trades` must have
the columns of the schema, and rows. Prints one JSON object: operation -> milliseconds of each, and the errors.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import adbc_driver_flightsql.dbapi as dbapi
import adbc_driver_manager
import pyarrow as pa

from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol.commands import wrap
from tests.support.raw_flight import RawFlight, descriptor, ticket

_COOKIES = "adbc.flight.sql.rpc.with_cookie_middleware"


@dataclass
class Report:
    """What came of it: operation -> the milliseconds of each, and what went wrong."""

    taken_ms: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        for name, taken in other.taken_ms.items():
            self.taken_ms.setdefault(name, []).extend(taken)
        self.errors += other.errors


class Client:
    """One client: a connection that lives as long as it does, others for a moment."""

    def __init__(self, uri: str, number: int, seed: int) -> None:
        self.uri = uri
        self.number = number
        self.chance = random.Random(seed * 1_000 + number)
        self.report = Report()
        self._connection = self._connect()
        row = self._rows("SELECT count(*), min(trade_id), max(trade_id) FROM market.trades")[0]
        self.count, self.first, self.last = row

    def run(self, operations: int, until_s: float) -> None:
        """Draw and do; an operation that fails is written down and the next one begins."""
        weights = [weight for weight, _ in OPERATIONS.values()]
        names = list(OPERATIONS)
        for _ in range(operations):
            if time.monotonic() >= until_s:
                break
            (name,) = self.chance.choices(names, weights)
            begin_s = time.perf_counter()
            try:
                OPERATIONS[name][1](self)
            except Exception as error:  # noqa: BLE001  (whatever it is, it is what the load is run to find)
                self.report.errors.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            else:
                self.report.taken_ms.setdefault(name, []).append((time.perf_counter() - begin_s) * 1000)

    def close(self) -> None:
        self._connection.close()

    # -- the operations

    def select_one(self) -> None:
        assert self._rows("SELECT 1") == [(1,)]

    def point(self) -> None:
        number = self.chance.randint(self.first, self.last)
        rows = self._rows(f"SELECT trade_id, price FROM market.trades WHERE trade_id = {number}")
        assert len(rows) == 1
        assert rows[0][0] == number

    def aggregate(self) -> None:
        rows = self._rows("SELECT symbol, count(*), max(price) FROM market.trades GROUP BY symbol")
        assert sum(row[1] for row in rows) == self.count

    def scan(self) -> None:
        wanted = min(self.count, 1_000_000)
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT symbol, event_time, price, quantity FROM market.trades LIMIT {wanted}")
            reader = cursor.fetch_record_batch()
            assert sum(batch.num_rows for batch in reader) == wanted

    def prepared(self) -> None:
        numbers = [self.chance.randint(self.first, self.last) for _ in range(3)]
        with self._connection.cursor() as cursor:
            for number in numbers:
                cursor.execute("SELECT trade_id FROM market.trades WHERE trade_id = ?", (number,))
                assert cursor.fetchall() == [(number,)]
            batch = pa.record_batch({"a": pa.array(numbers)})
            cursor.execute("SELECT ? + 1 AS n", batch)
            assert [row[0] for row in cursor.fetchall()] == [number + 1 for number in numbers]

    def catalog(self) -> None:
        found = self._connection.adbc_get_objects(depth="tables", table_name_filter="trades").read_all().to_pylist()
        schemas = [entry for one in found for entry in one["catalog_db_schemas"] or ()]
        tables = [entry["table_name"] for one in schemas for entry in one["db_schema_tables"] or ()]
        assert "trades" in tables
        assert "price" in self._connection.adbc_get_table_schema("trades", db_schema_filter="market").names

    def transaction(self) -> None:
        with self._connect(autocommit=False) as connection, connection.cursor() as cursor:
            counts = []
            for _ in range(2):
                cursor.execute("SELECT count(*) FROM market.trades")
                counts.append(cursor.fetchone())
            assert counts[0] == counts[1]
            cursor.execute("CREATE TEMP TABLE part AS SELECT * FROM market.trades LIMIT 10")
            cursor.execute("SELECT count(*) FROM part")
            assert cursor.fetchone() == (10,)
            connection.rollback()

    def scratch(self) -> None:
        name = f"scratch_{self.number}"
        rows = pa.table({"a": list(range(1_000)), "b": [str(n) for n in range(1_000)]})
        with self._connect() as connection, connection.cursor() as cursor:
            assert cursor.adbc_ingest(name, rows, mode="create", temporary=True) in (1_000, -1)
            cursor.execute(f"SELECT count(*), sum(a) FROM {name}")
            assert cursor.fetchone() == (1_000, 499_500)
            cursor.execute(f"DROP TABLE {name}")

    def cancel(self) -> None:
        """A long statement, stopped from another thread while it runs; a cancel between two calls meets nothing."""
        ended = threading.Event()

        def stop() -> None:
            while not ended.wait(0.05 + self.chance.random() / 10):
                cursor.adbc_cancel()

        with self._connect() as connection, connection.cursor() as cursor:
            stopper = threading.Thread(target=stop)
            stopper.start()
            try:
                cursor.execute("SELECT count(*) FROM range(100000) AS a, range(100000) AS b, range(100) AS c")
                cursor.fetchall()
            except adbc_driver_manager.Error as error:
                assert "cancel" in str(error).lower(), error
            else:
                raise AssertionError("a statement that was cancelled came to its end")
            finally:
                ended.set()
                stopper.join()

    def wrong(self) -> None:
        try:
            self._rows("SELECT nothing FROM nowhere")
        except adbc_driver_manager.Error as error:
            assert "nowhere" in str(error), error
        else:
            raise AssertionError("there was something nowhere")

    def vanish(self) -> None:
        """A result begun, and the connection dropped within it; or announced and never asked for."""
        with RawFlight(self.uri.partition("://")[2]) as raw:
            query = wrap(sql.CommandStatementQuery(query="SELECT * FROM market.trades AS a, range(50) AS b"))
            info = raw.call("GetFlightInfo", [descriptor(query)])
            assert info.messages, info.said
            if self.chance.random() < 0.7:
                raw.call("DoGet", [ticket(ticket_in(info.messages[0]))], leave_after=self.chance.randint(0, 3))

    # -- inside

    def _connect(self, *, autocommit: bool = True) -> dbapi.Connection:
        options = {_COOKIES: "true"} if self.number % 2 else {}
        return dbapi.connect(self.uri, options, autocommit=autocommit)

    def _rows(self, text: str) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(text)
            return list(cursor.fetchall())


#: Operation -> (how often, what it does).
OPERATIONS: dict[str, tuple[int, Callable[[Client], None]]] = {
    "select 1": (50, Client.select_one),
    "point query": (50, Client.point),
    "aggregate": (6, Client.aggregate),
    "scan": (2, Client.scan),
    "prepared": (20, Client.prepared),
    "catalog": (8, Client.catalog),
    "transaction": (4, Client.transaction),
    "scratch": (4, Client.scratch),
    "cancel": (2, Client.cancel),
    "wrong": (4, Client.wrong),
    "vanish": (2, Client.vanish),
}


def ticket_in(info: bytes) -> bytes:
    """The ticket of a FlightInfo's first endpoint."""
    from flight_server.protocol import Flight_pb2

    return bytes(Flight_pb2.FlightInfo.FromString(info).endpoint[0].ticket.ticket)


def run(uri: str, clients: int, operations: int, seconds: float, seed: int) -> Report:
    """So many clients at once in this process; each does `operations`, or as many as fit into `seconds`."""
    made = [Client(uri, seed * clients + number, seed) for number in range(clients)]
    until_s = time.monotonic() + seconds
    threads = [threading.Thread(target=client.run, args=(operations, until_s)) for client in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = Report()
    for client in made:
        client.close()
        report.add(client.report)
    return report


def run_processes(
    uri: str, *, processes: int, clients: int, operations: int, seconds: float, victims: int = 0
) -> tuple[Report, float]:
    """`clients` in each of so many processes, and how long they took.

    `victims` more processes run beside them and are killed as soon as the first of the others has ended, or when half
    of the seconds are over.
    """

    def started(number: int) -> subprocess.Popen[str]:
        arguments = [uri, clients, operations, seconds, number]
        command = [sys.executable, "-m", "tests.support.load", *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    begin_s = time.monotonic()
    doomed = [started(100 + number) for number in range(victims)]
    running = [started(number) for number in range(processes)]
    half = threading.Event()
    killer = threading.Thread(target=_kill, args=(doomed, half, seconds / 2))
    killer.start()
    report = Report()
    for child in running:
        said, _ = child.communicate()
        half.set()
        if child.returncode:
            report.errors.append(f"a process of clients ended with {child.returncode}")
            continue
        found = json.loads(said)
        report.add(Report(found["taken_ms"], found["errors"]))
    taken_s = time.monotonic() - begin_s
    killer.join()
    return report, taken_s


def _kill(doomed: Sequence[subprocess.Popen[str]], sign: threading.Event, within_s: float) -> None:
    sign.wait(within_s)
    for child in doomed:
        child.kill()
        child.communicate()


def main() -> None:
    uri, clients, operations, seconds, seed = sys.argv[1:]
    report = run(uri, int(clients), int(operations), float(seconds), int(seed))
    json.dump({"taken_ms": report.taken_ms, "errors": report.errors}, sys.stdout)


if __name__ == "__main__":
    main()
