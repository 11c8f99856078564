"""ASX history: the lines of its files (version 1) to records of the schemas (version 2). Pure.

docs/asx.md says which field becomes which. A line that cannot be used raises FeedProtocolError with its reason.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from common.datasets import QUOTES, TRADES, Dataset
from common.errors import FeedProtocolError, SettingsError

EXCHANGE: Final = "asx"
ASSET_CLASS: Final = "equities"
CURRENCY: Final = "AUD"
TIME_ZONE: Final = "Australia/Sydney"
#: The folders that the vendor delivers, and what their files hold.
FOLDERS: Final[Mapping[str, Dataset]] = {TRADES.name: TRADES, QUOTES.name: QUOTES}
#: The companies whose symbols K2 knows by itself.
COMPANIES: Final[Mapping[str, str]] = {"3153": "MWR", "7181": "DVN"}

Record = dict[str, Any]

_EPOCH: Final = datetime(1970, 1, 1)
_US: Final = timedelta(microseconds=1)
_DATE: Final = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})")
_TIME: Final = re.compile(r"(\d{1,2}):(\d{2}):(\d{2})(?:\.(\d{1,6}))?")
_PRICE: Final = re.compile(r"\d{1,10}(?:\.\d{1,8})?")
_QUANTITY: Final = re.compile(r"\d{1,20}(?:\.\d{1,8})?")
_QUALIFIER: Final = re.compile(r"\d{1,3}")
_VENUE: Final = re.compile(r"[A-Za-z]{0,8}")
_BUYER: Final = re.compile(r"[A-Za-z0-9_-]{0,32}")
_QUALIFIER_BREAKS: Final = re.compile(r"[\s,;|]+")
_TRADE_COLUMNS: Final = 7
_QUOTE_COLUMNS: Final = 6
_KEY_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class AsxRow:
    """One line as a record without its id; `key` is equal for lines that say the same, whatever file they are in."""

    dataset: Dataset
    record: Record
    key: bytes

    def identified(self, an_id: int) -> Record:
        """The record under the id that the log gives it."""
        symbol = self.record["symbol"]
        return {"message_id": f"{EXCHANGE}:{symbol}:{an_id}", self.dataset.id_column: an_id, **self.record}

    @property
    def is_crossed(self) -> bool:
        """Of a quote: is the bid above the ask?"""
        bid, ask = self.record.get("bid_price"), self.record.get("ask_price")
        return bid is not None and ask is not None and bid > ask


class SydneyTime:
    """Exchange-local times of one file, in its order, to UTC, over the changes of daylight saving.

    An hour that comes twice (the first Sunday in April) is its first pass until the file's times step back, then its
    second. An hour that never was (the first Sunday in October) is no time. The same file always gives the same.
    """

    def __init__(self) -> None:
        """Raises SettingsError where the system has no time zones."""
        try:
            self._zone = ZoneInfo(TIME_ZONE)
        except ZoneInfoNotFoundError:
            raise SettingsError(
                f"this system does not know the time zone {TIME_ZONE}; install its tzdata package"
            ) from None
        self._offsets: dict[date, timedelta | None] = {}
        self._last_us: int | None = None

    def utc_us(self, local: datetime) -> tuple[int, str | None]:
        """Microseconds UTC; and which pass, `first` or `second`, of an hour that comes twice, else None.

        Raises FeedProtocolError.
        """
        plain_us = (local - _EPOCH) // _US
        offset = self._offset_of(local.date())
        which = None
        if offset is None:
            offset, which = self._at(local, plain_us)
        self._last_us = plain_us - offset // _US
        return self._last_us, which

    def _offset_of(self, day: date) -> timedelta | None:
        """The day's offset from UTC; None when it changes that day."""
        if day not in self._offsets:
            begin = datetime(day.year, day.month, day.day)
            first = begin.replace(tzinfo=self._zone).utcoffset()
            last = (begin + timedelta(hours=23, minutes=59)).replace(tzinfo=self._zone).utcoffset()
            self._offsets[day] = first if first == last else None
        return self._offsets[day]

    def _at(self, local: datetime, plain_us: int) -> tuple[timedelta, str | None]:
        first = local.replace(tzinfo=self._zone, fold=0).utcoffset()
        second = local.replace(tzinfo=self._zone, fold=1).utcoffset()
        assert first is not None and second is not None
        if first == second:
            return first, None
        if first < second:
            raise FeedProtocolError(
                f"the local time {local:%Y-%m-%d %H:%M:%S} never was in {TIME_ZONE}: clocks went forward over it"
            )
        stepped_back = self._last_us is not None and plain_us - first // _US < self._last_us
        return (second, "second") if stepped_back else (first, "first")


class AsxParser:
    """The lines of one file in their order: one company's trades or quotes."""

    def __init__(self, dataset: Dataset, *, symbol: str, company_id: str) -> None:
        """Raises SettingsError where the system has no time zones."""
        self._dataset = dataset
        self._symbol = symbol
        self._company_id = company_id
        self._time = SydneyTime()
        readers: dict[str, Callable[[list[str]], AsxRow]] = {TRADES.name: self._trade, QUOTES.name: self._quote}
        self._read = readers[dataset.name]

    def row(self, line: bytes) -> AsxRow | None:
        """What the line says, None for an empty one. Raises FeedProtocolError."""
        try:
            text = line.decode("ascii").strip()
        except UnicodeDecodeError:
            raise FeedProtocolError("the line is not plain ASCII text") from None
        if not text:
            return None
        try:
            (columns,) = csv.reader([text], strict=True)
        except (csv.Error, ValueError):
            raise FeedProtocolError("the line is no line of comma separated values") from None
        return self._read([column.strip() for column in columns])

    def _trade(self, columns: list[str]) -> AsxRow:
        if len(columns) < _TRADE_COLUMNS:
            raise FeedProtocolError(f"a trade has {_TRADE_COLUMNS} columns, this line has {len(columns)}")
        # A list of qualifiers that is not quoted takes more columns than one.
        day, time, price, volume, *qualifiers, venue, buyer = columns
        event_time_us, vendor_data = self._instant(day, time)
        conditions = _conditions(qualifiers)
        if not _VENUE.fullmatch(venue):
            raise FeedProtocolError(f"the venue {venue!r} is no code of letters")
        if venue:
            vendor_data["venue"] = venue
        if _BUYER.fullmatch(buyer):
            if buyer:
                vendor_data["buyer_id"] = buyer
        elif _PRICE.fullmatch(buyer):
            # The vendor's files have a price there in some rows: it is nobody's id, and the trade is whole without one.
            vendor_data["buyer_column"] = buyer
        else:
            raise FeedProtocolError(f"the buyer {buyer!r} is neither an id nor empty")
        record = {
            **self._common(event_time_us, vendor_data),
            "transaction_time": None,
            "price": _above_zero(_number(price, _PRICE, "price"), "price"),
            "quantity": _above_zero(_number(volume, _QUANTITY, "volume"), "volume"),
            "side": "UNKNOWN",
            "trade_conditions": conditions,
        }
        return AsxRow(TRADES, record, trade_key(record, vendor_data))

    def _quote(self, columns: list[str]) -> AsxRow:
        if len(columns) != _QUOTE_COLUMNS:
            raise FeedProtocolError(f"a quote has {_QUOTE_COLUMNS} columns, this line has {len(columns)}")
        day, time, bid, ask, bid_volume, ask_volume = columns
        event_time_us, vendor_data = self._instant(day, time)
        record = self._common(event_time_us, vendor_data)
        for side, price, volume in (("bid", bid, bid_volume), ("ask", ask, ask_volume)):
            at = _number(price, _PRICE, f"{side} price")
            quantity = _number(volume, _QUANTITY, f"{side} volume")
            if not at and quantity:
                raise FeedProtocolError(f"the {side} has the volume {volume} and no price")
            # A price of zero is the vendor's way to say that nobody stands on this side.
            record |= {f"{side}_price": at or None, f"{side}_quantity": quantity if at else None}
        return AsxRow(QUOTES, record, quote_key(record))

    def _instant(self, day: str, time: str) -> tuple[int, dict[str, str]]:
        """The line's time in UTC, and the beginning of its vendor data."""
        vendor_data = {"company_id": self._company_id}
        local = _local(day, time)
        event_time_us, which = self._time.utc_us(local)
        if which is not None:
            vendor_data["local_time"] = f"{local.isoformat(' ')} ({which} pass of an hour that came twice)"
        return event_time_us, vendor_data

    def _common(self, event_time_us: int, vendor_data: dict[str, str]) -> Record:
        return {
            "exchange": EXCHANGE,
            "symbol": self._symbol,
            "asset_class": ASSET_CLASS,
            "event_time": event_time_us,
            # K2 was not there: when the record became known is when it happened, also for joins by time of receipt.
            "receive_time": event_time_us,
            "currency": CURRENCY,
            "source": "history",
            "source_sequence": None,
            "vendor_data": vendor_data,
        }


def trade_key(record: Mapping[str, Any], vendor_data: Mapping[str, str]) -> bytes:
    """What makes two trades the same line of a file. `event_time` in microseconds."""
    buyer = vendor_data.get("buyer_id") or vendor_data.get("buyer_column", "")
    return _key(
        record["event_time"],
        _unscaled(record["price"]),
        _unscaled(record["quantity"]),
        ",".join(record["trade_conditions"]),
        vendor_data.get("venue", ""),
        buyer,
    )


def quote_key(record: Mapping[str, Any]) -> bytes:
    """What makes two quotes the same line of a file. `event_time` in microseconds."""
    sides = ("bid_price", "bid_quantity", "ask_price", "ask_quantity")
    return _key(record["event_time"], *(_unscaled(record[side]) for side in sides))


def _key(*parts: object) -> bytes:
    return hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=_KEY_BYTES).digest()


def _unscaled(value: Decimal | None) -> int | None:
    return None if value is None else int(value.scaleb(8))


def _local(day: str, time: str) -> datetime:
    dated, timed = _DATE.fullmatch(day), _TIME.fullmatch(time)
    if dated is None:
        raise FeedProtocolError(f"the date {day!r} is not MM/DD/YYYY")
    if timed is None:
        raise FeedProtocolError(f"the time {time!r} is not HH:MM:SS.mmm")
    month, of_month, year = map(int, dated.groups())
    hour, minute, second = (int(one) for one in timed.groups()[:3])
    try:
        return datetime(year, month, of_month, hour, minute, second, int((timed[4] or "0").ljust(6, "0")))
    except ValueError as error:
        raise FeedProtocolError(f"{day} {time} is no date and time ({error})") from None


def _number(text: str, form: re.Pattern[str], what: str) -> Decimal:
    if form.fullmatch(text) is None:
        raise FeedProtocolError(f"the {what} {text!r} is no number of at most 8 decimals that fits")
    return Decimal(text)


def _above_zero(value: Decimal, what: str) -> Decimal:
    if not value:
        raise FeedProtocolError(f"the {what} of a trade is zero")
    return value


def _conditions(qualifiers: Iterable[str]) -> list[str]:
    """Each qualifier of one or more columns, in their order."""
    codes = [code for one in qualifiers for code in _QUALIFIER_BREAKS.split(one) if code]
    for code in codes:
        if _QUALIFIER.fullmatch(code) is None:
            raise FeedProtocolError(f"the qualifier {code!r} is no code of at most 3 digits")
    return codes
