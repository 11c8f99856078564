"""Bars against plain Python, over series that are as nasty as the types allow."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.datasets import BARS
from common.errors import K2Error
from common.schemas.arrow import table_schema
from sink.bars import BAR_SCHEMA, TRADE_COLUMNS, bars_of, folded, merged, touched_rows
from tests.support.bars_oracle import EPOCH, in_order, oracle

TRADES = pa.schema([table_schema("trade").field(name) for name in TRADE_COLUMNS])
WIDTHS_US = [bars.width_us for bars in BARS.values()]
SECOND_US = WIDTHS_US[0]

#: All that the columns' types hold; small ranges make equal times, equal bars and ties.
prices = st.one_of(
    st.decimals(min_value=0, max_value=Decimal("9999999999.99999999"), places=8),
    st.sampled_from([Decimal("0.00000001"), Decimal(1), Decimal("9999999999.99999999")]),
)
quantities = st.one_of(
    st.decimals(min_value=0, max_value=Decimal("99999999999999999999.99999999"), places=8),
    st.sampled_from([Decimal(0), Decimal("0.00000001"), Decimal(3), Decimal(10) ** 12, Decimal("1e20") - 1]),
)
times_us = st.one_of(
    st.integers(-3_000_000, 3_000_000), st.integers(0, 2 * 86_400_000_000), st.sampled_from([0, 999_999, 1_000_000])
)


@st.composite
def series(draw: st.DrawFn) -> list[dict[str, Any]]:
    rows = draw(
        st.lists(
            st.tuples(st.sampled_from(["asx", "binance"]), st.sampled_from(["A", "B"]), times_us, prices, quantities),
            max_size=24,
        )
    )
    ids = draw(st.permutations(range(len(rows))))
    return [
        {
            "exchange": exchange,
            "symbol": symbol,
            "trade_id": trade_id,
            "event_time": EPOCH + timedelta(microseconds=time_us),
            "price": price,
            "quantity": quantity,
        }
        for trade_id, (exchange, symbol, time_us, price, quantity) in zip(ids, rows, strict=True)
    ]


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=TRADES)


@settings(deadline=None)
@given(series(), st.sampled_from(WIDTHS_US))
def test_bars_are_what_plain_python_makes_of_the_trades(rows: list[dict[str, Any]], width_us: int) -> None:
    found = bars_of(table(rows), width_us)
    assert found.schema.equals(BAR_SCHEMA, check_metadata=True)
    assert in_order(found) == oracle(rows, width_us)


@settings(deadline=None)
@given(series(), st.data())
def test_any_parts_merged_in_any_grouping_are_the_bars_of_all(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    """Also of other widths: minutes out of seconds, days out of minutes and trades."""
    owners = data.draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)))
    parts = [[row for row, owner in zip(rows, owners, strict=True) if owner == number] for number in range(5)]
    finest, coarser = sorted(data.draw(st.tuples(st.sampled_from(WIDTHS_US), st.sampled_from(WIDTHS_US))))
    pieces = [bars_of(table(part), finest) for part in parts]
    while len(pieces) > 1:
        chosen = data.draw(st.sets(st.integers(0, len(pieces) - 1), min_size=2, max_size=len(pieces)))
        together = merged([pieces[index] for index in data.draw(st.permutations(sorted(chosen)))], finest)
        pieces = [piece for index, piece in enumerate(pieces) if index not in chosen] + [together]
    assert in_order(merged(pieces, coarser)) == oracle(rows, coarser)


@settings(deadline=None)
@given(series(), st.data())
def test_further_trades_are_folded_into_what_is_held(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(rows)))
    held, more = bars_of(table(rows[:count]), SECOND_US), bars_of(table(rows[count:]), SECOND_US)
    found = folded(held, more, SECOND_US)
    assert in_order(found) == oracle(rows, SECOND_US)
    changed = {(row["exchange"], row["symbol"], row["bar_start"]) for row in more.to_pylist()}
    assert touched_rows(held, more).tolist() == [
        (row["exchange"], row["symbol"], row["bar_start"]) in changed for row in held.to_pylist()
    ]


def trade(trade_id: int, price: str, quantity: str, time_us: int = 0) -> dict[str, Any]:
    return {
        "exchange": "binance",
        "symbol": "A",
        "trade_id": trade_id,
        "event_time": EPOCH + timedelta(microseconds=time_us),
        "price": Decimal(price),
        "quantity": Decimal(quantity),
    }


def test_a_notional_that_does_not_fit_is_null_and_stays_so() -> None:
    """10^22 is the first that does not; the rest of the bar is right all the same."""
    largest = bars_of(table([trade(1, "9999999999.99999999", "1000000000000")]), SECOND_US)
    assert largest["notional"].to_pylist() == [Decimal("9999999999999999990000")]
    first = bars_of(table([trade(2, "1000000000", "10000000000000")]), SECOND_US)
    assert first.select(["notional", "vwap", "volume", "trade_count"]).to_pylist() == [
        {"notional": None, "vwap": None, "volume": Decimal(10) ** 13, "trade_count": 1}
    ]
    together = merged([first, bars_of(table([trade(3, "1", "1")]), SECOND_US)], SECOND_US)
    assert together["notional"].to_pylist() == [None]
    assert together["volume"].to_pylist() == [Decimal(10) ** 13 + 1]
    # Each fits by itself, both together do not.
    twice = merged([largest, bars_of(table([trade(4, "9999999999.99999999", "1000000000000")]), SECOND_US)], SECOND_US)
    assert twice["notional"].to_pylist() == [None]


def test_a_volume_that_does_not_fit_is_an_error() -> None:
    huge = bars_of(table([trade(1, "1", "99999999999999999999")]), SECOND_US)
    volume = huge.schema.field("volume")
    most = huge.set_column(huge.schema.get_field_index("volume"), volume, pa.array([Decimal("9" * 30)], volume.type))
    with pytest.raises(K2Error, match=r"volume of a bar does not fit into DECIMAL\(38,8\)"):
        merged([huge, most], SECOND_US)


@pytest.mark.parametrize(
    ("quantities_", "vwap"),
    [(("1", "1"), "0.00000002"), (("3", "1"), "0.00000001"), (("0", "0"), None)],
    ids=["a tie goes to the even digit", "below it goes down", "no volume"],
)
def test_the_vwap_is_rounded_half_to_even(quantities_: tuple[str, str], vwap: str | None) -> None:
    """(1 + 2) / 2 = 1.5 goes to 2, (3 + 2) / 4 = 1.25 to 1, in steps of 10^-8."""
    rows = [trade(1, "0.00000001", quantities_[0]), trade(2, "0.00000002", quantities_[1])]
    found = bars_of(table(rows), SECOND_US)["vwap"].to_pylist()
    assert found == [None if vwap is None else Decimal(vwap)]


def test_trades_of_one_time_open_and_close_by_their_ids() -> None:
    rows = [trade(5, "50", "1", 7), trade(3, "30", "1", 7), trade(9, "90", "1", 7), trade(4, "40", "1", 8)]
    (bar,) = bars_of(table(rows), SECOND_US).to_pylist()
    assert (bar["open"], bar["first_trade_id"], bar["close"], bar["last_trade_id"]) == (30, 3, 40, 4)


def test_times_before_1970_lie_in_the_interval_that_begins_before_them() -> None:
    (bar,) = bars_of(table([trade(1, "1", "1", -1)]), SECOND_US).to_pylist()
    assert bar["bar_start"] == EPOCH - timedelta(seconds=1)


def test_nothing_is_made_of_nothing() -> None:
    empty = BAR_SCHEMA.empty_table()
    assert bars_of(table([]), SECOND_US).equals(merged([], SECOND_US)) and folded(empty, empty, SECOND_US) == empty
