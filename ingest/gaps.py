"""What is missing, as gaps with a life of their own: opened, partly filled, filled or lost. Pure (design rule 10).

A gap is a range of trade ids that were missing when it was seen. The ledger says what is missing; here stands since
when, how bad it is, and how it ended. Each change is a record for the log (common/schemas/gap.avsc), and taking the
records of the log in gives the gaps again: what was open when a process died is open in the next one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, NamedTuple, Self

from common.errors import K2Error
from ingest.ledger import IdRange, IdRanges

_FORM: Final = 1
#: A gap that is being filled is told of at most this often, so that its pages do not each make a record.
_PARTLY_FILLED_EVERY_S: Final = 1.0

Key = tuple[str, str]
"""(exchange, symbol)"""


class GapState(Enum):
    OPEN = "open"
    PARTLY_FILLED = "partly_filled"
    FILLED = "filled"
    LOST = "lost"


class Severity(Enum):
    """By the ids that were missing when the gap was seen."""

    WARNING = "warning"
    ALERT = "alert"
    STOP = "stop"


class GapLimits(NamedTuple):
    """A reorder within `grace_s` is no gap; from `alert_ids_min` missing ids on it is an alert, above `alert_ids_max`
    a stop."""

    grace_s: float
    alert_ids_min: int
    alert_ids_max: int

    def severity(self, missing_ids: int) -> Severity:
        if missing_ids < self.alert_ids_min:
            return Severity.WARNING
        return Severity.ALERT if missing_ids <= self.alert_ids_max else Severity.STOP


@dataclass(frozen=True, slots=True)
class Gap:
    """One gap in one state. Its identity is (exchange, symbol, first_id); both ids are inclusive."""

    exchange: str
    symbol: str
    first_id: int
    last_id: int
    state: GapState
    severity: Severity
    missing_ids: int
    backfilled_ids: int
    opened_time_us: int
    updated_time_us: int
    closed_time_us: int | None = None
    closed_by: str | None = None
    reason: str | None = None

    @property
    def key(self) -> Key:
        return self.exchange, self.symbol

    @property
    def is_closed(self) -> bool:
        return self.state in (GapState.FILLED, GapState.LOST)

    def record(self) -> dict[str, Any]:
        """A record of gap.avsc."""
        gap_id = f"{self.exchange}:{self.symbol}:{self.first_id}"
        return {
            "message_id": f"{gap_id}:{self.updated_time_us}",
            "gap_id": gap_id,
            "exchange": self.exchange,
            "symbol": self.symbol,
            "first_id": self.first_id,
            "last_id": self.last_id,
            "state": self.state.value,
            "severity": self.severity.value,
            "missing_ids": self.missing_ids,
            "backfilled_ids": self.backfilled_ids,
            "opened_time": self.opened_time_us,
            "updated_time": self.updated_time_us,
            "closed_time": self.closed_time_us,
            "closed_by": self.closed_by,
            "reason": self.reason,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The reverse of `record`; times may be integers or datetimes as Arrow gives them."""
        return cls(
            record["exchange"],
            record["symbol"],
            record["first_id"],
            record["last_id"],
            GapState(record["state"]),
            Severity(record["severity"]),
            record["missing_ids"],
            record["backfilled_ids"],
            record["opened_time"],
            record["updated_time"],
            record["closed_time"],
            record["closed_by"],
            record["reason"],
        )


class _Seen(NamedTuple):
    """Ids that are missing and not yet a gap, and since when (monotonic)."""

    first_id: int
    last_id: int
    since_s: float


class GapBook:
    """The gaps of all symbols: those that are not closed, and the lost ones. One thread at a time.

    Guarantee: an id that the ledger misses between two that it has is in a gap of this book or, for less than the
    grace, about to be in one; a gap leaves the book only when none of its ids is missing. `observe` and `lose` return
    the gaps that entered a state; whoever calls them sees to it that each becomes a record of the log.
    """

    def __init__(self, limits: GapLimits) -> None:
        self._limits = limits
        #: By symbol, by first id: gaps that are open or lost.
        self._gaps: dict[Key, dict[int, Gap]] = {}
        self._seen: dict[Key, list[_Seen]] = {}
        #: The ids of open gaps that came by backfill: a set, so that reading them from the log twice counts once.
        self._backfilled: dict[Key, IdRanges] = {}
        #: When each gap that is being filled was last told of, on the monotonic clock; and those that changed since.
        self._told_s: dict[tuple[Key, int], float] = {}
        self._untold: set[tuple[Key, int]] = set()
        self.filled = 0

    # --- what changes ---------------------------------------------------------------------------------------------

    def observe(
        self, key: Key, missing: Iterable[IdRange], now_s: float, now_us: int, brought: IdRange | None = None
    ) -> list[Gap]:
        """Compare what the ledger misses of a symbol with the gaps that are known; the gaps that changed.

        `missing` is all that is missing, in order. A range that is no gap yet becomes one when it was missing for the
        grace; what came of it before counts for nothing. At once becomes one what has ids in `brought`, which the
        backfill is about to fill: whatever it fills was a gap.
        """
        changed: list[Gap] = []
        missing = list(missing)
        for gap in list(self._of(key)):
            still = _overlap(missing, gap.first_id, gap.last_id)
            if still == gap.missing_ids:
                continue
            if still and not self._may_tell(gap, now_s):
                self._untold.add((key, gap.first_id))
                continue
            changed.append(self._moved(gap, still, now_s, now_us))
        changed += self._opened(key, missing, now_s, now_us, brought)
        self._prune(key)
        return changed

    def lose(self, key: Key, first_id: int, missing: Iterable[IdRange], reason: str, now_us: int) -> Gap | None:
        """Close a gap whose missing ids cannot be had; None when it is not open or nothing of it is missing."""
        gap = self._gaps.get(key, {}).get(first_id)
        if gap is None or gap.is_closed:
            return None
        still = _overlap(missing, gap.first_id, gap.last_id)
        if not still:
            return None
        lost = replace(
            gap,
            state=GapState.LOST,
            missing_ids=still,
            backfilled_ids=self._backfilled_ids(gap),
            updated_time_us=max(now_us, gap.updated_time_us + 1),
            closed_time_us=now_us,
            closed_by="lost",
            reason=reason,
        )
        self._put(lost)
        self._prune(key)
        return lost

    def backfilled(self, key: Key, trade_id: int) -> None:
        """A trade that the backfill brought was taken."""
        ids = self._backfilled.get(key)
        if ids is None:
            ids = self._backfilled[key] = IdRanges()
        ids.take(trade_id)

    def apply(self, gap: Gap) -> None:
        """Take in a record of the log. Those of one gap come in their order, since they are of one partition."""
        known = self._gaps.get(gap.key, {}).get(gap.first_id)
        if known is None or known.updated_time_us < gap.updated_time_us:
            self._put(gap)

    # --- what is asked --------------------------------------------------------------------------------------------

    def due(self, now_s: float) -> list[Key]:
        """The symbols to be observed now although no trade of theirs came: a grace is over, or a change is untold."""
        keys = {key for key, seen in self._seen.items() if any(self._is_over(one, now_s) for one in seen)}
        keys |= {key for key, first_id in self._untold if self._may_tell(self._gaps[key][first_id], now_s)}
        return sorted(keys)

    def keys(self) -> list[Key]:
        """The symbols that have a gap that is open or lost."""
        return sorted(self._gaps)

    def open_gaps(self, key: Key | None = None) -> list[Gap]:
        """The gaps that are not closed, of a symbol or of all; the one opened first comes first."""
        gaps = self._of(key)
        return sorted((gap for gap in gaps if not gap.is_closed), key=lambda gap: (gap.opened_time_us, gap.first_id))

    def lost_gaps(self, key: Key | None = None) -> list[Gap]:
        return sorted((gap for gap in self._of(key) if gap.is_closed), key=lambda gap: (gap.key, gap.first_id))

    def missing_ids(self) -> int:
        """Ids missing in gaps that are not closed, as last told."""
        return sum(gap.missing_ids for gap in self._of(None) if not gap.is_closed)

    def lost_ids(self) -> int:
        return sum(gap.missing_ids for gap in self._of(None) if gap.is_closed)

    def complete_through_id(self, key: Key, last_id: int | None) -> int | None:
        """Up to which id the symbol counts as complete, when `last_id` is its newest: before its first open stop."""
        stops = [gap.first_id for gap in self._of(key) if not gap.is_closed and gap.severity is Severity.STOP]
        return min(stops) - 1 if stops else last_id

    # --- as text, for the checkpoint ------------------------------------------------------------------------------

    def to_text(self) -> str:
        """Compact JSON; the order in which things were taken in does not show."""
        gaps = sorted((gap.record() for gap in self._of(None)), key=lambda record: str(record["message_id"]))
        backfilled = [[*key, [list(one) for one in ids]] for key, ids in sorted(self._backfilled.items())]
        return json.dumps({"form": _FORM, "gaps": gaps, "backfilled": backfilled}, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str, limits: GapLimits) -> Self:
        """The reverse of `to_text`. Raises K2Error when the text is not that form."""
        book = cls(limits)
        try:
            tree = json.loads(text)
            if tree["form"] != _FORM:
                raise ValueError(f"form {tree['form']!r} is not known")
            for record in tree["gaps"]:
                book._put(Gap.from_record(record))
            for exchange, symbol, ranges in tree["backfilled"]:
                book._backfilled[exchange, symbol] = IdRanges((int(first), int(last)) for first, last in ranges)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise K2Error(f"the gaps cannot be read from {text[:100]!r}: {error!r}") from None
        return book

    def copy(self) -> Self:
        """An independent book that knows the same."""
        return type(self).from_text(self.to_text(), self._limits)

    def __eq__(self, other: object) -> bool:
        return self.to_text() == other.to_text() if isinstance(other, GapBook) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # mutable

    # --- within ---------------------------------------------------------------------------------------------------

    def _moved(self, gap: Gap, still: int, now_s: float, now_us: int) -> Gap:
        """The gap with so many ids missing still, kept, or forgotten when that is none."""
        backfilled = self._backfilled_ids(gap)
        state = GapState.LOST if gap.is_closed else GapState.PARTLY_FILLED
        moved = replace(
            gap,
            state=state if still else GapState.FILLED,
            missing_ids=still,
            backfilled_ids=backfilled,
            updated_time_us=max(now_us, gap.updated_time_us + 1),
        )
        if not still:
            ids = gap.last_id - gap.first_id + 1
            how = "backfill" if backfilled >= ids else "backfill and stream" if backfilled else "stream"
            moved = replace(moved, closed_time_us=now_us, closed_by=how, reason=None)
            self.filled += 1
        self._put(moved)
        if not moved.is_closed:
            self._told_s[gap.key, gap.first_id] = now_s
        return moved

    def _opened(
        self, key: Key, missing: list[IdRange], now_s: float, now_us: int, brought: IdRange | None
    ) -> list[Gap]:
        """Open the gaps whose grace is over, or that are filled now; remember what is missing and in no gap."""
        before = self._seen.get(key, ())
        opened: list[Gap] = []
        seen: list[_Seen] = []
        for first_id, last_id in _without(missing, self._of(key)):
            known = (one.since_s for one in before if one.first_id <= last_id and first_id <= one.last_id)
            one = _Seen(first_id, last_id, min(known, default=now_s))
            is_brought = brought is not None and first_id <= brought.last_id and brought.first_id <= last_id
            if not is_brought and not self._is_over(one, now_s):
                seen.append(one)
                continue
            ids = last_id - first_id + 1
            gap = Gap(*key, first_id, last_id, GapState.OPEN, self._limits.severity(ids), ids, 0, now_us, now_us)
            self._put(gap)
            opened.append(gap)
        if seen:
            self._seen[key] = seen
        else:
            self._seen.pop(key, None)
        return opened

    def _may_tell(self, gap: Gap, now_s: float) -> bool:
        told_s = self._told_s.get((gap.key, gap.first_id))
        return told_s is None or now_s - told_s >= _PARTLY_FILLED_EVERY_S

    def _is_over(self, one: _Seen, now_s: float) -> bool:
        return now_s - one.since_s >= self._limits.grace_s

    def _put(self, gap: Gap) -> None:
        place, gaps = (gap.key, gap.first_id), self._gaps.setdefault(gap.key, {})
        self._untold.discard(place)
        if gap.is_closed:
            self._told_s.pop(place, None)
        if gap.state is GapState.FILLED:
            gaps.pop(gap.first_id, None)
        else:
            gaps[gap.first_id] = gap
        if not gaps:
            self._gaps.pop(gap.key)

    def _prune(self, key: Key) -> None:
        """Forget backfilled ids once the symbol has no open gap that they could be of."""
        if key in self._backfilled and all(gap.is_closed for gap in self._of(key)):
            self._backfilled.pop(key)

    def _of(self, key: Key | None) -> Iterable[Gap]:
        if key is not None:
            return self._gaps.get(key, {}).values()
        # Metrics ask from a thread of their own, while gaps come and go.
        return [gap for gaps in list(self._gaps.values()) for gap in list(gaps.values())]

    def _backfilled_ids(self, gap: Gap) -> int:
        return _overlap(self._backfilled.get(gap.key, ()), gap.first_id, gap.last_id)


def _overlap(ranges: Iterable[IdRange], first_id: int, last_id: int) -> int:
    """How many ids of the ranges lie between the two, inclusive."""
    return sum(max(0, min(last, last_id) - max(first, first_id) + 1) for first, last in ranges)


def _without(missing: Iterable[IdRange], gaps: Iterable[Gap]) -> list[IdRange]:
    """What of the missing ranges lies in none of the gaps, in order."""
    spans = sorted((gap.first_id, gap.last_id) for gap in gaps)
    rest: list[IdRange] = []
    for first, last in missing:
        for span_first, span_last in spans:
            if span_last < first:
                continue
            if span_first > last:
                break
            if first < span_first:
                rest.append(IdRange(first, span_first - 1))
            first = max(first, span_last + 1)
        if first <= last:
            rest.append(IdRange(first, last))
    return rest
