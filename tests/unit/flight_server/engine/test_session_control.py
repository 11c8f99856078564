"""SET, USE, BEGIN and KILL as texts, and session options as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidStatement, PermissionDenied
from flight_server.engine.control import Kill, TransactionVerb, kill_of, options_of, transaction_of
from flight_server.engine.session_options import OptionError, OptionValue, SessionOptions, search_path

SCHEMAS = frozenset({"market", "research"})


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("set timezone = 'Asia/Tokyo'", {"timezone": "Asia/Tokyo"}),
        ("SET SESSION TimeZone TO 'UTC';", {"timezone": "UTC"}),
        ("set time zone 'Asia/Tokyo'", {"timezone": "Asia/Tokyo"}),
        ("set statement_timeout = '5s'", {"statement_timeout": "5s"}),
        ("set schema = research", {"schema": "research"}),
        ("set \"k2.as_of\" = '{\"a\": ''b''}'", {"k2.as_of": "{\"a\": 'b'}"}),
        ("use k2.research", {"catalog": "k2", "schema": "research"}),
        ("use research;", {"schema": "research"}),
        ("reset timezone", {"timezone": None}),
    ],
)
def test_what_set_sets(text: str, options: dict[str, str | None]) -> None:
    assert options_of(text).options == options


@pytest.mark.parametrize(
    "text", ["set threads = 4", "reset memory_limit", "set global threads to 1", "set variable x = 1"]
)
def test_what_is_the_servers_to_set(text: str) -> None:
    with pytest.raises(PermissionDenied, match="a session may set"):
        options_of(text)


@pytest.mark.parametrize(
    ("text", "verb"),
    [
        ("begin", TransactionVerb.BEGIN),
        ("START TRANSACTION", TransactionVerb.BEGIN),
        ("commit;", TransactionVerb.COMMIT),
        ("end", TransactionVerb.COMMIT),
        ("rollback", TransactionVerb.ROLLBACK),
        ("abort", TransactionVerb.ROLLBACK),
    ],
)
def test_transaction_verbs(text: str, verb: TransactionVerb) -> None:
    assert transaction_of(text) is verb


def test_kill() -> None:
    assert kill_of(" KILL session 'ab12' ;") == Kill("session", "ab12")
    assert kill_of("kill statement 'x'") == Kill("statement", "x")
    assert kill_of("select 'kill'") is None
    for text in ("kill", "kill 5", "kill session", "kill query 'x'"):
        with pytest.raises(InvalidStatement, match="KILL SESSION"):
            kill_of(text)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("catalog", "k2", None),
        ("catalog", "other", OptionError.INVALID_VALUE),
        ("schema", "research", None),
        ("schema", "tail", OptionError.INVALID_VALUE),
        ("schema", 5, OptionError.INVALID_VALUE),
        ("timezone", "Australia/Sydney", None),
        ("timezone", "'; DROP", OptionError.INVALID_VALUE),
        ("timezone", ["UTC"], OptionError.INVALID_VALUE),
        ("statement_timeout", 5, None),
        ("statement_timeout", 0.25, None),
        ("statement_timeout", "250 ms", None),
        ("statement_timeout", "2 min", None),
        ("statement_timeout", "soon", OptionError.INVALID_VALUE),
        ("statement_timeout", True, OptionError.INVALID_VALUE),
        ("statement_timeout", 0, OptionError.INVALID_VALUE),
        ("statement_timeout", 301, OptionError.INVALID_VALUE),
        ("colour", "red", OptionError.INVALID_NAME),
    ],
)
def test_values_of_options(name: str, value: OptionValue, error: OptionError | None) -> None:
    changed, errors = SessionOptions().changed({name: value}, schemas=SCHEMAS, timeout_s_max=300.0)
    if error is None:
        assert not errors
        back, again = changed.changed({name: None}, schemas=SCHEMAS, timeout_s_max=300.0)
        assert back == SessionOptions() and not again
    else:
        assert errors[name][0] is error and changed == SessionOptions()


@given(
    st.dictionaries(st.text(max_size=12), st.one_of(st.none(), st.text(), st.booleans(), st.integers(), st.floats()))
)
def test_no_value_breaks_the_options(options: dict[str, OptionValue]) -> None:
    changed, errors = SessionOptions().changed(options, schemas=SCHEMAS, timeout_s_max=300.0)
    assert set(errors) <= set(options)
    assert changed.schema in SCHEMAS and changed.catalog == "k2"


def test_names_are_looked_up_in_the_schema_then_in_what_is_everybodys() -> None:
    assert search_path("market") == "k2.market,k2.research"
    assert search_path("research") == "k2.research,k2.market"
