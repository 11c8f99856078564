"""The table of statuses is complete on purpose, and what it makes fits and tells nothing it should not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from urllib.parse import quote

import pyarrow as pa
import pytest
from pyarrow import flight

from common import errors
from flight_server.engine.running import TablesChanged
from flight_server.service.status import STATUS, fitting, hide_tracebacks, on_the_wire, show_tracebacks


class Log:
    def __init__(self) -> None:
        self.lines: list[dict[str, str]] = []

    def error(self, event: str, **fields: str) -> None:
        self.lines.append(fields)


def tree(kind: type[errors.K2Error]) -> Iterator[type[errors.K2Error]]:
    yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


def test_every_error_of_ours_has_its_own_line() -> None:
    ours = {kind for kind in tree(errors.K2Error) if kind.__module__ == "common.errors"}
    assert ours == set(STATUS)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.InvalidStatement("x"), pa.ArrowInvalid),
        (errors.TableNotFound("x"), pa.ArrowKeyError),
        (errors.Unsupported("x"), pa.ArrowNotImplementedError),
        (errors.StatementTimeout("x"), flight.FlightTimedOutError),
        (errors.PermissionDenied("x"), flight.FlightUnauthorizedError),
        (errors.TailGap("x"), flight.FlightUnavailableError),
        (TablesChanged("x"), flight.FlightUnavailableError),
    ],
)
def test_statuses(error: errors.K2Error, expected: type[Exception]) -> None:
    wire = on_the_wire(error, Log())
    assert isinstance(wire, expected) and str(wire) == "x"


def test_what_is_not_ours_becomes_an_incident() -> None:
    log = Log()
    try:
        raise KeyError("/secret/path")
    except KeyError as error:
        wire = on_the_wire(error, log)
    assert isinstance(wire, flight.FlightInternalError)
    assert "secret" not in str(wire) and log.lines[0]["incident"] in str(wire)
    assert "test_flight_status.py" in log.lines[0]["trace"] and "KeyError" in log.lines[0]["trace"]


def test_the_log_has_frames_while_the_wire_has_none() -> None:
    log = Log()
    hide_tracebacks()
    hide_tracebacks()
    show_tracebacks()
    try:
        assert sys.tracebacklimit == 0
        raise RuntimeError("inside")
    except RuntimeError as error:
        on_the_wire(error, log)
    finally:
        show_tracebacks()
    assert "in test_the_log_has_frames" in log.lines[0]["trace"]
    assert not hasattr(sys, "tracebacklimit")


def test_get_schema_raises_only_what_pyarrow_keeps() -> None:
    for kind in STATUS:
        error = kind("x", topic="t", partition=0, offset=0) if kind is errors.RecordError else kind("x")
        assert not isinstance(on_the_wire(error, Log(), flight_errors=False), flight.FlightError)


@pytest.mark.parametrize("text", ["short", "x" * 100_000, "ü" * 50_000, "\n" * 50_000, "%" * 50_000, "x" * 3_000])
def test_messages_fit_into_the_trailers(text: str) -> None:
    kept = fitting(text)
    encoded = kept.encode()
    assert len(quote(encoded)) + len(encoded) * 4 // 3 < 8_192 or len(kept) < 3_100
    assert kept == text or (kept.endswith(" [...]") and text.startswith(kept[: -len(" [...]")]))
    assert len(kept) > 500 or kept == text
