"""How soon the engine stops working for somebody who has cancelled, or is gone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
from pyarrow import flight

from common.settings import FlightSettings
from flight_server.protocol import Flight_pb2 as messages
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol.commands import wrap
from flight_server.service.service import FlightService
from tests.performance.figures import Figure
from tests.support.fake_lake import FakeLake

#: Nothing to give before its end, which is hours away; and rows without end.
_SILENT = "select sum(a.range * b.range) as n from range(100000000) a, range(10000000) b, market.trades"
_STREAM = "select a.range from range(10000000) a, range(1000000) b, market.trades"
#: A client that is a process of its own, so that it can be gone at once.
_CLIENT = """
import sys
import adbc_driver_flightsql.dbapi as dbapi
with dbapi.connect(sys.argv[1], autocommit=True) as connection, connection.cursor() as cursor:
    cursor.execute(sys.argv[2])
    for batch in cursor.fetch_record_batch():
        pass
"""


def run(scale: float) -> list[Figure]:
    lake = FakeLake(100)
    service = FlightService(lake, FlightSettings.load(port=0))
    service.start()
    turns = max(5, int(20 * scale))
    try:
        return [
            _figure("CancelFlightInfo of a silent statement", [_cancelled(service, _SILENT) for _ in range(turns)]),
            _figure("CancelFlightInfo of a stream", [_cancelled(service, _STREAM) for _ in range(turns)]),
            _figure("client killed before the first batch", [_killed(service, _SILENT) for _ in range(turns)]),
            _figure("client killed in the middle of a stream", [_killed(service, _STREAM) for _ in range(turns)]),
        ]
    finally:
        service.stop()
        lake.close()


def _figure(name: str, times: list[float]) -> Figure:
    return Figure("cancel", f"{name}, slowest", max(times), "ms", f"p50 {np.median(times):.1f} ms, {len(times)} times")


def _cancelled(service: FlightService, query: str) -> float:
    client = flight.connect(service.uri)
    command = wrap(sql.CommandStatementQuery(query=query))
    info = client.get_flight_info(flight.FlightDescriptor.for_command(command))
    threading.Thread(target=_read, args=(client, info), daemon=True).start()
    request = messages.CancelFlightInfoRequest(info=messages.FlightInfo.FromString(info.serialize()))
    action = flight.Action("CancelFlightInfo", request.SerializeToString())
    return _time_to_idle(service, lambda: list(client.do_action(action)))


def _killed(service: FlightService, query: str) -> float:
    with subprocess.Popen([sys.executable, "-c", _CLIENT, service.uri, query]) as client:
        return _time_to_idle(service, client.kill)


def _time_to_idle(service: FlightService, end: Callable[[], object]) -> float:
    """Milliseconds from the end that the client makes until the engine holds no statement any more."""
    while not service.stats().open_statements:
        time.sleep(0.001)
    time.sleep(0.1)  # well into its work
    began = time.perf_counter()
    end()
    while service.stats().open_statements:
        time.sleep(0.0005)
    return (time.perf_counter() - began) * 1000


def _read(client: flight.FlightClient, info: flight.FlightInfo) -> None:
    try:
        for _ in client.do_get(info.endpoints[0].ticket):
            pass
    except BaseException:  # noqa: BLE001  (it is meant to be ended; pyarrow tells of a cancel as KeyboardInterrupt)
        return
