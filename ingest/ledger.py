"""What the log holds already, by business identity: is this a duplicate, is there a gap? Pure (design rule 10).

The ledger is a function of the log: taking in the records of the log in their order gives the ledger, and taking a
record twice changes nothing. A checkpoint with the offsets it covers plus the log behind them is therefore the ledger
again.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, Final, NamedTuple

from common.errors import K2Error

_FORM: Final = 1


class Take(Enum):
    """What became of an identity that was offered to the ledger."""

    TAKEN = "taken"
    DUPLICATE = "duplicate"


class IdRange(NamedTuple):
    """All ids from `first_id` to `last_id`, both inclusive."""

    first_id: int
    last_id: int


class IdRanges:
    """A set of integers as sorted, disjoint, non-adjacent inclusive ranges.

    For the dense, rising ids of an exchange this is one range, and `take` of the next id is O(1); any other id is found
    in O(log n) of the number of ranges.
    """

    __slots__ = ("_firsts", "_lasts", "_out_of_turn")

    def __init__(
        self, ranges: Iterable[tuple[int, int]] = (), *, out_of_turn: Callable[[], object] | None = None
    ) -> None:
        """`out_of_turn` is called after each change but the taking of the next id: only then can `gaps` change."""
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        self._out_of_turn = out_of_turn
        for first_id, last_id in ranges:
            self.take_range(first_id, last_id)

    def take(self, an_id: int) -> bool:
        """Add an id; False when it was there already."""
        lasts = self._lasts
        if lasts and an_id == lasts[-1] + 1:
            lasts[-1] = an_id
            return True
        if an_id in self:
            return False
        self.take_range(an_id, an_id)
        return True

    def take_range(self, first_id: int, last_id: int) -> None:
        """Add every id from `first_id` to `last_id`, joining what it touches. Raises ValueError for an empty range."""
        if last_id < first_id:
            raise ValueError(f"the id range {first_id}..{last_id} is empty")
        firsts, lasts = self._firsts, self._lasts
        low = bisect_right(lasts, first_id - 2)  # the first range that ends at first_id - 1 or later
        high = bisect_right(firsts, last_id + 1)  # behind the last range that begins at last_id + 1 or before
        if low < high:
            first_id, last_id = min(first_id, firsts[low]), max(last_id, lasts[high - 1])
        firsts[low:high] = [first_id]
        lasts[low:high] = [last_id]
        if self._out_of_turn is not None:
            self._out_of_turn()

    def gaps(self) -> list[IdRange]:
        """The ids missing between the first and the last one taken."""
        return [IdRange(last + 1, first - 1) for last, first in zip(self._lasts, self._firsts[1:], strict=False)]

    @property
    def gap_count(self) -> int:
        return max(0, len(self._firsts) - 1)

    @property
    def last_id(self) -> int | None:
        """The highest id taken; None when there is none."""
        return self._lasts[-1] if self._lasts else None

    def id_count(self) -> int:
        """How many ids are taken."""
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    def __contains__(self, an_id: int) -> bool:
        lasts = self._lasts
        if not lasts or an_id > lasts[-1]:
            return False
        index = bisect_right(self._firsts, an_id) - 1
        return index >= 0 and an_id <= lasts[index]

    def __iter__(self) -> Iterator[IdRange]:
        return map(IdRange, self._firsts, self._lasts)

    def __len__(self) -> int:
        return len(self._firsts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IdRanges):
            return NotImplemented
        return self._firsts == other._firsts and self._lasts == other._lasts

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"IdRanges({[tuple(one) for one in self]})"


class Ledger:
    """What was taken, per (exchange, symbol). One thread at a time.

    Trades: the id ranges. Quotes: the highest id only, lower or equal is a duplicate: quote ids rise but are not
    dense, so there is no gap to see, and a quote older than one already in the log is stale and must not follow it.
    Instruments: the last message_id, so that an unchanged instrument is written once. Further streams: ranges where ids
    are dense, the highest id where they only rise.
    """

    def __init__(self) -> None:
        self._trades: dict[tuple[str, str], IdRanges] = {}
        self._quotes: dict[tuple[str, str], int] = {}
        self._instruments: dict[tuple[str, str], str] = {}
        self._disturbed: set[tuple[str, str]] = set()
        #: Of the further streams, by dataset.
        self._others: dict[str, dict[tuple[str, str], IdRanges]] = {}
        self._highest: dict[str, dict[tuple[str, str], int]] = {}

    def take(self, exchange: str, symbol: str, trade_id: int) -> Take:
        """Take a trade."""
        return Take.TAKEN if self.trade_ids(exchange, symbol).take(trade_id) else Take.DUPLICATE

    def take_quote(self, exchange: str, symbol: str, quote_id: int) -> Take:
        """Take a quote; a DUPLICATE is any that does not lie above the highest one taken."""
        if not self.is_new_quote(exchange, symbol, quote_id):
            return Take.DUPLICATE
        self._quotes[exchange, symbol] = quote_id
        return Take.TAKEN

    def take_instrument(self, exchange: str, symbol: str, message_id: str) -> Take:
        """Take an instrument; a DUPLICATE is one equal to the last taken of that symbol."""
        if not self.is_new_instrument(exchange, symbol, message_id):
            return Take.DUPLICATE
        self._instruments[exchange, symbol] = message_id
        return Take.TAKEN

    def last_trade_id(self, exchange: str, symbol: str) -> int | None:
        """The highest trade id taken; None when there is none."""
        ids = self._trades.get((exchange, symbol))
        return ids.last_id if ids is not None else None

    def last_quote_id(self, exchange: str, symbol: str) -> int | None:
        """The highest quote id taken; None when there is none."""
        return self._quotes.get((exchange, symbol))

    def is_new_quote(self, exchange: str, symbol: str, quote_id: int) -> bool:
        """Would `take_quote` take it?"""
        return quote_id > self._quotes.get((exchange, symbol), -1)

    def knows_instrument(self, exchange: str, symbol: str) -> bool:
        """Was any instrument of the symbol taken?"""
        return (exchange, symbol) in self._instruments

    def is_new_instrument(self, exchange: str, symbol: str, message_id: str) -> bool:
        """Would `take_instrument` take it?"""
        return self._instruments.get((exchange, symbol)) != message_id

    def take_trades(self, exchange: str, symbol: str, ranges: Iterable[tuple[int, int]]) -> None:
        """Take whole inclusive ranges of trade ids, as read from a table."""
        ids = self.trade_ids(exchange, symbol)
        for first_id, last_id in ranges:
            ids.take_range(first_id, last_id)

    def trade_ids(self, exchange: str, symbol: str) -> IdRanges:
        """The trade ids taken, live: taking there is taking here."""
        ids = self._trades.get((exchange, symbol))
        if ids is None:
            key = (exchange, symbol)
            ids = self._trades[key] = IdRanges(out_of_turn=lambda: self._disturbed.add(key))
        return ids

    def ids(self, dataset: str, exchange: str, symbol: str) -> IdRanges:
        """The ids taken of a further stream whose ids are dense, live: taking there is taking here."""
        by_symbol = self._others.setdefault(dataset, {})
        ids = by_symbol.get((exchange, symbol))
        if ids is None:
            ids = by_symbol[exchange, symbol] = IdRanges()
        return ids

    def is_above(self, dataset: str, exchange: str, symbol: str, an_id: int) -> bool:
        """Of a further stream whose ids only rise: does the id lie above the highest one taken?"""
        return an_id > self._highest.get(dataset, {}).get((exchange, symbol), -1)

    def take_above(self, dataset: str, exchange: str, symbol: str, an_id: int) -> Take:
        """Take it if it does."""
        if not self.is_above(dataset, exchange, symbol, an_id):
            return Take.DUPLICATE
        self._highest.setdefault(dataset, {})[exchange, symbol] = an_id
        return Take.TAKEN

    def take_disturbed(self) -> set[tuple[str, str]]:
        """The symbols whose trades came out of turn since this was last asked: those with new gaps, or with fewer."""
        disturbed, self._disturbed = self._disturbed, set()
        return disturbed

    def gaps(self, exchange: str, symbol: str) -> list[IdRange]:
        """The trade ids missing between the first and the last one taken: what a backfill would have to ask for."""
        ids = self._trades.get((exchange, symbol))
        return ids.gaps() if ids is not None else []

    @property
    def gap_count(self) -> int:
        """Missing ranges of trades over all symbols. May be asked from any thread, also while symbols come."""
        return sum(ids.gap_count for ids in list(self._trades.values()))

    def merge(self, other: Ledger) -> None:
        """Take everything that `other` has taken. Of two last instruments of a symbol, the other's counts."""
        for (exchange, symbol), ids in other._trades.items():
            self.take_trades(exchange, symbol, ids)
        for (exchange, symbol), quote_id in other._quotes.items():
            self.take_quote(exchange, symbol, quote_id)
        self._instruments.update(other._instruments)
        for dataset, others in other._others.items():
            for (exchange, symbol), ids in others.items():
                for one in ids:
                    self.ids(dataset, exchange, symbol).take_range(*one)
        for dataset, highest in other._highest.items():
            for (exchange, symbol), an_id in highest.items():
                self.take_above(dataset, exchange, symbol, an_id)

    def to_text(self) -> str:
        """Compact JSON; equal ledgers have equal texts."""
        trades = {key: [list(one) for one in ids] for key, ids in self._trades.items() if len(ids)}
        others = {
            dataset: _nested({key: [list(one) for one in ids] for key, ids in by_symbol.items() if len(ids)})
            for dataset, by_symbol in self._others.items()
        }
        tree = {
            "form": _FORM,
            "trades": _nested(trades),
            "quotes": _nested(self._quotes),
            "instruments": _nested(self._instruments),
        }
        if any(others.values()):
            tree["others"] = {dataset: ranges for dataset, ranges in others.items() if ranges}
        if self._highest:
            tree["highest"] = {dataset: _nested(by_symbol) for dataset, by_symbol in self._highest.items()}
        return json.dumps(tree, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Ledger:
        """The reverse of `to_text`. Raises K2Error when the text is not that form."""
        ledger = cls()
        try:
            tree = json.loads(text)
            if tree["form"] != _FORM:
                raise ValueError(f"form {tree['form']!r} is not known")
            for exchange, symbol, ranges in _flat(tree["trades"]):
                ledger.take_trades(exchange, symbol, [(int(first), int(last)) for first, last in ranges])
            for exchange, symbol, quote_id in _flat(tree["quotes"]):
                ledger.take_quote(exchange, symbol, int(quote_id))
            for exchange, symbol, message_id in _flat(tree["instruments"]):
                ledger.take_instrument(exchange, symbol, str(message_id))
            for dataset, nested in tree.get("others", {}).items():
                for exchange, symbol, ranges in _flat(nested):
                    for first, last in ranges:
                        ledger.ids(dataset, exchange, symbol).take_range(int(first), int(last))
            for dataset, nested in tree.get("highest", {}).items():
                for exchange, symbol, an_id in _flat(nested):
                    ledger.take_above(dataset, exchange, symbol, int(an_id))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise K2Error(f"the ledger cannot be read from {text[:100]!r}: {error!r}") from None
        return ledger

    def copy(self) -> Ledger:
        """An independent ledger that has taken the same."""
        ledger = Ledger()
        ledger.merge(self)
        return ledger

    def __eq__(self, other: object) -> bool:
        return self.to_text() == other.to_text() if isinstance(other, Ledger) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Ledger({self.to_text()[:200]})"


def _nested(by_symbol: dict[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    tree: dict[str, dict[str, Any]] = {}
    for (exchange, symbol), value in by_symbol.items():
        tree.setdefault(exchange, {})[symbol] = value
    return tree


def _flat(tree: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, Any]]:
    for exchange, symbols in tree.items():
        for symbol, value in symbols.items():
            yield exchange, symbol, value
