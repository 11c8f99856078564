from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from common.errors import K2Error
from ingest.gaps import Gap, GapBook, GapLimits, GapState, Severity
from ingest.ledger import IdRanges, Ledger

LIMITS = GapLimits(grace_s=0.5, alert_ids_min=10, alert_ids_max=100)
KEY = ("binance", "BTCUSDT")


class Symbol:
    """A symbol's ids, its gaps, and a clock that only the test moves."""

    def __init__(self) -> None:
        self.ids = IdRanges()
        self.book = GapBook(LIMITS)
        self.now_s = 0.0

    def take(self, *ids: int, backfill: bool = False) -> None:
        for one in ids:
            self.ids.take(one)
            if backfill:
                self.book.backfilled(KEY, one)

    def after(self, seconds: float) -> list[Gap]:
        self.now_s += seconds
        return self.book.observe(KEY, self.ids.gaps(), self.now_s, self.now_us)

    @property
    def now_us(self) -> int:
        return round(self.now_s * 1e6)

    def opened(self, *present: int) -> Gap:
        self.take(*present)
        assert self.after(0) == []
        (gap,) = self.after(LIMITS.grace_s)
        return gap


def test_a_gap_is_seen_when_the_grace_is_over_and_not_before() -> None:
    symbol = Symbol()
    symbol.take(1, 2, 6)
    assert symbol.after(0) == []
    assert symbol.after(0.49) == []
    assert symbol.book.due(symbol.now_s) == []
    symbol.now_s += 0.01
    assert symbol.book.due(symbol.now_s) == [KEY]
    (gap,) = symbol.after(0)
    assert (gap.first_id, gap.last_id, gap.missing_ids, gap.state) == (3, 5, 3, GapState.OPEN)
    assert symbol.book.due(symbol.now_s) == []
    assert symbol.after(10) == []


@given(st.permutations(range(30)), st.integers(1, 10))
def test_what_comes_in_another_order_within_the_grace_is_no_gap(order: list[int], at_once: int) -> None:
    symbol = Symbol()
    for start in range(0, 30, at_once):
        symbol.take(*order[start : start + at_once])
        assert symbol.after(0.4 / 30) == []
    assert symbol.after(10) == []
    assert symbol.book.open_gaps() == []


@pytest.mark.parametrize(
    ("missing", "severity"),
    [(1, Severity.WARNING), (9, Severity.WARNING), (10, Severity.ALERT), (100, Severity.ALERT), (101, Severity.STOP)],
)
def test_how_bad_a_gap_is(missing: int, severity: Severity) -> None:
    symbol = Symbol()
    assert symbol.opened(1, 2 + missing).severity is severity
    through = symbol.book.complete_through_id(KEY, symbol.ids.last_id)
    assert through == (1 if severity is Severity.STOP else 2 + missing)


def test_the_complete_mark_goes_on_once_the_gap_is_filled_or_lost() -> None:
    symbol = Symbol()
    symbol.opened(1, 200)
    symbol.opened(400)
    assert symbol.book.complete_through_id(KEY, 400) == 1
    symbol.take(*range(2, 200), backfill=True)
    (filled,) = symbol.after(1)
    assert (filled.first_id, filled.state, filled.closed_by) == (2, GapState.FILLED, "backfill")
    assert symbol.book.complete_through_id(KEY, 400) == 200
    lost = symbol.book.lose(KEY, 201, symbol.ids.gaps(), "gone", symbol.now_us)
    assert lost is not None and lost.state is GapState.LOST
    assert symbol.book.complete_through_id(KEY, 400) == 400


def test_how_a_gap_was_closed() -> None:
    for backfilled, streamed, how in (
        ([2, 3], [], "backfill"),
        ([2], [3], "backfill and stream"),
        ([], [2, 3], "stream"),
    ):
        symbol = Symbol()
        symbol.opened(1, 4)
        symbol.take(*backfilled, backfill=True)
        symbol.take(*streamed)
        (gap,) = symbol.after(0.1)
        assert (gap.state, gap.closed_by, gap.backfilled_ids) == (GapState.FILLED, how, len(backfilled))
        assert gap.closed_time_us == symbol.now_us
        assert symbol.book.open_gaps() == []


def test_a_gap_that_is_being_filled_is_told_of_once_a_second() -> None:
    symbol = Symbol()
    symbol.opened(0, 50)
    told = []
    for one in range(1, 40):
        symbol.take(one, backfill=True)
        told += symbol.after(0.1)
    assert [gap.state for gap in told] == [GapState.PARTLY_FILLED] * 4
    assert symbol.book.missing_ids() == told[-1].missing_ids
    symbol.now_s += 1
    assert symbol.book.due(symbol.now_s) == [KEY]
    assert [gap.missing_ids for gap in symbol.after(0)] == [10]
    assert symbol.book.due(symbol.now_s + 10) == []


def test_a_trade_that_comes_after_it_was_given_up_is_told_of() -> None:
    symbol = Symbol()
    symbol.opened(1, 4)
    symbol.book.lose(KEY, 2, symbol.ids.gaps(), "gone", symbol.now_us)
    assert symbol.book.lost_ids() == 2
    symbol.take(2)
    (gap,) = symbol.after(1)
    assert (gap.state, gap.missing_ids, gap.reason) == (GapState.LOST, 1, "gone")
    symbol.take(3)
    (gap,) = symbol.after(1)
    assert (gap.state, gap.missing_ids, gap.reason) == (GapState.FILLED, 0, None)
    assert symbol.book.keys() == []


def test_what_is_lost_stays_lost_and_is_no_new_gap() -> None:
    symbol = Symbol()
    symbol.opened(1, 4)
    symbol.book.lose(KEY, 2, symbol.ids.gaps(), "gone", symbol.now_us)
    assert symbol.book.lose(KEY, 2, symbol.ids.gaps(), "gone", symbol.now_us) is None
    symbol.take(5, 9)
    assert symbol.after(0) == []
    (gap,) = symbol.after(1)
    assert gap.first_id == 6
    assert symbol.after(100) == []
    assert [lost.first_id for lost in symbol.book.lost_gaps()] == [2]


def test_times_of_a_gap_rise_although_the_clock_goes_back() -> None:
    symbol = Symbol()
    gap = symbol.opened(1, 4)
    symbol.take(2)
    (moved,) = symbol.book.observe(KEY, symbol.ids.gaps(), symbol.now_s + 5, gap.updated_time_us - 10_000_000)
    assert moved.updated_time_us > gap.updated_time_us


def test_a_broken_text_is_one_sentence() -> None:
    for text in ("", "{}", '{"form":2,"gaps":[],"backfilled":[]}', '{"form":1,"gaps":[{}],"backfilled":[]}'):
        with pytest.raises(K2Error, match="the gaps cannot be read from"):
            GapBook.from_text(text, LIMITS)


class GapMachine(RuleBasedStateMachine):
    """Trades that come, late, early, by backfill or never; a book that dies and is made from the log's records."""

    def __init__(self) -> None:
        super().__init__()
        self.symbol = Symbol()
        self.symbol.take(0)
        self.log: list[Gap] = []
        self.backfilled: set[int] = set()

    @rule(one=st.integers(1, 80))
    def stream(self, one: int) -> None:
        self.symbol.take(one)

    @rule(one=st.integers(1, 80))
    def backfill(self, one: int) -> None:
        if one not in self.symbol.ids and any(g.first_id <= one <= g.last_id for g in self.symbol.book.open_gaps()):
            self.symbol.take(one, backfill=True)
            self.backfilled.add(one)

    @rule(seconds=st.sampled_from([0.0, 0.2, 0.6, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.log += self.symbol.after(seconds)

    @rule(index=st.integers(0, 5))
    def give_up(self, index: int) -> None:
        gaps = self.symbol.book.open_gaps()
        if index < len(gaps):
            lost = self.symbol.book.lose(KEY, gaps[index].first_id, self.symbol.ids.gaps(), "gone", self.symbol.now_us)
            self.log += [] if lost is None else [lost]

    @rule()
    def die_and_read_the_log(self) -> None:
        book = GapBook(LIMITS)
        for gap in self.log:
            book.apply(Gap.from_record(gap.record()))
            book.apply(Gap.from_record(gap.record()))
        for one in self.backfilled:
            book.backfilled(KEY, one)
        assert book.open_gaps() == self.symbol.book.open_gaps()
        assert book.lost_gaps() == self.symbol.book.lost_gaps()
        self.symbol.book = book

    @rule()
    def die_and_read_the_checkpoint(self) -> None:
        text = self.symbol.book.to_text()
        self.symbol.book = GapBook.from_text(text, LIMITS)
        assert self.symbol.book.to_text() == text

    @invariant()
    def every_missing_id_is_in_one_gap_once_the_grace_is_over(self) -> None:
        symbol, book = self.symbol, self.symbol.book.copy()
        book.observe(KEY, symbol.ids.gaps(), symbol.now_s, symbol.now_us)
        book.observe(KEY, symbol.ids.gaps(), symbol.now_s + 5, symbol.now_us + 5_000_000)
        gaps = [*book.open_gaps(), *book.lost_gaps()]
        missing = {one for first, last in symbol.ids.gaps() for one in range(first, last + 1)}
        spans = [one for gap in gaps for one in range(gap.first_id, gap.last_id + 1)]
        assert missing <= set(spans)
        assert len(spans) == len(set(spans)), "two gaps overlap"
        assert sum(gap.missing_ids for gap in gaps) == len(missing)
        assert all(gap.missing_ids for gap in gaps)

    @invariant()
    def each_gap_goes_its_way_once(self) -> None:
        last: dict[int, Gap] = {}
        for gap in self.log:
            before = last.get(gap.first_id)
            if before is None:
                assert gap.state is GapState.OPEN
            else:
                assert before.state is not GapState.FILLED
                assert gap.state is not GapState.OPEN
                assert gap.updated_time_us > before.updated_time_us
                assert gap.missing_ids <= before.missing_ids
                assert (gap.last_id, gap.opened_time_us, gap.severity) == (
                    before.last_id,
                    before.opened_time_us,
                    before.severity,
                )
            assert gap.is_closed == (gap.closed_time_us is not None) == (gap.closed_by is not None)
            last[gap.first_id] = gap


def test_gaps_under_any_schedule() -> None:
    run_state_machine_as_test(GapMachine)


def test_a_record_that_is_older_than_what_is_known_changes_nothing() -> None:
    book = GapBook(LIMITS)
    symbol = Symbol()
    gap = symbol.opened(1, 4)
    book.apply(replace(gap, missing_ids=1, updated_time_us=gap.updated_time_us + 1))
    book.apply(gap)
    assert [one.missing_ids for one in book.open_gaps()] == [1]


def test_a_ledger_tells_which_symbols_trades_came_out_of_turn() -> None:
    ledger = Ledger()
    for one in (1, 2, 3):
        ledger.take(*KEY, one)
        ledger.take("binance", "ETHUSDT", one)
    assert ledger.take_disturbed() == {KEY, ("binance", "ETHUSDT")}  # the first id of each
    ledger.take(*KEY, 4)
    assert ledger.take_disturbed() == set()
    ledger.take(*KEY, 7)
    assert ledger.take_disturbed() == {KEY}
    ledger.take(*KEY, 6)
    ledger.take("binance", "ETHUSDT", 4)
    assert ledger.take_disturbed() == {KEY}
    assert ledger.take_disturbed() == set()


def test_gaps_are_counted_while_others_come() -> None:
    """Metrics ask from a thread of their own: a symbol may come in the middle of their look."""

    class Growing(dict[int, Gap]):
        def values(self) -> Any:
            symbol.book._gaps["binance", f"K{len(symbol.book._gaps):03d}USDT"] = {}
            return super().values()

    symbol = Symbol()
    gap = symbol.opened(1, 5)
    symbol.book._gaps[KEY] = Growing({gap.first_id: gap})
    assert symbol.book.missing_ids() == 3
    assert len(symbol.book._gaps) == 2
