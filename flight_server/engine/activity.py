"""`ops.sessions` and `ops.statements`: who is connected and what runs, as tables; everybody sees what is their own.
`ops.commits` and `ops.dead_letters`, which everybody sees, are the lake's.

A session's id here is not its cookie, which would let whoever reads it take the session over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from flight_server.engine.places import Home
from flight_server.engine.seam import COMMITS, DEAD_LETTERS, ListedTable
from flight_server.engine.session_options import CATALOG
from flight_server.engine.sessions import Caller, Session
from flight_server.engine.watchdog import About

OPS = "ops"
_TIME = pa.timestamp("us", "UTC")

SESSIONS = pa.schema(
    [
        pa.field("session_id", pa.string(), nullable=False),
        pa.field("principal", pa.string(), nullable=False),
        pa.field("peer", pa.string(), nullable=False),
        pa.field("began", _TIME, nullable=False),
        pa.field("idle_s", pa.float64(), nullable=False),
        pa.field("schema", pa.string(), nullable=False),
        pa.field("timezone", pa.string(), nullable=False),
        pa.field("as_of", pa.string()),
        pa.field("in_transaction", pa.bool_(), nullable=False),
        pa.field("scratch", pa.list_(pa.field("l", pa.string())), nullable=False),
        pa.field("statements", pa.int32(), nullable=False),
    ]
)
STATEMENTS = pa.schema(
    [
        pa.field("statement_id", pa.string(), nullable=False),
        pa.field("session_id", pa.string()),
        pa.field("principal", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("began", _TIME, nullable=False),
        pa.field("running_s", pa.float64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)
#: Table -> its columns.
TABLES = {"sessions": SESSIONS, "statements": STATEMENTS, "commits": COMMITS, "dead_letters": DEAD_LETTERS}
#: The type under which they are listed.
KIND = "SYSTEM TABLE"
#: A statement's text is cut here.
_TEXT_MAX = 4_096


def listed() -> list[ListedTable]:
    """The tables as catalogs show them."""
    return [ListedTable(CATALOG, OPS, name, KIND, columns) for name, columns in TABLES.items()]


def rows_of(
    table: str, caller: Caller, sessions: Sequence[Session], statements: Sequence[About], now_us: int, now_s: float
) -> pa.Table:
    """The table as the caller is to see it."""
    see = _visible(caller)
    ids = {session.id: session.public_id for session in sessions}
    if table == "sessions":
        return pa.Table.from_pylist(
            [
                {
                    "session_id": session.public_id,
                    "principal": session.principal,
                    "peer": session.peer,
                    "began": session.began_us,
                    "idle_s": max(0.0, now_s - session.last_used_s),
                    "schema": session.options.schema,
                    "timezone": session.options.timezone,
                    "as_of": session.options.as_of or None,
                    "in_transaction": session.transaction is not None,
                    "scratch": _scratch(session.home),
                    "statements": sum(about.session_id == session.id for about in statements),
                }
                for session in sessions
                if see(session.principal)
            ],
            schema=SESSIONS,
        )
    return pa.Table.from_pylist(
        [
            {
                "statement_id": about.id.hex(),
                "session_id": ids.get(about.session_id),
                "principal": about.principal,
                "kind": about.kind,
                "began": about.began_us,
                "running_s": max(0, now_us - about.began_us) / 1e6,
                "text": about.text[:_TEXT_MAX],
            }
            for about in statements
            if see(about.principal)
        ],
        schema=STATEMENTS,
    )


def _visible(caller: Caller) -> Callable[[str], bool]:
    return lambda principal: caller.is_admin or principal == caller.principal


def _scratch(home: Home | None) -> list[str]:
    return [] if home is None else sorted(home.scratch)
