"""Write flight_server/storage/asx_days.py, the weekdays on which ASX is closed, from the library exchange-calendars.

Once a year: `uv run --no-project --with exchange-calendars python .ci/asx_days.py`. The library comes with pandas,
which the server does without, so what it knows is kept and not the library.
"""

from __future__ import annotations

from datetime import date, timedelta
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import exchange_calendars

TARGET = Path(__file__).parents[1] / "flight_server" / "storage" / "asx_days.py"
FIRST = date(2000, 1, 1)
_PAGE = '''"""The weekdays on which ASX is closed, by exchange-calendars {version}. .ci/asx_days.py writes this."""

from __future__ import annotations

from typing import Final

#: Year, then months and days. Beyond these years every weekday counts as open.
CLOSED: Final = """
{days}
"""
'''


def closed() -> list[date]:
    """The weekdays without a session, of whole years."""
    calendar = exchange_calendars.get_calendar("XASX", start=str(FIRST))
    open_days = {session.date() for session in calendar.sessions}
    last = date(max(open_days).year - 1, 12, 31)
    days = (FIRST + timedelta(days=number) for number in range((last - FIRST).days + 1))
    return [day for day in days if day.weekday() < 5 and day not in open_days]


if __name__ == "__main__":
    lines = (
        f"{year}: " + " ".join(f"{day:%m-%d}" for day in days) for year, days in groupby(closed(), lambda day: day.year)
    )
    TARGET.write_text(_PAGE.format(version=version("exchange-calendars"), days="\n".join(lines)))
