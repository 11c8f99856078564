"""Lines of ASX history: what each becomes, what each trap of the vendor's files becomes, and what no line can be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.codec import Encoder
from common.datasets import INSTRUMENTS, QUOTES, TRADES, Dataset
from common.errors import FeedProtocolError, SettingsError
from common.registry import EmbeddedRegistry
from common.schemas.arrow import record_schema
from ingest.asx import AsxParser, AsxRow
from ingest.history import KnownRows, asx_files, read_companies

SYDNEY = ZoneInfo("Australia/Sydney")


def parser(dataset: Dataset = TRADES) -> AsxParser:
    return AsxParser(dataset, symbol="DVN", company_id="7181")


def row(line: str | bytes, dataset: Dataset = TRADES) -> AsxRow:
    found = parser(dataset).row(line.encode() if isinstance(line, str) else line)
    assert found is not None
    return found


def us(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1_000_000)


def test_a_trade_field_by_field() -> None:
    found = row("03/10/2014,10:13:34.553,0.675,8216,25,X,1234")
    # Sydney is 11 hours ahead in March.
    at = us("2014-03-09T23:13:34.553+00:00")
    assert found.identified(7) == {
        "message_id": "asx:DVN:7",
        "trade_id": 7,
        "exchange": "asx",
        "symbol": "DVN",
        "asset_class": "equities",
        "event_time": at,
        "transaction_time": None,
        "receive_time": at,
        "price": Decimal("0.675"),
        "quantity": Decimal(8216),
        "currency": "AUD",
        "side": "UNKNOWN",
        "trade_conditions": ["25"],
        "source": "history",
        "source_sequence": None,
        "vendor_data": {"company_id": "7181", "venue": "X", "buyer_id": "1234"},
    }


def test_a_quote_field_by_field() -> None:
    found = row("07/01/2014,10:13:34.5,0.665,0.67,15000,13469", QUOTES)
    at = us("2014-07-01T00:13:34.500+00:00")
    assert found.identified(1) == {
        "message_id": "asx:DVN:1",
        "quote_id": 1,
        "exchange": "asx",
        "symbol": "DVN",
        "asset_class": "equities",
        "event_time": at,
        "receive_time": at,
        "bid_price": Decimal("0.665"),
        "bid_quantity": Decimal(15000),
        "ask_price": Decimal("0.67"),
        "ask_quantity": Decimal(13469),
        "currency": "AUD",
        "source": "history",
        "source_sequence": None,
        "vendor_data": {"company_id": "7181"},
    }


@pytest.mark.parametrize("dataset", [TRADES, QUOTES], ids=lambda one: one.name)
def test_what_becomes_of_a_line_fits_its_schema(dataset: Dataset) -> None:
    line = "03/10/2014,10:13:34.553,0.67,8216,0,," if dataset is TRADES else "03/10/2014,05:46:13.491,0.66,0.0,24999,0"
    encoder = Encoder(dataset, EmbeddedRegistry(), topic="t")
    record = row(line, dataset).identified(1)
    assert set(record) == set(record_schema(dataset.schema_name).names)
    assert encoder.encode(record) == encoder.encode_by_fastavro(record)


@pytest.mark.parametrize(
    ("columns", "conditions", "vendor_data"),
    [
        ("0,,", ["0"], {}),
        (",,", [], {}),
        ("27,X,", ["27"], {"venue": "X"}),
        ("3,,0.675", ["3"], {"buyer_column": "0.675"}),
        ("0,,17", ["0"], {"buyer_id": "17"}),
        ('"2,25",X,9', ["2", "25"], {"venue": "X", "buyer_id": "9"}),
        ("2,25,8,X,9", ["2", "25", "8"], {"venue": "X", "buyer_id": "9"}),
        ("2 25;8|26,,", ["2", "25", "8", "26"], {}),
    ],
)
def test_the_traps_of_a_trades_last_columns(columns: str, conditions: list[str], vendor_data: dict[str, str]) -> None:
    record = row(f"03/10/2014,10:13:34.553,0.67,8216,{columns}").record
    assert record["trade_conditions"] == conditions
    assert record["vendor_data"] == {"company_id": "7181", **vendor_data}


@pytest.mark.parametrize(
    ("prices", "sides", "crossed"),
    [
        ("1.11,0.0,10300,0", (Decimal("1.11"), Decimal(10300), None, None), False),
        ("0,1.18,0,3667", (None, None, Decimal("1.18"), Decimal(3667)), False),
        ("0.0,0.0,0,0", (None, None, None, None), False),
        ("0.63,0.625,14615,344", (Decimal("0.63"), Decimal(14615), Decimal("0.625"), Decimal(344)), True),
        ("0.63,0.63,1,1", (Decimal("0.63"), Decimal(1), Decimal("0.63"), Decimal(1)), False),
        ("0.63,0.64,0,1", (Decimal("0.63"), Decimal(0), Decimal("0.64"), Decimal(1)), False),
    ],
)
def test_the_traps_of_quotes(prices: str, sides: tuple[Decimal | None, ...], crossed: bool) -> None:
    found = row(f"03/10/2014,10:13:34.553,{prices}", QUOTES)
    names = ("bid_price", "bid_quantity", "ask_price", "ask_quantity")
    assert tuple(found.record[name] for name in names) == sides
    assert found.is_crossed is crossed


def test_line_ends_and_empty_lines() -> None:
    line = b"03/10/2014,10:13:34.553,0.67,8216,0,,"
    assert row(line + b"\r") == row(line) == row(b"  " + line + b" \r\n")
    assert parser().row(b"\r\n") is None
    assert parser().row(b"") is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("03/10/2014,10:13:34.553,0.67,8216,0,", "7 columns, this line has 6"),
        ("13/10/2014,10:13:34.553,0.67,8216,0,,", "no date and time"),
        ("10.03.2014,10:13:34.553,0.67,8216,0,,", "not MM/DD/YYYY"),
        ("03/10/2014,10:13,0.67,8216,0,,", "not HH:MM:SS"),
        ("03/10/2014,24:00:00,0.67,8216,0,,", "no date and time"),
        ("03/10/2014,10:13:34.553,0.0,8216,0,,", "price of a trade is zero"),
        ("03/10/2014,10:13:34.553,-0.67,8216,0,,", "price '-0.67' is no number"),
        ("03/10/2014,10:13:34.553,1e3,8216,0,,", "price '1e3' is no number"),
        ("03/10/2014,10:13:34.553,nan,8216,0,,", "price 'nan' is no number"),
        ("03/10/2014,10:13:34.553,0.123456789,8216,0,,", "at most 8 decimals"),
        ("03/10/2014,10:13:34.553,12345678901,8216,0,,", "price '12345678901' is no number"),
        ("03/10/2014,10:13:34.553,0.67,0,0,,", "volume of a trade is zero"),
        ("03/10/2014,10:13:34.553,0.67,,0,,", "volume '' is no number"),
        ("03/10/2014,10:13:34.553,0.67,8216,A,,", "qualifier 'A'"),
        ("03/10/2014,10:13:34.553,0.67,8216,0,0.67,", "venue '0.67'"),
        ("03/10/2014,10:13:34.553,0.67,8216,0,,a b", "buyer 'a b'"),
        ("10/05/2014,02:30:00,0.67,8216,0,,", "never was"),
        ('03/10/2014,10:13:34.553,"0.67,8216,0,,', "no line of comma separated values"),
        (b"03/10/2014,10:13:34.553,0.67,8216,0,\xff,", "not plain ASCII"),
        (b"03/10/2014,10:13:34.553,0.67,8216,0,\x00,", "venue"),
        ("date,time,price,volume,qualifiers,venue,buyer", "date 'date'"),
    ],
)
def test_a_trade_that_none_can_be(line: str | bytes, reason: str) -> None:
    with pytest.raises(FeedProtocolError, match=reason):
        row(line)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("03/10/2014,05:46:13.491,0.66,0.67,24999", "6 columns, this line has 5"),
        ("03/10/2014,05:46:13.491,0.66,0.67,24999,1,", "6 columns, this line has 7"),
        ("03/10/2014,05:46:13.491,0.66,0.0,24999,5", "the ask has the volume 5 and no price"),
        ("03/10/2014,05:46:13.491,-1,0.67,24999,5", "bid price '-1'"),
    ],
)
def test_a_quote_that_none_can_be(line: str, reason: str) -> None:
    with pytest.raises(FeedProtocolError, match=reason):
        row(line, QUOTES)


def parsed_times(lines: list[tuple[datetime, str]]) -> list[int]:
    """The UTC times that one file of trades at these local times comes out with."""
    one = parser()
    found = []
    for local, _ in lines:
        got = one.row(f"{local:%m/%d/%Y},{local:%H:%M:%S.%f},1,1,0,,".encode())
        assert got is not None
        found.append(got.record["event_time"])
    return found


@pytest.mark.parametrize("around", ["2014-04-05T16:00", "2014-10-04T16:00"], ids=["back", "forward"])
def test_times_are_right_across_a_change_of_daylight_saving(around: str) -> None:
    """Every 20 minutes for three days: each local time comes out as the instant that it was made of."""
    begin = datetime.fromisoformat(around).replace(tzinfo=UTC) - timedelta(hours=36)
    instants = [begin + timedelta(minutes=20 * step) for step in range(216)]
    local = [(one.astimezone(SYDNEY).replace(tzinfo=None), "") for one in instants]
    assert parsed_times(local) == [round(one.timestamp() * 1e6) for one in instants]
    assert len({one.astimezone(SYDNEY).utcoffset() for one in instants}) == 2


def test_an_hour_that_comes_twice_is_said() -> None:
    one = parser()
    passes = []
    for time in ("01:59:59", "02:10:00", "02:50:00", "02:05:00", "02:40:00", "03:00:00"):
        found = one.row(f"04/06/2014,{time},1,1,0,,".encode())
        assert found is not None
        passes.append(found.record["vendor_data"].get("local_time"))
    assert [None if one is None else one.split("(")[1].split()[0] for one in passes] == [
        None,
        "first",
        "first",
        "second",
        "second",
        None,
    ]
    assert passes[1] is not None and passes[1].startswith("2014-04-06 02:10:00")


@settings(max_examples=200, deadline=None)
@given(st.datetimes(datetime(1990, 1, 1), datetime(2035, 1, 1)))
def test_any_unambiguous_local_time_comes_out_as_it_went_in(at: datetime) -> None:
    instant = at.replace(tzinfo=UTC)
    local = instant.astimezone(SYDNEY)
    if local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset():
        return
    assert parsed_times([(local.replace(tzinfo=None), "")]) == [
        (at - datetime(1970, 1, 1)) // timedelta(microseconds=1)
    ]


def as_table(rows: list[dict[str, Any]], dataset: Dataset) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=record_schema(dataset.schema_name))


@pytest.mark.parametrize(
    ("dataset", "lines"),
    [
        (
            TRADES,
            [
                "03/10/2014,10:13:34.553,0.67,8216,0,,",
                '03/10/2014,10:13:34.553,0.675,8216,"2,25",X,17',
                "03/10/2014,10:13:34.553,0.67,8216,0,,0.675",
            ],
        ),
        (QUOTES, ["03/10/2014,05:46:13.491,0.66,0.0,24999,0", "03/10/2014,05:46:13.491,0.66,0.67,24999,13469"]),
    ],
)
def test_a_line_is_known_again_in_what_became_of_it(dataset: Dataset, lines: list[str]) -> None:
    rows = [row(line, dataset) for line in lines]
    assert len({one.key for one in rows}) == len(rows)
    known = KnownRows()
    records = [one.identified(number) for number, one in enumerate(rows, 1)]
    known.add(dataset, as_table(records, dataset))
    known.add(dataset, as_table(records[1:], dataset))  # in the log and in the table: once
    known.add(dataset, as_table([record | {"exchange": "binance"} for record in records], dataset))
    assert known.keys(dataset, "DVN") == dict.fromkeys([one.key for one in rows], 1)
    assert [tuple(one) for one in known.ids(dataset, "DVN")] == [(1, len(rows))]


def test_a_company_keeps_its_symbol(tmp_path: Path) -> None:
    known = KnownRows()
    known.add(TRADES, as_table([row("03/10/2014,10:13:34.553,0.67,8216,0,,").identified(1)], TRADES))
    (tmp_path / "trades").mkdir()
    (tmp_path / "trades" / "7181.csv").touch()
    (same,) = asx_files(tmp_path)
    known.check(same)
    (other,) = asx_files(tmp_path, {"7181": "OTHER"})
    with pytest.raises(SettingsError, match="7181 was taken in before as DVN, not as OTHER"):
        known.check(other)


def test_which_files_a_path_means(tmp_path: Path) -> None:
    for folder in ("trades", "quotes"):
        (tmp_path / folder).mkdir()
        for name in ("7181.csv", "3153.csv", "notes.txt"):
            (tmp_path / folder / name).touch()
    names = ["trades/3153.csv", "trades/7181.csv", "quotes/3153.csv", "quotes/7181.csv"]
    assert [file.name for file in asx_files(tmp_path)] == names
    assert [file.name for file in asx_files(tmp_path / "quotes")] == names[2:]
    assert [(f.dataset, f.symbol) for f in asx_files(tmp_path / "trades" / "7181.csv")] == [(TRADES, "DVN")]
    for wrong, why in ((tmp_path / "nothing", "there is no"), (tmp_path.parent, "has no history of ASX")):
        with pytest.raises(SettingsError, match=why):
            asx_files(wrong)
    (tmp_path / "trades" / "99.csv").touch()
    with pytest.raises(SettingsError, match="the company 99 is not known"):
        asx_files(tmp_path)


def test_companies_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "companies.csv"
    file.write_text("# id,symbol\n99, bhp\r\n\n7181,DVN\n")
    assert read_companies(file) == {"3153": "MWR", "7181": "DVN", "99": "BHP"}
    for text, why in (("99\n", "line 1 of"), ("99,MWR\n", "two companies the symbol MWR")):
        file.write_text(text)
        with pytest.raises(SettingsError, match=why):
            read_companies(file)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_companies(tmp_path / "none.csv")


def test_instruments_are_known_by_their_content() -> None:
    known = KnownRows()
    assert not known.has_instrument("asx:DVN:1")
    record = dict.fromkeys(record_schema(INSTRUMENTS.schema_name).names) | {
        "message_id": "asx:DVN:1",
        "exchange": "asx",
        "symbol": "DVN",
        "asset_class": "equities",
        "quote_currency": "AUD",
        "updated_time": 0,
    }
    known.add(INSTRUMENTS, as_table([record], INSTRUMENTS))
    assert known.has_instrument("asx:DVN:1")
