"""Our errors on the wire: one table from error class to gRPC status, and no traceback to anybody.

pyarrow gives INVALID_ARGUMENT, NOT_FOUND and UNIMPLEMENTED only for its own three exception classes, and formats their
traceback, with the server's paths, into the status detail. `tracebacks_hidden` keeps the frames out of it (Python's own
sys.tracebacklimit, for the whole process: logs that want frames must ask for a limit of their own), `_SaidOnce` keeps
the message from being said twice. RESOURCE_EXHAUSTED cannot be had from pyarrow; UNKNOWN, which drivers show as an
operational error, stands for it. Source: pyarrow 26.0.1, arrow/python/common.cc and flight.cc; checked by test.
"""

from __future__ import annotations

import sys
import threading
import traceback
import uuid
from typing import Any
from urllib.parse import quote

import pyarrow as pa
from pyarrow import flight

from common import errors

#: gRPC allows 8 KB of metadata; the rest of the trailers takes less than this.
_TRAILER_BYTES_MAX = 7_000


class _SaidOnce:
    """The exception's own message for pyarrow, nothing for the traceback module, which would repeat it as a detail."""

    args: tuple[Any, ...]

    def __str__(self) -> str:
        caller = sys._getframe().f_back  # None when pyarrow asks, from C++
        return "" if caller is not None and caller.f_globals["__name__"] == "traceback" else str(self.args[0])


class InvalidArgument(_SaidOnce, pa.ArrowInvalid):  # type: ignore[misc]
    __module__ = "k2"


class NotFound(_SaidOnce, pa.ArrowKeyError):  # type: ignore[misc]
    __module__ = "k2"


class Unimplemented(_SaidOnce, pa.ArrowNotImplementedError):  # type: ignore[misc]
    __module__ = "k2"


class Unknown(_SaidOnce, pa.ArrowException):  # type: ignore[misc]
    __module__ = "k2"


Cancelled = flight.FlightCancelledError
DeadlineExceeded = flight.FlightTimedOutError
Unauthenticated = flight.FlightUnauthenticatedError
PermissionDenied = flight.FlightUnauthorizedError
Unavailable = flight.FlightUnavailableError
Internal = flight.FlightInternalError
Failed = flight.FlightServerError

#: Every error class of ours -> what goes over the wire. A class stands for its subclasses without a line of their own;
#: a test proves that each class says so on purpose.
STATUS: dict[type[errors.K2Error], type[Exception]] = {
    errors.K2Error: Internal,
    errors.SettingsError: Internal,
    errors.FeedError: Internal,
    errors.FeedProtocolError: Internal,
    errors.FeedGap: Internal,
    errors.FeedClosed: Internal,
    errors.FeedLimited: Internal,
    errors.FeedRefused: Internal,
    errors.RecordError: Internal,
    errors.EncodeError: Internal,
    errors.BrokerError: Unavailable,
    errors.LogTruncated: Failed,
    errors.IngestFenced: Internal,
    errors.IncompatibleSchema: Internal,
    errors.CatalogError: Unavailable,
    errors.CommitError: Internal,
    errors.CommitConflict: Internal,
    errors.CommitStateUnknown: Internal,
    errors.MaintenanceError: Internal,
    errors.Refused: Internal,
    errors.Overtaken: Internal,
    errors.Interrupted: Internal,
    errors.ReadViewError: Unavailable,
    errors.SnapshotNotFound: NotFound,
    errors.SnapshotExpired: NotFound,
    errors.TailGap: Unavailable,
    errors.StatementError: InvalidArgument,
    errors.InvalidStatement: InvalidArgument,
    errors.TableNotFound: NotFound,
    errors.Unsupported: Unimplemented,
    errors.StatementTimeout: DeadlineExceeded,
    errors.StatementCancelled: Cancelled,
    errors.LimitExceeded: Failed,
    errors.AccessError: PermissionDenied,
    errors.Unauthenticated: Unauthenticated,
    errors.PermissionDenied: PermissionDenied,
    errors.Unavailable: Unavailable,
}

_ARROW_ONLY = (InvalidArgument, NotFound, Unimplemented)


def on_the_wire(error: BaseException, log: Any, *, flight_errors: bool = True) -> Exception:
    """The exception to raise, `from None`, for `error`.

    Anything that is not ours becomes INTERNAL with an incident id; its trace goes to `log` and nowhere else.
    `flight_errors` is False in GetSchema, where pyarrow loses the classes of Flight.
    """
    if isinstance(error, errors.K2Error):
        wire = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
        message = error.message
    else:
        incident = uuid.uuid4().hex[:12]
        trace = "".join(traceback.format_exception(error, limit=50))
        log.error("a call failed inside", incident=incident, error=repr(error), trace=trace)
        wire = Internal
        message = f"the server failed inside; its log has the details under incident {incident}"
    if not flight_errors and wire not in _ARROW_ONLY:
        wire = Unknown
    return wire(fitting(message))


def fitting(message: str) -> str:
    """The message, its end cut off when it would not fit into the trailers it travels in."""
    if _trailer_bytes(message) <= _TRAILER_BYTES_MAX:
        return message
    kept = message[:_TRAILER_BYTES_MAX]
    while _trailer_bytes(kept + " [...]") > _TRAILER_BYTES_MAX:
        kept = kept[: len(kept) * 9 // 10]
    return kept + " [...]"


def _trailer_bytes(message: str) -> int:
    """Once percent-encoded as grpc-message, once in base64 as Arrow's own copy of it."""
    encoded = message.encode("utf-8", "replace")
    return len(quote(encoded, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")) + len(encoded) * 4 // 3


_hidden_lock = threading.Lock()
_hidden_count = 0
_limit_before: int | None = None


def hide_tracebacks() -> None:
    """Keep frames out of what pyarrow formats, until as many `show_tracebacks` as `hide_tracebacks` were called."""
    global _hidden_count, _limit_before  # noqa: PLW0603  (it guards a setting of the whole process)
    with _hidden_lock:
        if _hidden_count == 0:
            _limit_before = getattr(sys, "tracebacklimit", None)
            sys.tracebacklimit = 0
        _hidden_count += 1


def show_tracebacks() -> None:
    global _hidden_count  # noqa: PLW0603
    with _hidden_lock:
        _hidden_count -= 1
        if _hidden_count == 0:
            if _limit_before is None:
                del sys.tracebacklimit
            else:
                sys.tracebacklimit = _limit_before
