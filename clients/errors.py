"""What a client raises: the server's own sentence, without the wrapping that the drivers put around it.

    ClientError(code)
    ├ ConnectError     wrong address, nobody listens there, not a Flight SQL server, not let in
    ├ ExportError      of clients.export: the folder, the wishes or the files
    └ QueryError       the server was reached and did not run, or did not finish, the statement

`code` is the status in gRPC's words (INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE, ...), `retryable` whether the same call
may succeed later with nothing changed by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from common.errors import K2Error

# ADBC's word for a status -> gRPC's. ADBC has one word (IO) for every failure of the transport.
_CODES = {
    "INVALID_ARGUMENT": "INVALID_ARGUMENT",
    "INVALID_STATE": "FAILED_PRECONDITION",
    "INVALID_DATA": "INVALID_ARGUMENT",
    "NOT_FOUND": "NOT_FOUND",
    "NOT_IMPLEMENTED": "UNIMPLEMENTED",
    "ALREADY_EXISTS": "ALREADY_EXISTS",
    "UNAUTHENTICATED": "UNAUTHENTICATED",
    "UNAUTHORIZED": "PERMISSION_DENIED",
    "CANCELLED": "CANCELLED",
    "TIMEOUT": "DEADLINE_EXCEEDED",
    "IO": "UNAVAILABLE",
    "INTERNAL": "INTERNAL",
    "INTEGRITY": "INTERNAL",
    "UNKNOWN": "UNKNOWN",
}
_GRPC_CODES = {"".join(part.title() for part in code.split("_")): code for code in _CODES.values()}
_GRPC_CODES |= {"ResourceExhausted": "RESOURCE_EXHAUSTED", "Aborted": "ABORTED", "OutOfRange": "OUT_OF_RANGE"}
_GRPC_CODES |= {"Canceled": "CANCELLED"}
_RETRYABLE = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "RESOURCE_EXHAUSTED"})

# `INVALID_ARGUMENT: [FlightSQL] the server's text. Detail: ... (InvalidArgument; ExecuteQuery). Vendor code: 3`
_PREFIX = re.compile(rf"^(?:(?P<word>{'|'.join(_CODES)}): )?(?:\[[A-Za-z ]+\] )?")
_VENDOR = re.compile(r"\. Vendor code: -?\d+\s*$")
# What a part of a result fails with: `[FlightSQL] rpc error: code = Unavailable desc = the server's text. Detail: ...`
_RPC = re.compile(r"^rpc error: code = (?P<code>[A-Za-z]+) desc = ")
_CALL = re.compile(r"\((?P<code>[A-Z][A-Za-z]+); [^()]*(?:\([^()]*\)[^()]*)*\)\s*$")
_DETAIL = re.compile(r"\. Detail: (?:Python exception: .*|[A-Za-z]+)\s*$", re.DOTALL)


class ClientError(K2Error):
    """Base of what this room raises; the message is the server's sentence, SQL position lines included."""

    def __init__(self, message: str, *, code: str = "UNKNOWN") -> None:
        super().__init__(message)
        self.code = code
        self.retryable = code in _RETRYABLE


class ConnectError(ClientError):
    """No Flight SQL server could be talked to at the address."""


class QueryError(ClientError):
    """A statement failed; nothing of its result may be taken for the whole."""


def query_error(error: Exception) -> QueryError:
    """The QueryError for an exception of ADBC or pyarrow, in the server's own words wherever the wire carried them."""
    code, message = server_message(str(error), getattr(error, "details", None) or ())
    return QueryError(message, code=code)


def server_message(text: str, details: Iterable[tuple[object, object]] = ()) -> tuple[str, str]:
    """(gRPC code, message) out of a driver's error text.

    `details` are the trailers that came with it; Arrow servers repeat the untouched message in one of them, and where
    they do it is taken as it is. Otherwise the driver's prefix, its call site and the status detail are cut off.
    """
    prefix = _PREFIX.match(text)
    word = prefix.group("word") if prefix else None
    body = _VENDOR.sub("", text[prefix.end() if prefix else 0 :])
    code = _CODES.get(word or "", "UNKNOWN")
    if call := _CALL.search(body):
        code = _GRPC_CODES.get(call.group("code"), code)
        body = body[: call.start()]
    elif rpc := _RPC.match(body):
        code = _GRPC_CODES.get(rpc.group("code"), code)
        body = body[rpc.end() :]
    trailers = {_text(key): _text(value) for key, value in details}
    message = trailers.get("x-arrow-status-message-bin") or _DETAIL.sub("", body)
    return code, message.strip() or "the server gave no reason"


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
