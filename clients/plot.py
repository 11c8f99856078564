"""Pictures of the market: candles with volume, the spread, markouts; in a notebook, as PNG and as HTML.

    from clients import plot
    plot.candles(k2.bars("BTCUSDT", interval="1m"))              # shows itself in a notebook
    plot.candles(bars).save("candles.png")                       # or .html, .svg, .json; no browser takes part
    plot.live_candles(k2, "BTCUSDT", "1s")                       # redrawn while trades arrive, until it is interrupted

What is drawn is a Result, a polars or pandas frame, an Arrow table: whatever is an Arrow stream. Values are drawn as
floats, which pixels do not tell from decimals; nothing is computed from them but what a picture needs. Times are UTC.
Needs the extra `plot` (Altair, vl-convert, IPython).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from clients.errors import ClientError
from clients.market import K2
from clients.statements import literal

if TYPE_CHECKING:
    import altair as alt

UP, DOWN, INK, GRID, LINE, BAND = "#12826f", "#c8443b", "#333333", "#e7e7e7", "#2b5f9e", "#a9c4e4"
#: More candles than this are less than a pixel each.
CANDLES_MAX = 3_000
#: Points along the time axis of a spread, at most; as few as give each one ten quotes or more in the mean.
_BUCKETS_MIN, _BUCKETS_MAX, _QUOTES_MIN = 20, 400, 10
_PNG_PPI = 144
_SHOWN = "%H:%M:%S"


@dataclass(frozen=True)
class Plot:
    """A picture. A notebook shows it; `chart` is Altair's own, to be changed."""

    chart: alt.TopLevelMixin = field(repr=False)
    title: str

    def save(self, path: Path | str) -> Path:
        """Write it; the name's end says as what: .png, .svg, .html (which needs nothing from elsewhere), .json.

        Raises ClientError for another end, and where the file cannot be written.
        """
        path = Path(path)
        kind = path.suffix.removeprefix(".")
        if kind not in {"png", "svg", "html", "json"}:
            raise ClientError(f"{path} cannot be written; let its name end in .png, .svg, .html or .json")
        more: dict[str, dict[str, Any]] = {"png": {"ppi": _PNG_PPI}, "html": {"inline": True}}
        chart: Any = self.chart
        try:
            chart.save(str(path), format=kind, **more.get(kind, {}))
        except OSError as error:
            raise ClientError(f"{path} cannot be written: {error.strerror or error}") from None
        return path

    def png(self) -> bytes:
        """The picture as PNG."""
        import vl_convert

        return bytes(vl_convert.vegalite_to_png(self.chart.to_json(), ppi=_PNG_PPI))

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        """A PNG, which every notebook shows, and one that is kept in a repository too."""
        return {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.title}


def candles(bars: Any, *, title: str | None = None, width: int = 860, height: int = 340) -> Plot:
    """Candles over volume, one symbol's. `bars` has bar_start, open, high, low, close and volume, as `K2.bars` gives.

    A bar without a price, as a fill of null makes one, is left out. Raises ClientError: no bars, several symbols, too
    many bars, columns that are not there, Altair is not installed.
    """
    alt = _altair()
    frame = _frame(bars, ("symbol", "bar_start", "open", "high", "low", "close", "volume"), "bars")
    frame = frame.filter(pl.col("open").is_not_null()).sort("bar_start")
    symbol = _one_symbol(frame, "bars")
    if len(frame) > CANDLES_MAX:
        raise ClientError(f"{len(frame):,} bars are too many to be told apart; ask for a wider interval")
    step = _step(frame["bar_start"])
    begin, end = frame["bar_start"][0], frame["bar_start"][-1] + step
    rows = [
        {
            "time": row["bar_start"] + step / 2,
            "begin": row["bar_start"] + step * 0.15,
            "end": row["bar_start"] + step * 0.85,
            "is": "up" if row["close"] >= row["open"] else "down",
            **{name: float(row[name]) for name in ("open", "high", "low", "close", "volume")},
        }
        for row in frame.iter_rows(named=True)
    ]
    data = alt.InlineData(values=[_plain(row) for row in rows])
    x = _time_axis(alt, begin, end)
    colour = alt.Color("is:N", scale=alt.Scale(domain=["up", "down"], range=[UP, DOWN]), legend=None)
    price = alt.Scale(zero=False, nice=True)
    wicks = (
        alt.Chart(data)
        .mark_rule(strokeWidth=1)
        .encode(x=x("time", labels=False), y=alt.Y("low:Q", scale=price, title="price"), y2="high:Q", color=colour)
    )
    # A body of a bar that closed where it opened has no height: it is drawn as a line by its stroke.
    bodies = (
        alt.Chart(data)
        .mark_rect(strokeWidth=1)
        .encode(
            x=x("begin", labels=False),
            x2="end:T",
            y=alt.Y("open:Q", scale=price),
            y2="close:Q",
            color=colour,
            stroke=colour,
        )
    )
    volume = (
        alt.Chart(data)
        .mark_rect(opacity=0.65)
        .encode(
            x=x("begin"),
            x2="end:T",
            y=alt.Y("volume:Q", title="volume", axis=alt.Axis(tickCount=3)),
            y2=alt.datum(0),
            color=colour,
        )
    )
    titled = _title(alt, title or f"{symbol}, bars of {_width_text(step)}", bars, begin, end)
    chart = alt.vconcat(
        alt.layer(wicks, bodies).properties(width=width, height=height),
        volume.properties(width=width, height=max(60, height // 4)),
        spacing=6,
        title=titled,
    )
    return Plot(_dressed(chart), titled.text)


def spread(quotes: Any, *, title: str | None = None, width: int = 860, height: int = 240) -> Plot:
    """The spread in basis points of the mid over time: the median, and from which to which nine of ten quotes lie.

    `quotes` has symbol, bid_price, ask_price, and receive_time or event_time, one symbol's, as `K2.quotes` gives.
    Quotes with one side are left out; a crossed one lies below zero. Raises ClientError as `candles`.
    """
    alt = _altair()
    frame = _frame(quotes, ("symbol", "receive_time", "bid_price", "ask_price"), "quotes")
    bid, ask = pl.col("bid_price").cast(pl.Float64), pl.col("ask_price").cast(pl.Float64)
    frame = frame.select("symbol", "receive_time", bp=(ask - bid) / (ask + bid) * 2e4)
    frame = frame.filter(pl.col("bp").is_finite())
    symbol = _one_symbol(frame, "quotes with both sides")
    times = frame["receive_time"]
    begin, end = _bounds(times)
    buckets = min(_BUCKETS_MAX, max(_BUCKETS_MIN, len(frame) // _QUOTES_MIN))
    step = max((end - begin) / buckets, timedelta(microseconds=1))
    part = ((pl.col("receive_time") - begin) / step).floor().clip(upper_bound=buckets - 1)
    points = (
        frame.group_by(part.alias("part"))
        .agg(
            pl.col("bp").median().alias("median"),
            pl.col("bp").quantile(0.05).alias("low"),
            pl.col("bp").quantile(0.95).alias("high"),
        )
        .sort("part")
    )
    rows = [{**row, "time": begin + step * (row.pop("part") + 0.5)} for row in points.iter_rows(named=True)]
    data = alt.InlineData(values=[_plain(row) for row in rows])
    x = _time_axis(alt, begin, end)
    y = alt.Y("low:Q", title="spread, bp of the mid", scale=alt.Scale(zero=True, nice=True))
    band = alt.Chart(data).mark_area(color=BAND, opacity=0.6, interpolate="step").encode(x=x("time"), y=y, y2="high:Q")
    line = alt.Chart(data).mark_line(color=LINE, strokeWidth=1.5, interpolate="step").encode(x=x("time"), y="median:Q")
    titled = _title(
        alt, title or f"{symbol}, spread", quotes, begin, end, f"{len(frame):,} quotes: median, and 5 to 95 %"
    )
    chart = alt.layer(band, line).properties(width=width, height=height, title=titled)
    return Plot(_dressed(chart), titled.text)


def markouts(found: Any, *, title: str | None = None, width: int = 520, height: int = 280) -> Plot:
    """How far the mid is from the trade's price after each horizon, by the taker's side: the mean, and its error.

    `found` has a row for each trade and horizon, as the server's `markouts` gives: symbol, side, horizon_us, mid at the
    trade, and markout, positive where the mid went the way the taker traded. The lines are two standard errors to
    either side of the mean. Raises ClientError as `candles`.
    """
    alt = _altair()
    frame = _frame(found, ("symbol", "side", "horizon_us", "mid", "markout"), "markouts")
    bp = pl.col("markout").cast(pl.Float64) / pl.col("mid").cast(pl.Float64) * 1e4
    frame = frame.with_columns(bp=bp).filter(pl.col("bp").is_finite())
    symbol = _one_symbol(frame, "markouts with a mid")
    error = 2 * pl.col("bp").std() / pl.len().sqrt()
    means = (
        frame.group_by("side", "horizon_us")
        .agg(pl.col("bp").mean().alias("mean"), error.fill_null(0).alias("error"), pl.len().alias("trades"))
        .sort("horizon_us", "side")
    )
    order = [_width_text(timedelta(microseconds=us)) for us in sorted(set(means["horizon_us"]))]
    rows = [
        {
            "horizon": _width_text(timedelta(microseconds=row["horizon_us"])),
            "side": row["side"],
            "mean": row["mean"],
            "low": row["mean"] - row["error"],
            "high": row["mean"] + row["error"],
        }
        for row in means.iter_rows(named=True)
    ]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("horizon:N", sort=order, title="after the trade", axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("side:N", scale=alt.Scale(paddingInner=0.1)),
        color=alt.Color(
            "side:N",
            title="taker",
            scale=alt.Scale(domain=["BUY", "SELL", "SELL_SHORT", "UNKNOWN"], range=[UP, DOWN, "#8d6cab", "#8a8a8a"]),
            legend=alt.Legend(orient="right", values=sorted(set(means["side"]))),
        ),
    )
    zero = alt.Chart(alt.InlineData(values=[{"y": 0}])).mark_rule(color=INK, strokeWidth=1).encode(y="y:Q")
    ranges = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", title="markout, bp of the mid"), y2="high:Q")
    points = base.mark_point(filled=True, size=60, opacity=1).encode(y="mean:Q")
    trades = max(part["trades"].sum() for part in means.partition_by("horizon_us"))
    titled = _title(
        alt, title or f"{symbol}, markouts", found, None, None, f"{trades:,} trades: mean, and 2 errors of it"
    )
    return Plot(
        _dressed(alt.layer(zero, ranges, points).properties(width=width, height=height, title=titled)), titled.text
    )


def live_candles(
    k2: K2,
    symbol: str,
    interval: str = "1s",
    *,
    span: timedelta = timedelta(minutes=2),
    draws: int | None = None,
    show: Callable[[Plot], None] | None = None,
) -> Plot:
    """Candles of the latest `span`, drawn anew whenever trades arrive, until interrupted, or after so many `draws`.

    Returns the last picture. `show` is handed each one; None: the notebook's cell. Each picture is of one cut, and has
    every trade that had arrived by then. Raises ClientError, also where there is no notebook to show it in.
    """
    shown = show or _in_cell()
    query = f"SELECT event_time FROM market.trades WHERE symbol = {literal(symbol)}"
    plot: Plot | None = None
    left = draws
    with k2.subscribe(query, "now") as arrivals:
        try:
            for arrival in arrivals:
                newest = max(arrival.batch.column("event_time").to_pylist())
                plot = candles(k2.bars(symbol, newest - span, None, interval))
                shown(plot)
                left = None if left is None else left - 1
                if left is not None and left <= 0:
                    break
        except KeyboardInterrupt:
            if plot is None:
                raise
    if plot is None:
        raise ClientError(f"the server ended before a trade of {symbol} arrived")
    return plot


def _in_cell() -> Callable[[Plot], None]:
    """Shows a picture in the place of the one before it."""
    try:
        from IPython.display import display
    except ImportError:
        raise ClientError("live candles are shown in a notebook; elsewhere say by show= what takes each one") from None
    handles: list[Any] = []

    def show(plot: Plot) -> None:
        if handles:
            handles[0].update(plot)
        else:
            handles.append(display(plot, display_id=True))  # type: ignore[no-untyped-call]

    return show


def _altair() -> Any:
    try:
        import altair
        import vl_convert  # noqa: F401  (what makes pictures of it)
    except ImportError:
        raise ClientError("plots need Altair and vl-convert; install them with: pip install 'k2[plot]'") from None
    return altair


def _frame(found: Any, columns: tuple[str, ...], what: str) -> pl.DataFrame:
    try:
        frame = pl.DataFrame(found)
    except (TypeError, ValueError, pl.exceptions.PolarsError):
        raise ClientError(
            f"{what} are to be a result, a frame or an Arrow table, and not {type(found).__name__}"
        ) from None
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise ClientError(f"these {what} have no column {', '.join(missing)}; they have {', '.join(frame.columns)}")
    return frame


def _one_symbol(frame: pl.DataFrame, what: str) -> str:
    symbols = sorted(set(frame["symbol"]))
    if not symbols:
        raise ClientError(f"there are no {what} to draw; widen the span")
    if len(symbols) > 1:
        raise ClientError(f"these {what} are of {', '.join(symbols)}; a plot is of one symbol")
    return str(symbols[0])


def _bounds(times: pl.Series) -> tuple[datetime, datetime]:
    begin, end = times.min(), times.max()
    assert isinstance(begin, datetime)
    assert isinstance(end, datetime)
    return begin, max(end, begin + timedelta(milliseconds=1))


def _step(starts: pl.Series) -> timedelta:
    """The bars' interval: the least distance between two; a minute for one bar alone."""
    least = starts.diff().drop_nulls().min()
    return least if isinstance(least, timedelta) and least > timedelta() else timedelta(minutes=1)


def _time_axis(alt: Any, begin: datetime, end: datetime) -> Callable[..., Any]:
    scale = alt.Scale(type="utc", domain=[_millis(begin), _millis(end)], nice=False)
    span = end - begin
    form = "%H:%M:%S" if span < timedelta(minutes=20) else "%H:%M" if span < timedelta(days=1) else "%m-%d %H:%M"

    def axis(name: str, *, labels: bool = True) -> Any:
        title = "time (UTC)" if labels else None
        drawn = alt.Axis(labels=labels, ticks=labels, title=title, labelOverlap=True, format=form)
        return alt.X(f"{name}:T", scale=scale, axis=drawn)

    return axis


def _title(
    alt: Any, text: str, source: Any, begin: datetime | None, end: datetime | None, more: str | None = None
) -> Any:
    """With what is under it: the span, what is shown, and a short name of the cut, the same for the same cut."""
    parts = []
    if begin is not None and end is not None:
        first, last = (moment.astimezone(UTC) for moment in (begin, end))
        shown = f"%Y-%m-%d {_SHOWN}" if first.date() != last.date() else _SHOWN
        parts.append(f"{first:%Y-%m-%d {_SHOWN}} to {last.strftime(shown)} UTC")
    parts += [] if more is None else [more]
    cut = getattr(source, "cut", None)
    if isinstance(cut, str):
        parts.append(f"cut {hashlib.blake2b(cut.encode(), digest_size=4).hexdigest()}")
    return alt.TitleParams(
        text=text,
        subtitle="  ·  ".join(parts),
        anchor="start",
        fontSize=15,
        subtitleColor="#666666",
        color=INK,
        offset=10,
    )


def _dressed(chart: Any) -> Any:
    return (
        chart.configure_view(stroke=None)
        .configure_axis(gridColor=GRID, domainColor="#999999", tickColor="#999999", labelColor=INK, titleColor=INK)
        .configure_axisY(minExtent=60, titleFontWeight="normal")
        .configure_axisX(titleFontWeight="normal", grid=False)
        .configure(background="white", font="sans-serif", padding=12)
    )


def _width_text(width: timedelta) -> str:
    """A width as the server takes it: 1m, 100ms."""
    us = width // timedelta(microseconds=1)
    for unit, size in (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000)):
        if us >= size and us % size == 0:
            return f"{us // size}{unit}"
    return f"{us}us"


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: times in milliseconds, which are the same in every zone."""
    return {name: _millis(value) if isinstance(value, datetime) else value for name, value in row.items()}


def _millis(moment: datetime) -> float:
    return moment.timestamp() * 1_000
