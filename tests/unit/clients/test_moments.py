"""Times as people write them: each form is the same microsecond, and one without a zone is refused."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.errors import ClientError
from clients.moments import Moment, instant_text, micros, timestamp

NINE = 1_795_512_600_000_000  # 2026-11-24 09:30 UTC
SYDNEY = ZoneInfo("Australia/Sydney")


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 11, 24, 9, 30, tzinfo=UTC),
        datetime(2026, 11, 24, 20, 30, tzinfo=SYDNEY),
        datetime(2026, 11, 24, 4, 30, tzinfo=timezone(timedelta(hours=-5))),
        "2026-11-24T09:30:00Z",
        " 2026-11-24 09:30:00+00:00",
        "2026-11-24T20:30+11:00",
        np.datetime64("2026-11-24T09:30"),
        np.datetime64("2026-11-24T09:30:00.000000000"),
        pd.Timestamp("2026-11-24T09:30Z"),
        pd.Timestamp("2026-11-24T20:30", tz="Australia/Sydney"),
    ],
    ids=repr,
)
def test_every_form_is_the_same_time(moment: Moment) -> None:
    assert micros(moment) == NINE
    assert timestamp(moment).as_py() == datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
    assert instant_text(moment) == "2026-11-24T09:30:00+00:00"


@pytest.mark.parametrize("moment", [date(2026, 11, 24), "2026-11-24", np.datetime64("2026-11-24")], ids=repr)
def test_a_date_is_its_midnight_in_utc(moment: Moment) -> None:
    assert micros(moment) == NINE - int(9.5 * 3_600_000_000)


@pytest.mark.parametrize(
    ("moment", "says"),
    [
        (datetime(2026, 11, 24, 9, 30), "start, 2026-11-24T09:30:00, has no time zone"),
        ("2026-11-24T09:30:00", "start, '2026-11-24T09:30:00', has no time zone"),
        (pd.Timestamp("2026-11-24T09:30"), "has no time zone"),
        (pd.NaT, "start is NaT"),
        (np.datetime64("NaT"), "start is NaT"),
        ("yesterday", "start, 'yesterday', is no time"),
        ("", "is no time"),
        (1_795_512_600, "start, 1795512600, is no time"),
    ],
    ids=repr,
)
def test_what_is_no_time_or_has_no_zone_is_refused_in_a_sentence(moment: Moment, says: str) -> None:
    with pytest.raises(ClientError) as caught:
        micros(moment, "start")
    assert says in str(caught.value)
    assert "2026-11-24T09:30:00Z" in str(caught.value)
    assert caught.value.code == "INVALID_ARGUMENT"


def test_two_times_over_a_change_of_the_season_are_apart_by_what_passed() -> None:
    """Subtracted as clocks, times of one zone would be an hour off."""
    before, after = (datetime(2026, 10, 4, hour, tzinfo=SYDNEY) for hour in (1, 4))
    assert micros(after) - micros(before) == 2 * 3_600_000_000


@given(st.integers(min_value=-(10**15), max_value=2 * 10**18))
def test_what_is_finer_is_rounded_up_so_that_the_same_microseconds_lie_in_a_span(nanos: int) -> None:
    """A microsecond t is at or behind a bound exactly if it is so behind the bound that was rounded."""
    for bound in (micros(np.datetime64(nanos, "ns")), micros(pd.Timestamp(nanos, tz="UTC"))):
        assert (bound - 1) * 1_000 < nanos <= bound * 1_000


@given(st.datetimes(timezones=st.timezones()))
def test_any_time_comes_back(moment: datetime) -> None:
    try:
        there = moment.astimezone(UTC)
    except OverflowError:
        return
    assert datetime.fromisoformat(instant_text(moment)) == there
    assert datetime.fromisoformat(instant_text(moment.isoformat())) == there
