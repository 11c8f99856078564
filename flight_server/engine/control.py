"""Statements that are K2's own or about the session: SET, RESET, USE; BEGIN, COMMIT, ROLLBACK; KILL; SUBSCRIBE."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from common.errors import InvalidStatement, PermissionDenied
from flight_server.engine.tokens import Token, qualified_name, skip_words, tokens_of


@dataclass(frozen=True)
class SetOptions:
    """Session options to set, by name; None sets one back to its default."""

    options: dict[str, str | None]


class TransactionVerb(Enum):
    """What a transaction statement asks for."""

    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"


@dataclass(frozen=True)
class Kill:
    """End a `session` or a `statement` by its id, as ops.sessions and ops.statements show it."""

    what: str
    id: str


@dataclass(frozen=True)
class Subscribe:
    """Rows as they arrive: the text of the query, and the cut to begin behind; None: with all that there is.

    `from_now` begins with nothing of what is there already.
    """

    query: str
    cut: str | None = None
    from_now: bool = False


#: SQL's names for session options, beside the options' own names.
_ALIASES = {"search_path": "schema", "time zone": "timezone"}
#: What SET may change, by any of its names.
OPTION_NAMES = frozenset({"catalog", "schema", "k2.as_of", "statement_timeout", "timezone"})

_KILL = re.compile(r"\s*kill\s+(?P<what>session|statement)\s+'(?P<id>[^']*)'\s*;?\s*", re.IGNORECASE)
_KILL_AT_ALL = re.compile(r"\s*kill\b", re.IGNORECASE)
_SUBSCRIBE_AT_ALL = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*subscribe\b", re.IGNORECASE | re.DOTALL)
_STRING = re.compile(r"'(?:[^']|'')*'")
_VALUE = re.compile(r"\s*(?:=|\bto\b)\s*(?P<value>.*?)\s*;?\s*\Z", re.IGNORECASE | re.DOTALL)


def kill_of(text: str) -> Kill | None:
    """The KILL in the text, which is no SQL of the engine's; None for any other text. Raises InvalidStatement."""
    found = _KILL.fullmatch(text)
    if found is not None:
        return Kill(found["what"].lower(), found["id"])
    if _KILL_AT_ALL.match(text):
        raise InvalidStatement("KILL is written KILL SESSION '<id>' or KILL STATEMENT '<id>'; see ops.sessions for ids")
    return None


def subscribe_of(text: str) -> Subscribe | None:
    """The SUBSCRIBE in the text, which is no SQL of the engine's; None for any other text. Raises InvalidStatement."""
    if _SUBSCRIBE_AT_ALL.match(text) is None:
        return None
    tokens = tokens_of(text)
    if not tokens or not tokens[0].says("subscribe"):
        return None
    closing = _closing(tokens)
    rest = [] if closing is None else tokens[closing + 1 :]
    if rest and rest[-1].sign == ";":
        rest = rest[:-1]
    if closing is not None:
        query = text.encode()[tokens[1].end : tokens[closing].start].decode()
        if not rest:
            return Subscribe(query)
        if len(rest) == 2 and rest[0].says("from") and rest[1].says("now"):
            return Subscribe(query, from_now=True)
        if len(rest) == 3 and rest[0].says("from") and rest[1].says("cut") and rest[2].sign == "'":
            written = _STRING.match(rest[2].raw)
            if written is not None:
                return Subscribe(query, cut=written.group()[1:-1].replace("''", "'"))
    raise InvalidStatement(
        "SUBSCRIBE is written SUBSCRIBE (SELECT ... FROM market.trades WHERE ...), with FROM NOW or FROM CUT '<cut>' "
        "behind it to leave out what is known already"
    )


def _closing(tokens: Sequence[Token]) -> int | None:
    """The index of the parenthesis that closes the one behind the first word; None when that is not so."""
    depth = 0
    for index, token in enumerate(tokens[1:], 1):
        depth += (token.sign == "(") - (token.sign == ")")
        if depth == 0:
            return index if index > 1 else None
    return None


def transaction_of(text: str) -> TransactionVerb:
    """The verb of one of DuckDB's transaction statements."""
    word = tokens_of(text)[0].name
    if word in ("begin", "start"):
        return TransactionVerb.BEGIN
    return TransactionVerb.COMMIT if word in ("commit", "end") else TransactionVerb.ROLLBACK


def options_of(text: str) -> SetOptions:
    """The options that a SET, RESET or USE sets. Raises PermissionDenied for what is the server's to set."""
    tokens = tokens_of(text)
    verb = tokens[0].name
    if verb == "use":
        parts, _ = qualified_name(tokens, 1)
        if len(parts) == 2:
            return SetOptions({"catalog": parts[0], "schema": parts[1]})
        return SetOptions({"schema": parts[0] if parts else ""})
    _, at = skip_words(tokens, 1, "session")
    _, at = skip_words(tokens, at, "global") if at == 1 else (False, at)
    zone, at = skip_words(tokens, at, "time", "zone")
    if zone:
        name = "timezone"
    else:
        parts, at = qualified_name(tokens, at)
        name = ".".join(parts).lower()
        name = _ALIASES.get(name, name)
    if name not in OPTION_NAMES:
        raise PermissionDenied(
            f"K2 does not allow SET {name[:100]}; a session may set {', '.join(sorted(OPTION_NAMES))}, "
            "everything else is the server's"
        )
    if verb == "reset":
        return SetOptions({name: None})
    rest = text.encode()[tokens[at - 1].end :].decode()
    found = _VALUE.match(rest)
    value = (found["value"] if found else rest.strip().rstrip(";").strip()).strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1].replace(value[0] * 2, value[0])
    return SetOptions({name: value})
