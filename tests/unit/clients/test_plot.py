"""Pictures: drawn without a browser, from whatever is an Arrow stream; what cannot be drawn is said in a sentence."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from clients import plot
from clients.errors import ClientError
from clients.results import Result

BEGIN = datetime(2026, 11, 24, 9, tzinfo=UTC)


def bar(minute: int, close: str | None = "101.5", symbol: str = "BTCUSDT") -> dict[str, Any]:
    prices = {"open": "100", "high": "102", "low": "99", "close": close}
    return {
        "symbol": symbol,
        "bar_start": BEGIN + timedelta(minutes=minute),
        **{name: None if close is None or text is None else Decimal(text) for name, text in prices.items()},
        "volume": Decimal(minute),
    }


BARS = pl.DataFrame([bar(0), bar(1, "99.25"), bar(2, None), bar(5)])


def values(picture: plot.Plot) -> list[dict[str, Any]]:
    """The rows that are drawn: Altair puts them at the top, under a name of its own; the zero line has one alone."""
    datasets: dict[str, list[dict[str, Any]]] = picture.chart.to_dict()["datasets"]
    return max(datasets.values(), key=len)


def test_candles_are_the_bars_that_have_a_price() -> None:
    rows = values(plot.candles(BARS))
    assert [(row["open"], row["close"], row["is"], row["volume"]) for row in rows] == [
        (100.0, 101.5, "up", 0.0),
        (100.0, 99.25, "down", 1.0),
        (100.0, 101.5, "up", 5.0),
    ]
    minute = 60_000
    assert [row["end"] - row["begin"] for row in rows] == [pytest.approx(0.7 * minute)] * 3
    assert rows[0]["begin"] == pytest.approx(BEGIN.timestamp() * 1_000 + 0.15 * minute)


def test_a_picture_is_titled_with_symbol_interval_span_and_cut() -> None:
    picture = plot.candles(Result(BARS.to_arrow(), "one cut"))
    again = plot.candles(Result(BARS.to_arrow(), "another cut"))
    title, other = (each.chart.to_dict()["title"] for each in (picture, again))
    assert title["text"] == picture.title == "BTCUSDT, bars of 1m"
    assert title["subtitle"].startswith("2026-11-24 09:00:00 to 09:06:00 UTC")
    assert "cut " in title["subtitle"]
    assert title["subtitle"] != other["subtitle"]
    assert "cut" not in plot.candles(BARS).chart.to_dict()["title"]["subtitle"]


def test_every_kind_of_file_is_written_and_shows_by_itself(tmp_path: Path) -> None:
    picture = plot.candles(BARS.to_pandas())
    assert size_of(picture.save(tmp_path / "a.png").read_bytes()) == size_of(picture.png()) > (1_200, 600)
    assert picture.save(tmp_path / "a.svg").read_text().startswith("<svg")
    page = picture.save(str(tmp_path / "a.html")).read_text()
    assert "<script src=" not in page
    assert "vegaEmbed" in page
    assert set(picture._repr_mimebundle_()) == {"image/png", "text/plain"}
    with pytest.raises(ClientError, match=r"let its name end in .png, .svg, .html or .json"):
        picture.save(tmp_path / "a.gif")
    with pytest.raises(ClientError, match="cannot be written: No such file"):
        picture.save(tmp_path / "nowhere" / "a.html")


def test_a_spread_is_a_median_and_a_band_for_each_part_of_the_time() -> None:
    quotes = pl.DataFrame(
        {
            "symbol": "BTCUSDT",
            "receive_time": [BEGIN + timedelta(seconds=second) for second in range(1_000)],
            "bid_price": [None, *[Decimal("99.99")] * 999],
            "ask_price": [Decimal("100.01")] * 1_000,
        }
    )
    rows = values(plot.spread(quotes))
    assert len(rows) == 99
    assert {round(row[name], 6) for row in rows for name in ("median", "low", "high")} == {2.0}
    assert rows == sorted(rows, key=lambda row: row["time"])


def test_markouts_are_means_in_basis_points_by_side_and_horizon() -> None:
    found = pl.DataFrame(
        [
            {"symbol": "A", "side": side, "horizon_us": us, "mid": Decimal(100), "markout": Decimal(markout)}
            for side, us, markout in [
                ("BUY", 1_000_000, "0.01"),
                ("BUY", 1_000_000, "0.03"),
                ("SELL", 1_000_000, "-0.05"),
                ("BUY", 60_000_000, "0.04"),
            ]
        ]
    )
    rows = values(plot.markouts(found))
    means = {
        (row["side"], row["horizon"]): (round(row["mean"], 6), round(row["high"] - row["mean"], 6)) for row in rows
    }
    assert means == {("BUY", "1s"): (2.0, 2.0), ("SELL", "1s"): (-5.0, 0.0), ("BUY", "1m"): (4.0, 0.0)}


@pytest.mark.parametrize(
    ("draw", "found", "says"),
    [
        (plot.candles, BARS.clear(), "there are no bars to draw; widen the span"),
        (plot.candles, BARS.filter(pl.col("open").is_null()), "there are no bars to draw"),
        (plot.candles, pl.DataFrame([bar(0), bar(0, symbol="ETHUSDT")]), "are of BTCUSDT, ETHUSDT; a plot is of one"),
        (plot.candles, BARS.drop("volume"), "these bars have no column volume; they have symbol"),
        (plot.candles, 7, "bars are to be a result, a frame or an Arrow table, and not int"),
        (plot.candles, pl.concat([BARS[:1]] * 3_001), "3,001 bars are too many"),
        (plot.spread, BARS, "these quotes have no column receive_time, bid_price, ask_price"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_sentence(draw: Any, found: Any, says: str) -> None:
    with pytest.raises(ClientError, match=says):
        draw(found)


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", png[16:24])
    return width, height
