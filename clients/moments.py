"""Pure: the times that people write, as microseconds UTC.

A time is a `datetime` with a zone (a pandas Timestamp is one), a date (its midnight in UTC), ISO text with a zone or of
a date alone, or a numpy `datetime64`, which has no zone anywhere and is UTC here, as it is where pandas and polars make
one of a time with a zone. A time of a day without a zone is refused: whoever means UTC writes it.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Union

import pyarrow as pa

from clients.errors import ClientError

if TYPE_CHECKING:
    import numpy as np

#: What stands for a time. A pandas Timestamp is a datetime.
Moment = Union[datetime, date, str, "np.datetime64"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Units finer than a microsecond, and how many are one.
_FINER = {"ns": 10**3, "ps": 10**6, "fs": 10**9, "as": 10**12}
_FORMS = "write it as datetime(2026, 11, 24, 9, 30, tzinfo=UTC), as '2026-11-24T09:30:00Z', or as a date"


def micros(moment: Moment, what: str = "the time") -> int:
    """Microseconds since 1970 UTC; what is finer is rounded up. Raises ClientError for what is no time, or has no zone.

    Rounded up, so that of the times in microseconds just those lie in [start, end) that lay in it before.
    """
    if isinstance(moment, str):
        return _of_text(moment, what)
    if isinstance(moment, datetime):
        if moment != moment:  # pandas' NaT
            raise _refused(f"{what} is NaT")
        if moment.tzinfo is None:
            raise _refused(f"{what}, {moment.isoformat()}, has no time zone")
        finer = 1 if getattr(moment, "nanosecond", 0) else 0  # a pandas Timestamp has nanoseconds
        # In UTC first: two times of one zone are subtracted by their clocks, which jump with the season.
        return (moment.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1) + finer
    if isinstance(moment, date):
        return (moment - _EPOCH.date()) // timedelta(microseconds=1)
    if type(moment).__name__ == "datetime64":
        return _of_numpy(moment, what)
    raise _refused(f"{what}, {moment!r}, is no time")


def timestamp(moment: Moment, what: str = "the time") -> pa.Scalar:
    """The same as a parameter of a statement. Raises ClientError."""
    return pa.scalar(micros(moment, what), pa.timestamp("us", "UTC"))


def instant_text(moment: Moment, what: str = "the time") -> str:
    """The same as ISO text in UTC, as the server takes it. Raises ClientError."""
    return (_EPOCH + timedelta(microseconds=micros(moment, what))).isoformat()


def _of_text(text: str, what: str) -> int:
    stripped = text.strip()
    try:
        if len(stripped) <= len("2026-11-24"):
            return micros(date.fromisoformat(stripped), what)
        found = datetime.fromisoformat(stripped)
    except ValueError:
        raise _refused(f"{what}, {text!r}, is no time") from None
    if found.tzinfo is None:
        raise _refused(f"{what}, {text!r}, has no time zone")
    return micros(found, what)


def _of_numpy(moment: np.datetime64, what: str) -> int:
    import numpy as np

    if np.isnat(moment):
        raise _refused(f"{what} is NaT")
    unit, count = np.datetime_data(moment.dtype)
    if unit in _FINER:
        return -(-int(moment.astype("int64")) * count // _FINER[unit])
    return int(moment.astype("datetime64[us]").astype("int64"))


def _refused(sentence: str) -> ClientError:
    return ClientError(f"{sentence}; {_FORMS}", code="INVALID_ARGUMENT")
