"""docs/flight-sql.md is held to the protocol and to the tests: no name is missing, and no proof is invented."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
from test_docs import ROOT

from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol.commands import ACTION_BODIES


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flight_sql_page", ROOT / "docs/flight_sql_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(page: ModuleType) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.page(text) == text, "run `just docs`"


def test_every_command_of_the_protocol_has_its_row(page: ModuleType) -> None:
    messages = sql.DESCRIPTOR.message_types_by_name
    assert {row.name for row in page.COMMANDS} == {
        name for name in messages if name.startswith("Command") or name == "TicketStatementQuery"
    }


def test_every_action_has_its_row(page: ModuleType) -> None:
    of_flight_sql = {
        name.removeprefix("Action").removesuffix("Request")
        for name in sql.DESCRIPTOR.message_types_by_name
        if name.startswith("Action") and name.endswith("Request")
    }
    assert of_flight_sql <= set(ACTION_BODIES)
    assert {row.name for row in page.ACTIONS} == set(ACTION_BODIES)


def test_every_call_of_the_service_has_its_row(page: ModuleType) -> None:
    """The ten calls of Flight.proto's service, which our copy of it leaves out."""
    assert [row.name for row in page.METHODS] == [
        *("Handshake", "GetFlightInfo", "GetSchema", "DoGet", "DoPut", "DoAction", "ListActions"),
        *("PollFlightInfo", "ListFlights", "DoExchange"),
    ]


def test_every_row_is_proved_and_every_mark_has_a_row(page: ModuleType) -> None:
    """An answer and a refusal alike: each has a test in which a client asked."""
    proofs = list(page.proofs())
    names = {row.name for rows in (page.METHODS, page.COMMANDS, page.ACTIONS) for row in rows}
    assert {proof.name for proof in proofs} == names
    assert {proof.client for proof in proofs} == set(page.CLIENTS)


def test_a_place_that_is_missing_is_named(page: ModuleType) -> None:
    with pytest.raises(ValueError, match="needs exactly one '<!-- methods"):
        page.page("# Flight SQL\n")
