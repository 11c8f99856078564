"""10,000 requests that are wrong, by bytes through gRPC: right statuses, nothing given away, nothing left behind."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from grpc import StatusCode

from flight_server.protocol import Flight_pb2
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol.commands import wrap
from tests.support.malformed import CATEGORIES, Case, Handles, cases
from tests.support.raw_flight import Outcome, RawFlight, action, descriptor, flight_data, ipc_messages, ticket
from tests.support.served import ServedProcess

SEED, COUNT = 20260815, 10_000
#: A connection serves so many requests, then the next one begins: sessions of many strangers.
PER_CONNECTION = 250
#: Measured growth is below 60 MiB; a leak of one request's 10 KB each would be 100.
GROWTH_MIB_MAX = 150
#: What must be in no answer: a trace, a path of this machine, an address.
GIVEN_AWAY = re.compile(
    r"Traceback|File \"|\.py\b|site-packages|0x[0-9a-f]{8}|"
    + "|".join(re.escape(str(path)) for path in {sys.prefix, sys.base_prefix, str(Path.cwd())} if len(path) > 4)
)


@pytest.fixture
def served() -> Iterator[ServedProcess]:
    served = ServedProcess(rows=5_000, session_idle_s_max=2.0, transaction_idle_s_max=2.0, batch_rows_max=500)
    yield served
    assert served.stop() == 0


def gathered(raw: RawFlight) -> Handles:
    """Handles as a client gets them: a ticket of each kind, prepared statements, a transaction."""
    handles = Handles()
    for query in ("SELECT 1", "SELECT * FROM market.trades"):
        info = raw.call("GetFlightInfo", [descriptor(wrap(sql.CommandStatementQuery(query=query)))])
        assert info.code is StatusCode.OK, info.said
        handles.tickets.append(_ticket_in(info.messages[0]))
        create = action("CreatePreparedStatement", wrap(sql.ActionCreatePreparedStatementRequest(query=query)))
        made = raw.call("DoAction", [create])
        assert made.code is StatusCode.OK, made.said
        handles.prepared.append(re.findall(rb"[0-9a-f]{32}", made.messages[0])[0])
    return handles


def _ticket_in(info: bytes) -> bytes:
    return bytes(Flight_pb2.FlightInfo.FromString(info).endpoint[0].ticket.ticket)


def wrong_about(case: Case, outcome: Outcome) -> str | None:
    """What is wrong about an answer; None when nothing is."""
    if outcome.code not in case.allowed:
        return f"{outcome.code.name} is no answer to it"
    found = GIVEN_AWAY.search(outcome.said)
    return None if found is None else f"it gives away {found.group()!r}"


def test_wrong_requests_get_right_answers_and_leave_nothing_behind(served: ServedProcess) -> None:
    with RawFlight(served.address) as raw:
        handles = gathered(raw)
    before, memory_before = served.stats(), 0.0
    faults: list[str] = []
    seen: Counter[tuple[str, StatusCode]] = Counter()
    requests = cases(SEED, COUNT, handles)
    for first in range(0, COUNT, PER_CONNECTION):
        with RawFlight(served.address) as raw:
            for number in range(first, first + PER_CONNECTION):
                case = next(requests)
                outcome = raw.call(case.method, case.messages, metadata=case.metadata, leave_after=case.leave_after)
                seen[case.category, outcome.code] += 1
                fault = wrong_about(case, outcome)
                if fault is not None and len(faults) < 50:
                    faults.append(f"{number} {case.category} {case.method}: {fault}: {outcome.said[:300]}")
                assert served.running, f"request {number} ended the server: {case}"
        if first == COUNT // 4:  # caches are full by now
            memory_before = served.memory_mib()
    assert not faults, "\n".join(faults)
    assert {category for category, _ in seen} == set(CATEGORIES)
    assert served.memory_mib() - memory_before < GROWTH_MIB_MAX
    after = settled(served, before)
    assert after["open_statements"] == 0
    assert after["sessions"] <= before["sessions"]
    assert after["python_threads"] <= before["python_threads"] + 4
    with RawFlight(served.address) as raw:
        info = raw.call("GetFlightInfo", [descriptor(wrap(sql.CommandStatementQuery(query="SELECT 1")))])
        assert raw.call("DoGet", [ticket(_ticket_in(info.messages[0]))]).code is StatusCode.OK


def settled(served: ServedProcess, before: dict[str, int], *, within_s: float = 20.0) -> dict[str, int]:
    """Its counters once what the strangers held is given back, or as they are at the end of the patience."""
    deadline_s = time.monotonic() + within_s
    while True:
        now = served.stats()
        given_back = all(now[name] <= before[name] for name in ("open_statements", "sessions", "prepared_statements"))
        if given_back or time.monotonic() > deadline_s:
            return now
        time.sleep(0.1)


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.list_(pa.int32())])
@pytest.mark.parametrize("end", [100, 5_000, 10_000_000, 2**31 - 1, -5])
def test_offsets_that_point_outside_of_what_came_are_refused(client_of: RawFlight, kind: pa.DataType, end: int) -> None:
    """Or a client could read the server's memory: the value from offset 0 to 5,000 of a body of 64 bytes."""
    create = sql.ActionCreatePreparedStatementRequest(query="SELECT ?")
    made = client_of.call("DoAction", [action("CreatePreparedStatement", wrap(create))])
    handle = re.findall(rb"[0-9a-f]{32}", made.messages[0])[0]
    value = [1] if pa.types.is_list(kind) else "x"
    (schema, _), (header, body) = ipc_messages(pa.record_batch([pa.array([value], kind)], names=["a"]))
    right = (0).to_bytes(4, "little") + (1).to_bytes(4, "little")
    assert right in body
    bent = body.replace(right, (0).to_bytes(4, "little") + end.to_bytes(4, "little", signed=True), 1)
    command = wrap(sql.CommandPreparedStatementQuery(prepared_statement_handle=handle))
    first = flight_data(descriptor=descriptor(command), header=schema)
    outcome = client_of.call("DoPut", [first, flight_data(header=header, body=bent)])
    assert outcome.code is StatusCode.INVALID_ARGUMENT, outcome.said
    assert "no readable Arrow stream" in outcome.said
    assert client_of.call("DoPut", [first, flight_data(header=header, body=body)]).code is StatusCode.OK


@pytest.fixture(scope="module")
def client_of() -> Iterator[RawFlight]:
    """A connection to a server that all of these tests share."""
    served = ServedProcess(rows=10)
    with RawFlight(served.address) as raw:
        yield raw
    assert served.stop() == 0
