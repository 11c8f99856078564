"""What came with a call reaches its handler, once; a call of which nothing is known is not let in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow import flight

from common.telemetry import CORRELATION_KEY
from flight_server.access.gate import Gate
from flight_server.service.middleware import CallFactory, arrived


class Context:
    """A call as its handler sees it, as far as headers go."""

    def __init__(self) -> None:
        self.sent: dict[str, str] = {}

    def add_header(self, name: str, value: str) -> None:
        self.sent[name] = value


def start(factory: CallFactory, method: Any, **headers: str) -> Any:
    named = {name.replace("_", "-"): [value] for name, value in headers.items()}
    return factory.start_call(SimpleNamespace(method=method), named)


def test_it_is_handed_over_once_and_the_headers_are_sent() -> None:
    factory, context = CallFactory(Gate.open()), Context()
    assert start(factory, flight.FlightMethod.GET_FLIGHT_INFO, k2_correlation_id="trace-7") is None
    assert arrived(context).correlation_id == "trace-7"
    assert context.sent[CORRELATION_KEY] == "trace-7" and "k2_session=" in context.sent["set-cookie"]
    with pytest.raises(RuntimeError, match="without its headers"):
        arrived(Context())


def test_a_call_takes_nothing_of_the_one_before_it_on_its_thread() -> None:
    factory = CallFactory(Gate.open())
    start(factory, flight.FlightMethod.DO_GET, k2_correlation_id="first")
    start(factory, flight.FlightMethod.DO_GET, k2_correlation_id="second")
    assert arrived(Context()).correlation_id == "second"
    start(factory, flight.FlightMethod.DO_GET, k2_correlation_id="third")
    with pytest.raises(flight.FlightUnauthenticatedError):
        factory.start_call(
            SimpleNamespace(method=flight.FlightMethod.DO_GET), {"authorization": ["Bearer one", "Bearer two"]}
        )
    with pytest.raises(RuntimeError):
        arrived(Context())


def test_a_handshake_has_a_middleware_for_it_has_no_handler() -> None:
    factory = CallFactory(Gate.open())
    middleware = start(factory, flight.FlightMethod.HANDSHAKE, k2_correlation_id="hello")
    assert middleware.sending_headers()[CORRELATION_KEY] == "hello"
    with pytest.raises(RuntimeError):
        arrived(Context())
