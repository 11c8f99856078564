"""Many clients that ask one question again and again, in one process: its standard output is a JSON report.

python -m tests.performance.point_clients URI adbc|flight CLIENTS SECONDS STATEMENT
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import adbc_driver_flightsql.dbapi as flight_sql
import pyarrow as pa
from google.protobuf import any_pb2
from pyarrow import flight

from flight_server.protocol import FlightSql_pb2


@dataclass(frozen=True)
class Report:
    """What the clients of one run saw, all processes together."""

    taken_ms: list[float]
    errors: list[str]
    seconds: float
    #: Processor time of the clients while they asked.
    cpu_s: float = 0.0

    @property
    def cpu_ms(self) -> float:
        """That of one statement."""
        return self.cpu_s * 1000 / len(self.taken_ms)

    @property
    def per_second(self) -> float:
        return len(self.taken_ms) / self.seconds


def run_clients(uri: str, kind: str, statement: str, *, clients: int, seconds: float, processes: int = 4) -> Report:
    """`clients` clients in all. Each statement that began within `seconds` counts."""
    share = [clients // processes + (number < clients % processes) for number in range(processes)]
    words = [sys.executable, "-m", "tests.performance.point_clients", uri, kind]
    children = [
        subprocess.Popen([*words, str(count), str(seconds), statement], stdout=subprocess.PIPE, text=True)
        for count in share
        if count
    ]
    outputs = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise RuntimeError("a process of clients failed; what it said is above")
    reports = [json.loads(output) for output in outputs]
    return Report(
        [taken for report in reports for taken in report["taken_ms"]],
        [error for report in reports for error in report["errors"]],
        max(report["seconds"] for report in reports),
        sum(report["cpu_s"] for report in reports),
    )


def asker(uri: str, kind: str, statement: str) -> tuple[Callable[[], pa.Table], Callable[[], None]]:
    """What asks once on a connection of its own, and what closes that."""
    if kind == "adbc":
        connection = flight_sql.connect(uri, autocommit=True)
        cursor = connection.cursor()

        def ask() -> pa.Table:
            cursor.execute(statement)
            return cursor.fetch_arrow_table()

        def close() -> None:
            cursor.close()
            connection.close()

        return ask, close
    client = flight.connect(uri)
    command = any_pb2.Any()
    command.Pack(FlightSql_pb2.CommandStatementQuery(query=statement))
    descriptor = flight.FlightDescriptor.for_command(command.SerializeToString())
    return lambda: client.do_get(client.get_flight_info(descriptor).endpoints[0].ticket).read_all(), client.close


def main() -> None:
    uri, kind, clients, seconds, statement = sys.argv[1:]
    taken_ms: list[float] = []
    errors: list[str] = []
    ready = threading.Barrier(int(clients) + 1)
    ends: list[float] = []

    def go() -> None:
        ask, close = asker(uri, kind, statement)
        ask()
        ready.wait()
        until_s = time.perf_counter() + float(seconds)
        while (begin_s := time.perf_counter()) < until_s:
            try:
                ask()
            except Exception as error:  # noqa: BLE001  (whatever it is belongs into the report)
                errors.append(str(error).splitlines()[0][:200])
            taken_ms.append((time.perf_counter() - begin_s) * 1000)
        ends.append(time.perf_counter())
        close()

    threads = [threading.Thread(target=go) for _ in range(int(clients))]
    for thread in threads:
        thread.start()
    ready.wait()
    begun_s, cpu_s = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.join()
    report = {"taken_ms": taken_ms, "errors": errors, "seconds": max(ends) - begun_s}
    json.dump(report | {"cpu_s": time.process_time() - cpu_s}, sys.stdout)


if __name__ == "__main__":
    main()
