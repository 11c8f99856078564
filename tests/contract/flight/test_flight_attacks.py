"""The list of attacks in `attacks/*.sql`: each is refused with the status it stands under, and gives nothing away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from grpc import StatusCode

from flight_server.protocol import Flight_pb2
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol.commands import wrap
from tests.support.raw_flight import Outcome, RawFlight, action, descriptor, flight_data, ipc_messages, ticket
from tests.support.served import ServedProcess

ROWS = 100
SECRET = "the-secret-of-the-server-47114711"
_HEADER = re.compile(r"-- (?P<statuses>[A-Z_]+(?: \| [A-Z_]+)*): (?P<title>.*?)(?: with (?P<parameter>\S.*))?")


@dataclass(frozen=True)
class Attack:
    """One text, and the statuses that may answer it."""

    name: str
    text: str
    expected: frozenset[StatusCode]
    parameter: str | None


def attacks(name: str) -> list[Attack]:
    """The attacks of one file."""
    found: list[Attack] = []
    header: re.Match[str] | None = None
    lines: list[str] = []

    def add() -> None:
        if header is not None:
            statuses = frozenset(StatusCode[status] for status in header["statuses"].split(" | "))
            found.append(Attack(f"{name}: {header['title']}", "\n".join(lines), statuses, header["parameter"]))

    for line in (Path(__file__).parent / "attacks" / f"{name}.sql").read_text().split("\n"):
        if match := _HEADER.fullmatch(line):
            add()
            header, lines = match, []
        elif line:
            lines.append(line)
    add()
    return found


def identified(attack: Attack) -> str:
    return attack.name.replace(" ", "-")


@dataclass
class Target:
    """A server with something to steal, a connection of the attacker's, and what the placeholders stand for."""

    served: ServedProcess
    raw: RawFlight
    folder: Path
    places: dict[str, str]

    def filled(self, text: str) -> str:
        for name, value in self.places.items():
            text = text.replace("{" + name + "}", value)
        return text


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder, lake = tmp_path_factory.mktemp("writable"), tmp_path_factory.mktemp("lake")
    (folder / "secret.csv").write_text(f"column0\n{SECRET}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(lake))
        patch.setenv("K2_ATTACK_SECRET", SECRET)
        served = ServedProcess(rows=ROWS, statement_timeout_s=2.0, memory_bytes_max=512 * 1024**2)
    with RawFlight(served.address) as raw, RawFlight(served.address) as other:
        assert changed(raw, "CREATE TABLE research.mine AS SELECT 1 AS a").code is StatusCode.OK
        assert changed(raw, "CREATE TEMP TABLE scratch (a INTEGER)").code is StatusCode.OK
        assert changed(other, "CREATE TEMP TABLE theirs (a INTEGER)").code is StatusCode.OK
        places = {
            "file": str(folder / "secret.csv"),
            "folder": str(folder),
            "data": str(next(lake.glob("**/*.parquet"))),
            "metadata": str(next(lake.glob("**/*.metadata.json"))),
            "serialised": _serialised(f"FROM read_text('{folder / 'secret.csv'}')").replace("'", "''"),
        }
        yield Target(served, raw, folder, places)
    assert served.stop() == 0


def _serialised(text: str) -> str:
    """A query as json_serialize_sql writes it."""
    row = duckdb.execute("SELECT json_serialize_sql(?::VARCHAR)", [text]).fetchone()
    assert row is not None
    return str(row[0])


# -- three ways in


def queried(raw: RawFlight, text: str) -> Outcome:
    """As a query: the outcome of the call that ends it."""
    return _read(raw, wrap(sql.CommandStatementQuery(query=text)))


def changed(raw: RawFlight, text: str) -> Outcome:
    """As an update."""
    return raw.call("DoPut", [flight_data(descriptor=descriptor(wrap(sql.CommandStatementUpdate(query=text))))])


def prepared(raw: RawFlight, text: str, parameter: str | None) -> Outcome:
    """As a prepared statement, with its parameter if there is one."""
    create = sql.ActionCreatePreparedStatementRequest(query=text)
    made = raw.call("DoAction", [action("CreatePreparedStatement", wrap(create))])
    if made.code is not StatusCode.OK:
        return made
    handle = re.findall(rb"[0-9a-f]{32}", made.messages[0])[0]
    command = wrap(sql.CommandPreparedStatementQuery(prepared_statement_handle=handle))
    if parameter is not None:
        (schema, _), (header, body) = ipc_messages(pa.record_batch({"file": [parameter]}))
        first = flight_data(descriptor=descriptor(command), header=schema)
        bound = raw.call("DoPut", [first, flight_data(header=header, body=body)])
        if bound.code is not StatusCode.OK:
            return bound
    outcome = _read(raw, command)
    close = sql.ActionClosePreparedStatementRequest(prepared_statement_handle=handle)
    assert raw.call("DoAction", [action("ClosePreparedStatement", wrap(close))]).code is StatusCode.OK
    return outcome


def _read(raw: RawFlight, command: bytes) -> Outcome:
    announced = raw.call("GetFlightInfo", [descriptor(command)], timeout_s=60)
    if announced.code is not StatusCode.OK:
        return announced
    info = Flight_pb2.FlightInfo.FromString(announced.messages[0])
    return raw.call("DoGet", [ticket(info.endpoint[0].ticket.ticket)], timeout_s=60)


# -- the tests


@pytest.mark.parametrize(
    "attack", [attack for name in ("files", "engine", "market", "live") for attack in attacks(name)], ids=identified
)
def test_attacks_are_refused(target: Target, attack: Attack) -> None:
    text = target.filled(attack.text)
    parameter = None if attack.parameter is None else target.filled(attack.parameter)
    outcomes = {"prepared": prepared(target.raw, text, parameter)}
    if parameter is None:
        outcomes |= {"queried": queried(target.raw, text), "changed": changed(target.raw, text)}
    for way, outcome in outcomes.items():
        # A query that comes as an update may be refused for that alone.
        allowed = attack.expected | ({StatusCode.INVALID_ARGUMENT} if way == "changed" else set())
        assert outcome.code in allowed, f"{way}: {outcome.code.name} {outcome.said} {outcome.messages[:1]!r}"
        assert SECRET not in outcome.said
        assert SECRET.encode() not in b"".join(outcome.messages)
    assert [path.name for path in target.folder.iterdir()] == ["secret.csv"]


@pytest.mark.parametrize("attack", attacks("bombs"), ids=identified)
def test_bombs_do_not_go_off(target: Target, attack: Attack) -> None:
    outcome = (changed if attack.text.startswith("CREATE") else queried)(target.raw, attack.text)
    assert outcome.code in attack.expected, f"{outcome.code.name} {outcome.said}"
    assert target.served.running
    assert queried(target.raw, "SELECT count(*) FROM market.trades").code is StatusCode.OK
    assert target.served.stats()["open_statements"] == 0


def test_after_all_of_it_the_market_is_as_it_was(target: Target) -> None:
    """Runs last in this file: whatever an attack changed would show here."""
    count = queried(target.raw, f"SELECT 'still ' || count(*) AS c FROM market.trades HAVING count(*) = {ROWS}")
    assert count.code is StatusCode.OK
    assert f"still {ROWS}".encode() in b"".join(count.messages)
    tables = "SELECT table_schema, table_name FROM information_schema.tables WHERE table_name LIKE '%evil%'"
    evil = queried(target.raw, f"SELECT 'found' WHERE EXISTS ({tables})")
    assert evil.code is StatusCode.OK
    assert b"found" not in b"".join(evil.messages[1:])
