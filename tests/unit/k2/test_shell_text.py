"""The pure parts of `k2 shell`: where a statement ends, what may come next, what a plot is made of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import SettingsError
from k2.bars_plot import statement as bars_statement
from k2.shell.completion import Catalog, candidates
from k2.shell.statements import Meta, is_complete, is_on, meta, parse, seconds
from k2.terminal_plot import plot_text

CATALOG = Catalog.of(
    [
        ("market", "trades", "symbol"),
        ("market", "trades", "price"),
        ("market", "quotes", "bid_price"),
        ("ops", "gaps", "gap_id"),
    ],
    [
        ("ohlcv", "table", "ohlcv(symbol, every)"),
        ("trade_count", "table", "trade_count(symbol)"),
        ("vwap", "aggregate", "vwap(price, quantity)"),
        ("vwap", "scalar", ""),
    ],
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("  \n", True),
        ("\\watch 5", True),
        ("exit", True),
        ("help;", True),
        ("exit 1", False),
        ("SELECT 1", False),
        ("SELECT 1;", True),
        ("SELECT 1; -- done", True),
        ("SELECT ';'", False),
        ("SELECT 'it''s;", False),
        ("SELECT ';';", True),
        ('SELECT ";', False),
        ("SELECT 1 -- ;", False),
        ("SELECT 1 /* ; ", False),
        ("SELECT 1 /* ; */;", True),
        ("SELECT $$ ; $$", False),
        ("SELECT $a$ ; $$; $a$;", True),
        ("SELECT 1; SELECT 2", False),
    ],
)
def test_enter_runs_what_is_complete(text: str, expected: bool) -> None:
    assert is_complete(text) is expected


pieces = st.sampled_from(["SELECT 1", "'a;b'", '"x;"', "$$;$$", "/* ; */ 2", "\n", "it", "''", "$t$;'$t$"])


@given(st.lists(st.lists(pieces, min_size=1, max_size=4).map(" ".join), max_size=5))
def test_what_was_put_together_comes_apart(texts: list[str]) -> None:
    parsed = parse("".join(f"{text} ;\n" for text in texts))
    assert list(parsed.statements) == [text.strip() for text in texts if text.strip()]
    assert (parsed.rest, parsed.is_open) == ("", False)


def test_commands_of_the_shell() -> None:
    assert meta("\\watch 5") == Meta("watch", "5")
    assert meta(" \\d market.trades;") == Meta("d", "market.trades")
    assert meta("SELECT 1") is None
    assert (meta("exit"), meta(" Quit; "), meta("help")) == (Meta("q", ""), Meta("q", ""), Meta("?", ""))
    assert (seconds(""), seconds("0.5"), is_on("", True), is_on("ON", False)) == (2.0, 0.5, False, True)
    for wrong in ("x", "0", "nan", "1e9"):
        with pytest.raises(SettingsError, match=r"\\watch takes seconds"):
            seconds(wrong)
    with pytest.raises(SettingsError, match="on or off"):
        is_on("maybe", True)


@pytest.mark.parametrize(
    ("before", "found"),
    [
        ("SELECT * FROM tr", ["market.trades", "trade_count("]),
        ("SELECT * FROM oh", ["ohlcv("]),
        ("SELECT * FROM market.", ["trades", "quotes"]),
        ("SELECT * FROM market.q", ["quotes"]),
        ("SELECT bi", ["bid_price"]),
        ("SELECT x.", []),
        ("SELECT vw", ["vwap("]),
        ("sele", ["select"]),
        ("SELE", ["SELECT"]),
        ("\\wa", ["watch"]),
        ("\\d mark", ["market.trades", "market.quotes"]),
        ("\\d market.q", ["quotes"]),
        ("\\df oh", ["ohlcv"]),
        ("SELECT ", []),
    ],
)
def test_what_may_come_next(before: str, found: list[str]) -> None:
    assert [each.text for each in candidates(before, before, CATALOG)] == found


def test_the_columns_of_an_alias() -> None:
    whole = "SELECT t.p FROM market.trades AS t"
    assert [each.text for each in candidates("SELECT t.p", whole, CATALOG)] == ["price"]
    assert [each.text for each in candidates("SELECT trades.", "SELECT trades. FROM trades", CATALOG)] == [
        "symbol",
        "price",
    ]


AT = datetime(2026, 11, 28, 9, tzinfo=UTC)


def bars(count: int) -> pa.Table:
    rows = [
        {
            "bar_start": AT + timedelta(minutes=n),
            "open": Decimal(100 + n),
            "high": Decimal(103 + n),
            "low": Decimal(98 + n),
            "close": Decimal(102 + n if n % 2 else 99 + n),
        }
        for n in range(count)
    ]
    return pa.Table.from_pylist(rows)


def test_bars_are_candles_over_their_time() -> None:
    plot = plot_text(bars(30), width=70, height=16, title="BTCUSDT 1m")
    assert "BTCUSDT 1m" in plot and "│" in plot and "█" in plot
    assert "09:" in plot and "132" in plot
    assert all(len(line) for line in plot.splitlines()[:16])


def test_numbers_are_lines_and_what_cannot_be_drawn_gets_a_sentence() -> None:
    table = pa.table({"n": [1, 2, None, 4], "up": [1.5, None, 2.5, 3.0], "name": ["a", "b", "c", "d"]})
    assert "up" in plot_text(table, width=60, height=12)
    assert "name" not in plot_text(table, width=60, height=12, columns=["n", "up"])
    for wrong, columns, words in (
        (table.slice(0, 0), [], "no rows"),
        (table.select(["name"]), [], "no column of numbers"),
        (table, ["n", "down"], "no column 'down'"),
    ):
        with pytest.raises(SettingsError, match=words):
            plot_text(wrong, width=60, height=12, columns=columns)


def test_symbols_are_quoted() -> None:
    assert "ohlcv('O''X', now() - INTERVAL 90 MINUTE, every := '1m')" in bars_statement("O'X", "1m", "90m")
    for wrong in ("", "2", "h", "0h", "-1h", "2 years"):
        with pytest.raises(SettingsError, match="--last is a number"):
            bars_statement("X", "1m", wrong)
