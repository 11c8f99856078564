from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import K2Error
from ingest.ledger import IdRange, IdRanges, Ledger, Take

ids = st.integers(0, 60)
id_ranges = st.tuples(ids, ids).map(lambda pair: (min(pair), max(pair)))
steps = st.lists(ids | id_ranges, max_size=60)


def ranges_of(numbers: set[int]) -> list[tuple[int, int]]:
    """The oracle: sorted, disjoint, non-adjacent inclusive ranges of a plain set."""
    firsts = sorted(n for n in numbers if n - 1 not in numbers)
    lasts = sorted(n for n in numbers if n + 1 not in numbers)
    return list(zip(firsts, lasts, strict=True))


@given(steps)
def test_id_ranges_are_a_set_of_integers(taken: list[int | tuple[int, int]]) -> None:
    ranges, oracle = IdRanges(), set[int]()
    for step in taken:
        if isinstance(step, int):
            assert ranges.take(step) is (step not in oracle)
            oracle.add(step)
        else:
            ranges.take_range(*step)
            oracle.update(range(step[0], step[1] + 1))
        assert list(ranges) == ranges_of(oracle)
    assert ranges.id_count() == len(oracle)
    assert ranges.last_id == (max(oracle) if oracle else None)
    assert {number for number in range(62) if number in ranges} == oracle
    missing = set(range(min(oracle), max(oracle))) - oracle if oracle else set()
    assert ranges.gaps() == ranges_of(missing)
    assert ranges.gap_count == len(ranges.gaps())
    assert all(a.last_id + 1 < b.first_id for a, b in pairwise(ranges))


@given(st.permutations(range(20)))
def test_order_does_not_matter(order: list[int]) -> None:
    ranges = IdRanges()
    assert all(ranges.take(number) for number in order)
    assert ranges == IdRanges([(0, 19)])
    assert not any(ranges.take(number) for number in order)


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        IdRanges().take_range(5, 4)


def test_a_repeated_trade_is_a_duplicate_of_its_own_symbol_and_exchange_only() -> None:
    ledger = Ledger()
    assert ledger.take("binance", "BTCUSDT", 5) is Take.TAKEN
    assert ledger.take("binance", "BTCUSDT", 5) is Take.DUPLICATE
    assert ledger.take("binance", "ETHUSDT", 5) is Take.TAKEN
    assert ledger.take("kraken", "BTCUSDT", 5) is Take.TAKEN


def test_gaps_are_what_a_backfill_would_ask_for_and_close_when_it_comes() -> None:
    ledger = Ledger()
    for trade_id in (10, 11, 14, 20):
        ledger.take("binance", "BTCUSDT", trade_id)
    assert ledger.gaps("binance", "BTCUSDT") == [IdRange(12, 13), IdRange(15, 19)]
    assert ledger.gap_count == 2
    ledger.take_trades("binance", "BTCUSDT", [(12, 13)])
    assert ledger.gaps("binance", "BTCUSDT") == [IdRange(15, 19)]
    assert ledger.gaps("binance", "NEVER") == []


def test_a_quote_that_does_not_rise_is_a_duplicate() -> None:
    ledger = Ledger()
    assert ledger.last_quote_id("binance", "BTCUSDT") is None
    taken = [ledger.take_quote("binance", "BTCUSDT", quote_id) for quote_id in (0, 7, 7, 3, 8)]
    assert taken == [Take.TAKEN, Take.TAKEN, Take.DUPLICATE, Take.DUPLICATE, Take.TAKEN]
    assert ledger.last_quote_id("binance", "BTCUSDT") == 8
    assert not ledger.is_new_quote("binance", "BTCUSDT", 8)


def test_an_instrument_is_a_duplicate_of_the_last_one_only() -> None:
    ledger = Ledger()
    taken = [ledger.take_instrument("binance", "BTCUSDT", message_id) for message_id in ("a", "a", "b", "a")]
    assert taken == [Take.TAKEN, Take.DUPLICATE, Take.TAKEN, Take.TAKEN]


symbols = st.sampled_from(["BTCUSDT", "ETHUSDT", "币安USDT"])
operations = st.lists(
    st.tuples(st.just("trade"), symbols, ids)
    | st.tuples(st.just("quote"), symbols, ids)
    | st.tuples(st.just("instrument"), symbols, st.sampled_from("abc")),
    max_size=40,
)


def apply(ledger: Ledger, taken: list[tuple[str, str, int | str]]) -> Ledger:
    for kind, symbol, value in taken:
        if kind == "trade":
            ledger.take("binance", symbol, int(value))
        elif kind == "quote":
            ledger.take_quote("binance", symbol, int(value))
        else:
            ledger.take_instrument("binance", symbol, str(value))
    return ledger


@given(operations, st.integers(0, 40))
def test_checkpoint_plus_the_log_behind_it_is_the_ledger(log: list[tuple[str, str, int | str]], cut: int) -> None:
    checkpoint = Ledger.from_text(apply(Ledger(), log[:cut]).to_text())
    assert apply(checkpoint, log[cut:]) == apply(Ledger(), log)


@given(operations, st.integers(0, 40))
def test_reading_part_of_the_log_again_changes_no_trade_and_no_quote(
    log: list[tuple[str, str, int | str]], cut: int
) -> None:
    events = [one for one in log if one[0] != "instrument"]
    assert apply(apply(Ledger(), events), events[cut:]) == apply(Ledger(), events)


@given(operations)
def test_text_and_back_is_the_same_ledger_and_the_same_text(log: list[tuple[str, str, int | str]]) -> None:
    ledger = apply(Ledger(), log)
    again = Ledger.from_text(ledger.to_text())
    assert again == ledger
    assert again.to_text() == ledger.to_text()


@given(operations, operations)
def test_merge_takes_all_of_both_and_leaves_the_other_alone(
    one: list[tuple[str, str, int | str]], two: list[tuple[str, str, int | str]]
) -> None:
    left, right = apply(Ledger(), one), apply(Ledger(), two)
    before = right.to_text()
    left.merge(right)
    assert left == apply(apply(Ledger(), one), two)
    assert right.to_text() == before
    assert right.copy() == right


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"form":2}', '{"form":1,"trades":{"x":{"y":[[5,4]]}},"quotes":{},"instruments":{}}'],
)
def test_a_text_that_is_no_ledger_is_refused(text: str) -> None:
    with pytest.raises(K2Error, match="ledger"):
        Ledger.from_text(text)


def test_appending_at_the_end_touches_one_range_only() -> None:
    ranges = IdRanges([(n * 10, n * 10) for n in range(1000)])
    for trade_id in range(9_991, 20_000):
        assert ranges.take(trade_id)
    assert len(ranges) == 1000
    assert ranges.last_id == 19_999


def test_gaps_are_counted_while_symbols_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics ask from a thread of their own, in the first seconds of a market of many symbols above all."""

    def while_another_comes(self: IdRanges) -> int:
        ledger.trade_ids("binance", f"K{len(ledger._trades):03d}USDT")
        return 1

    ledger = Ledger()
    ledger.take("binance", "BTCUSDT", 1)
    monkeypatch.setattr(IdRanges, "gap_count", property(while_another_comes))
    assert ledger.gap_count == 1
    assert len(ledger._trades) == 2
