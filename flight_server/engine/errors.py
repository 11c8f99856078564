"""DuckDB's exceptions as ours, with DuckDB's own words and position, and K2's names where a name is not there.

They come in two forms: as classes of the duckdb module when a statement is prepared or started, and, once a result
streams, as pyarrow's OSError whose text begins with DuckDB's name of the class.
"""

from __future__ import annotations

import re

import duckdb

from common.errors import (
    InvalidStatement,
    K2Error,
    LimitExceeded,
    PermissionDenied,
    SnapshotExpired,
    StatementCancelled,
    StatementError,
    TableNotFound,
    Unavailable,
    Unsupported,
)
from flight_server.engine.suggestions import suggested

#: DuckDB's word before "Error:" -> ours. What is absent here (Internal, Fatal, ...) is no fault of the statement.
_KINDS: dict[str, type[K2Error]] = {
    "Parser": InvalidStatement,
    "Syntax": InvalidStatement,
    "Binder": InvalidStatement,
    "Catalog": InvalidStatement,
    "Invalid Input": InvalidStatement,
    "Invalid type": InvalidStatement,
    "Conversion": InvalidStatement,
    "Out of Range": InvalidStatement,
    "Mismatch Type": InvalidStatement,
    "Divide by Zero": InvalidStatement,
    "Decimal": InvalidStatement,
    "Expression": InvalidStatement,
    "Parameter Not Resolved": InvalidStatement,
    "Parameter Not Allowed": InvalidStatement,
    "Constraint": InvalidStatement,
    "Sequence": InvalidStatement,
    "Permission": PermissionDenied,
    "Not implemented": Unsupported,
    "Missing Extension": Unsupported,
    "Out of Memory": LimitExceeded,
    "INTERRUPT": StatementCancelled,
    "Connection": Unavailable,
}
_FORM = re.compile(r"^(?P<kind>[A-Za-z ]+?) Error: (?P<rest>.*)$", re.DOTALL)
_NO_TABLE = re.compile(
    r"^Catalog Error: Table with name .+ does not exist"
    r"|^(?:Binder|Catalog) Error: (?:Catalog|Schema) .+ does not exist",
    re.DOTALL,
)
_READ_ONLY = re.compile(r"transaction is launched in read-only mode")
_FILE_GONE = re.compile(r"No files found|No such file|HTTP 404|404 \(Not Found\)|NoSuchKey")
_NO_ANSWER = re.compile(r"\bHTTP\b|[Cc]onnection|[Tt]imed? ?out|Could not resolve")


def translated(error: BaseException) -> BaseException:
    """Our error for one that came out of DuckDB; any other comes back as it is."""
    if isinstance(error, K2Error) or not isinstance(error, (duckdb.Error, OSError, RuntimeError)):
        return error
    text = suggested(str(error).strip())
    form = _FORM.match(text)
    if form is None:
        return error
    kind = form["kind"]
    if _NO_TABLE.match(text):
        return TableNotFound(text)
    if _READ_ONLY.search(text):
        return PermissionDenied("K2 is read-only over Flight SQL; the statement would change data")
    if kind == "Out of Memory":
        return LimitExceeded(
            f"the statement needs more memory than K2_FLIGHT_MEMORY_BYTES_MAX allows ({_first_line(form['rest'])}), or "
            "more room than K2_FLIGHT_SPILL_BYTES_MAX to spill into; select less, or raise the limit"
        )
    if kind == "Permission":
        return PermissionDenied(f"{_first_line(text)}; K2's SQL reads its own tables only")
    if kind == "INTERRUPT":
        return StatementCancelled("the engine stopped the statement before its end; run it again")
    if kind in ("IO", "HTTP") and _FILE_GONE.search(text):
        return SnapshotExpired(
            f"a file of the snapshot that this statement reads is gone ({_first_line(form['rest'])}): another tool "
            "expired or compacted it; send the statement again, which then reads a newer snapshot"
        )
    if kind == "HTTP" or (kind == "IO" and _NO_ANSWER.search(text)):
        return Unavailable(f"the file store did not give a file ({_first_line(form['rest'])}); try again in a moment")
    if kind == "TransactionContext":
        return StatementError(text)
    ours = _KINDS.get(kind)
    return error if ours is None else ours(text)


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
