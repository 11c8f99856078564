"""Results on their way: what is held comes back however they end, and the server stops when told to."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import Served
from pyarrow import flight

from common.errors import SettingsError
from common.settings import FlightSettings
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol.commands import wrap
from flight_server.service.service import FlightService
from tests.support.fake_lake import FakeLake

ENDLESS = "select a.range from range(1000000) a, range(1000000) b, market.trades"
HOURS = "select sum(a.range * b.range) from range(10000000) a, range(10000000) b, market.trades"


def ticket(client: flight.FlightClient, query: str) -> flight.Ticket:
    command = flight.FlightDescriptor.for_command(wrap(sql.CommandStatementQuery(query=query)))
    return client.get_flight_info(command).endpoints[0].ticket


def until_idle(served: Served) -> None:
    while served.service.stats().open_statements:
        threading.Event().wait(0.005)


@pytest.fixture
def own() -> Iterator[Served]:
    served = Served(FlightSettings(port=0, statement_timeout_s=1.0, drain_s_max=0.2))
    yield served
    served.stop()


def test_a_cancelled_stream(client: flight.FlightClient, served: Served) -> None:
    reader = client.do_get(ticket(client, ENDLESS))
    reader.read_chunk()
    assert served.service.stats().open_statements == 1
    reader.cancel()
    until_idle(served)


def test_a_client_that_vanishes(client: flight.FlightClient, served: Served) -> None:
    """Another process reads one batch and ends without a word."""
    code = (
        "import os, sys; from pyarrow import flight;"
        f"reader = flight.connect('{served.uri}').do_get(flight.Ticket(bytes.fromhex(sys.argv[1])));"
        "reader.read_chunk(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, ticket(client, ENDLESS).ticket.hex()], check=True)
    until_idle(served)


def test_a_client_that_vanishes_before_the_first_batch(client: flight.FlightClient, served: Served) -> None:
    """The engine is at work on an aggregate that would take hours."""
    code = (
        "import os, sys, threading; from pyarrow import flight;"
        f"client = flight.connect('{served.uri}'); ticket = flight.Ticket(bytes.fromhex(sys.argv[1]));"
        "threading.Thread(target=lambda: client.do_get(ticket).read_all(), daemon=True).start();"
        "sys.stdin.read(); os._exit(0)"
    )
    command = [sys.executable, "-c", code, ticket(client, HOURS).ticket.hex()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    while not served.service.stats().open_statements:
        time.sleep(0.005)
    process.communicate()
    until_idle(served)


def test_a_stream_that_nobody_reads_is_ended_by_its_deadline(own: Served) -> None:
    with flight.connect(own.uri) as client:
        reader = client.do_get(ticket(client, ENDLESS))
        reader.read_chunk()
        until_idle(own)
        with pytest.raises(flight.FlightTimedOutError, match="longer than 1 s"):
            for _ in range(1_000_000):
                reader.read_chunk()


def test_a_long_aggregate_is_ended_by_its_deadline(own: Served) -> None:
    with flight.connect(own.uri) as client, pytest.raises(flight.FlightTimedOutError, match="longer than 1 s"):
        client.do_get(ticket(client, HOURS)).read_all()
    assert own.service.stats().open_statements == 0


def test_stopping_lets_short_results_end_and_cancels_long_ones(own: Served) -> None:
    with flight.connect(own.uri) as client:
        reader = client.do_get(ticket(client, ENDLESS))
        reader.read_chunk()
        stopper = threading.Thread(target=own.service.stop)
        stopper.start()
        with pytest.raises(flight.FlightUnavailableError, match="stopping"):
            while True:
                reader.read_chunk()
        stopper.join()
    own.service.stop()
    assert own.service.stats().open_statements == 0


def test_a_client_that_stopped_reading_does_not_keep_the_server() -> None:
    """A paused result set: the whole process ends, with nothing but stop() to help it."""
    code = """
import sys
from conftest import Served
from common.settings import FlightSettings
served = Served(FlightSettings(port=0, drain_s_max=0.05))
print(served.uri, flush=True)
sys.stdin.readline()
served.service.stop(1.0)
print(served.service.stats().open_statements, flush=True)
served.lake.close()
"""
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), str(Path(__file__).parent)])}
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | paths) as server:
        assert server.stdout is not None
        uri = next(line for line in server.stdout if line.startswith("grpc"))
        with flight.connect(uri.strip()) as client:
            reader = client.do_get(ticket(client, ENDLESS))
            reader.read_chunk()
            said, _ = server.communicate("stop\n", timeout=60)
        assert server.returncode == 0 and said.endswith("0\n")


def test_a_port_in_use_is_one_sentence(served: Served) -> None:
    lake = FakeLake()
    second = FlightService(lake, FlightSettings(port=served.service.port))
    with pytest.raises(SettingsError, match=rf"127.0.0.1:{served.service.port}.* choose another"):
        second.start()
    second.stop()
    lake.close()


def test_a_host_that_is_not_here() -> None:
    lake = FakeLake()
    with pytest.raises(SettingsError, match=r"192\.0\.2\.1"):
        FlightService(lake, FlightSettings(host="192.0.2.1", port=0)).start()
    lake.close()


def test_results_are_counted(served: Served, client: flight.FlightClient) -> None:
    def count(name: str, **labels: str) -> float:
        return served.registry.get_sample_value(name, labels or None) or 0.0

    before = count("k2_result_rows_total")
    assert client.do_get(ticket(client, "from range(1000)")).read_all() == pa.table({"range": range(1000)})
    until_idle(served)
    assert count("k2_result_rows_total") - before == 1000
    assert count("k2_flight_calls_total", method="DoGet", command="TicketStatementQuery", status="ok") >= 1
    assert count("k2_statements_total", kind="query", status="cancelled") >= 1
