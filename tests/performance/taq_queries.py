"""What is asked of trades and quotes, as SQL for K2 and DuckDB and as an expression for polars.

The questions are those of public trade-and-quote benchmarks. Where all quotes or trades take part the answer
is summed up, so that it is the work that is measured and not the way of the rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import polars as pl

#: Of trades and quotes.
Ask = Callable[[pl.LazyFrame, pl.LazyFrame], pl.LazyFrame]


@dataclass(frozen=True)
class Market:
    """What is there to be asked: the symbols, one with few rows and the one with most, a stretch of time in which the
    first has quotes, and how long after their trades moves are looked at of those before `last_trade`, behind which
    there are quotes for as long."""

    symbols: tuple[str, ...]
    quiet: str
    busy: str
    stretch: tuple[datetime, datetime]
    last_trade: datetime
    horizons_s: tuple[int, ...] = (1, 5, 60)


@dataclass(frozen=True)
class Query:
    """`k2` is what K2 is asked where it has a function for it; it must answer the same."""

    name: str
    sql: str
    polars: Ask
    k2: str = ""


def _last_trade(trades: pl.LazyFrame, quotes: pl.LazyFrame) -> pl.LazyFrame:
    return trades.group_by("symbol").agg(
        pl.col("event_time").max().alias("traded"),
        pl.col("price").sort_by("event_time", "trade_id").last(),
    )


def _ohlcv(symbol: str | None) -> Ask:
    def ask(trades: pl.LazyFrame, quotes: pl.LazyFrame) -> pl.LazyFrame:
        rows = trades if symbol is None else trades.filter(pl.col("symbol") == symbol)
        ordered = pl.col("price").sort_by("event_time", "trade_id")
        return rows.group_by("symbol", pl.col("event_time").dt.truncate("1m").alias("minute")).agg(
            ordered.first().alias("open"),
            pl.col("price").max().alias("high"),
            pl.col("price").min().alias("low"),
            ordered.last().alias("close"),
            pl.col("quantity").sum().alias("volume"),
            pl.len().alias("trades"),
        )

    return ask


def _vwap(trades: pl.LazyFrame, quotes: pl.LazyFrame) -> pl.LazyFrame:
    quantity = pl.col("quantity").cast(pl.Float64)
    return trades.group_by("symbol").agg(
        ((pl.col("price").cast(pl.Float64) * quantity).sum() / quantity.sum()).alias("vwap")
    )


def _spread(trades: pl.LazyFrame, quotes: pl.LazyFrame) -> pl.LazyFrame:
    spread = pl.col("ask_price") - pl.col("bid_price")
    return quotes.group_by("symbol").agg(
        pl.len().alias("quotes"),
        spread.min().alias("low"),
        spread.max().alias("high"),
        (spread.sum().cast(pl.Float64) / pl.len()).alias("mean"),
    )


def _stretch(market: Market) -> Ask:
    def ask(trades: pl.LazyFrame, quotes: pl.LazyFrame) -> pl.LazyFrame:
        inside = pl.col("receive_time").is_between(*market.stretch, closed="left")
        return quotes.filter((pl.col("symbol") == market.quiet) & inside).select(
            "symbol", "receive_time", "bid_price", "ask_price"
        )

    return ask


def _asof(trades: pl.LazyFrame, quotes: pl.LazyFrame) -> pl.LazyFrame:
    left = trades.select("symbol", "receive_time").sort("symbol", "receive_time")
    right = quotes.select("symbol", "receive_time", "quote_id", "bid_price", "ask_price").sort(
        "symbol", "receive_time", "quote_id"
    )
    joined = left.join_asof(right, on="receive_time", by="symbol", strategy="backward", check_sortedness=False)
    return joined.group_by("symbol").agg(
        pl.len().alias("trades"),
        pl.col("bid_price").count().alias("matched"),
        pl.col("bid_price").sum().alias("bids"),
        pl.col("ask_price").sum().alias("asks"),
    )


def _around(busy: str, trades: pl.LazyFrame, quotes: pl.LazyFrame) -> pl.LazyFrame:
    """How many quotes lie within a second, by their numbers: polars has no join for it."""
    right = (
        quotes.filter(pl.col("symbol") == busy)
        .sort("receive_time", "quote_id")
        .select("receive_time", pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("number"))
    )
    left = trades.filter(pl.col("symbol") == busy).select(
        (pl.col("receive_time") - pl.duration(seconds=1)).alias("low"),
        (pl.col("receive_time") + pl.duration(seconds=1)).alias("high"),
    )
    joined = (
        left.sort("high")
        .join_asof(right, left_on="high", right_on="receive_time", strategy="backward")
        .sort("low")
        .join_asof(
            right, left_on="low", right_on="receive_time", strategy="backward", allow_exact_matches=False, suffix="_low"
        )
    )
    counted = pl.col("number").fill_null(0) - pl.col("number_low").fill_null(0)
    return joined.select(pl.len().alias("trades"), counted.sum().alias("quotes"))


def _markouts(market: Market, trades: pl.LazyFrame, quotes: pl.LazyFrame) -> pl.LazyFrame:
    right = (
        quotes.filter(pl.col("symbol") == market.busy)
        .sort("receive_time", "quote_id")
        .select("receive_time", (pl.col("bid_price") + pl.col("ask_price")).alias("double_middle"))
    )
    some = trades.filter((pl.col("symbol") == market.busy) & (pl.col("event_time") < market.last_trade))
    left = some.select("receive_time", "side").sort("receive_time")
    there = left.join_asof(right, on="receive_time", strategy="backward").rename({"double_middle": "before"})
    parts = [
        there.select(
            pl.lit(seconds, pl.Int64).alias("seconds"),
            "side",
            "before",
            (pl.col("receive_time") + pl.duration(seconds=seconds)).alias("later"),
        ).join_asof(right, left_on="later", right_on="receive_time", strategy="backward")
        for seconds in market.horizons_s
    ]
    moved = pl.col("double_middle") - pl.col("before")
    return (
        pl.concat(parts)
        .group_by("seconds", "side")
        .agg(moved.count().alias("trades"), moved.sum().alias("double_moves"))
    )


def _top_symbols(trades: pl.LazyFrame, quotes: pl.LazyFrame) -> pl.LazyFrame:
    return trades.group_by("symbol").agg(pl.col("quantity").sum().alias("volume")).top_k(10, by="volume")


def _top_trades(trades: pl.LazyFrame, quotes: pl.LazyFrame) -> pl.LazyFrame:
    return (
        trades.select("symbol", "trade_id", "price", "quantity")
        .sort("quantity", "symbol", "trade_id", descending=[True, False, False])
        .head(10)
    )


def _first_and_last(trades: pl.LazyFrame, quotes: pl.LazyFrame) -> pl.LazyFrame:
    ordered = pl.col("price").sort_by("event_time", "trade_id")
    return trades.group_by("symbol").agg(ordered.first().alias("opened"), ordered.last().alias("closed"))


def _volatility(trades: pl.LazyFrame, quotes: pl.LazyFrame) -> pl.LazyFrame:
    closes = (
        trades.group_by("symbol", pl.col("event_time").dt.truncate("1m").alias("minute"))
        .agg(pl.col("price").sort_by("event_time", "trade_id").last().cast(pl.Float64).log().alias("close"))
        .sort("symbol", "minute")
    )
    moved = closes.select("symbol", pl.col("close").diff().over("symbol").alias("moved"))
    return moved.group_by("symbol").agg((pl.col("moved") ** 2).sum().sqrt().alias("volatility"))


def _imbalance(trades: pl.LazyFrame, quotes: pl.LazyFrame) -> pl.LazyFrame:
    signed = pl.when(pl.col("side") == "BUY").then(pl.col("quantity")).otherwise(-pl.col("quantity"))
    return trades.group_by("symbol", pl.col("event_time").dt.truncate("1h").alias("hour")).agg(
        signed.sum().alias("imbalance"), pl.len().alias("trades")
    )


_BARS = (
    "SELECT symbol, date_trunc('minute', event_time) AS minute, arg_min(price, (event_time, trade_id)) AS open, "
    "max(price) AS high, min(price) AS low, arg_max(price, (event_time, trade_id)) AS close, sum(quantity) AS volume, "
    "count(*) AS trades FROM {trades} %s GROUP BY ALL"
)
_QUOTE_KEY = "(receive_time, quote_id)"
_LAST_ID = "9223372036854775807"


def queries(market: Market) -> tuple[Query, ...]:
    """All that is asked of this market."""
    quiet, busy, last = market.quiet, market.busy, market.last_trade.isoformat()
    begin, end = (moment.isoformat() for moment in market.stretch)
    horizons = ", ".join(f"({seconds})" for seconds in market.horizons_s)
    lengths = ", ".join(f"'{seconds}s'" for seconds in market.horizons_s)
    return (
        Query(
            "last trade of each symbol",
            "SELECT symbol, max(event_time) AS traded, arg_max(price, (event_time, trade_id)) AS price "
            "FROM {trades} GROUP BY symbol",
            _last_trade,
        ),
        Query("ohlcv by minute, one symbol", _BARS % f"WHERE symbol = '{quiet}'", _ohlcv(quiet)),
        Query("ohlcv by minute, all symbols", _BARS % "", _ohlcv(None)),
        Query(
            "vwap by symbol",
            "SELECT symbol, sum(price::DOUBLE * quantity::DOUBLE) / sum(quantity::DOUBLE) AS vwap "
            "FROM {trades} GROUP BY symbol",
            _vwap,
        ),
        Query(
            "spread by symbol",
            "SELECT symbol, count(*) AS quotes, min(ask_price - bid_price) AS low, max(ask_price - bid_price) AS high, "
            "sum(ask_price - bid_price)::DOUBLE / count(*) AS mean FROM {quotes} GROUP BY symbol",
            _spread,
        ),
        Query(
            "quotes of one symbol in one stretch of time",
            "SELECT symbol, receive_time, bid_price, ask_price FROM {quotes} "
            f"WHERE symbol = '{quiet}' AND receive_time >= '{begin}' AND receive_time < '{end}'",
            _stretch(market),
        ),
        Query(
            "asof, trades with their quotes, all symbols",
            "SELECT symbol, count(*) AS trades, count(bid_price) AS matched, sum(bid_price) AS bids, "
            "sum(ask_price) AS asks "
            f"FROM (SELECT symbol, (receive_time, {_LAST_ID}) AS key FROM {{trades}}) ASOF LEFT JOIN "
            f"(SELECT symbol AS quoted, {_QUOTE_KEY} AS quote_key, bid_price, ask_price FROM {{quotes}}) "
            "ON symbol = quoted AND key >= quote_key GROUP BY symbol",
            _asof,
            "SELECT symbol, count(*) AS trades, count(bid_price) AS matched, sum(bid_price) AS bids, "
            "sum(ask_price) AS asks "
            f"FROM asof_quotes([{', '.join(map(repr, market.symbols))}], tolerance := '1d') "
            "GROUP BY symbol",
        ),
        Query(
            "quotes within a second of each trade, busiest symbol",
            "WITH t AS (SELECT trade_id, receive_time AS traded, unnest([epoch_us(receive_time) // 1000000 - 1, "
            "epoch_us(receive_time) // 1000000, epoch_us(receive_time) // 1000000 + 1]) AS second FROM {trades} "
            f"WHERE symbol = '{busy}'), "
            "q AS (SELECT receive_time, epoch_us(receive_time) // 1000000 AS second "
            f"FROM {{quotes}} WHERE symbol = '{busy}'), "
            "joined AS (SELECT count(*) AS quotes FROM t JOIN q USING (second) "
            "WHERE receive_time BETWEEN traded - INTERVAL 1 SECOND AND traded + INTERVAL 1 SECOND) "
            f"SELECT (SELECT count(*) FROM {{trades}} WHERE symbol = '{busy}') AS trades, quotes FROM joined",
            functools.partial(_around, busy),
            f"SELECT count(*) AS trades, sum(quote_count)::BIGINT AS quotes FROM window_quotes('{busy}')",
        ),
        Query(
            "markouts at three horizons, busiest symbol",
            f"WITH q AS MATERIALIZED (SELECT {_QUOTE_KEY} AS quote_key, bid_price + ask_price AS middle "
            f"FROM {{quotes}} "
            f"WHERE symbol = '{busy}'), "
            f"t AS (SELECT receive_time, side, middle AS before FROM "
            f"(SELECT receive_time, side, (receive_time, {_LAST_ID}) AS key FROM {{trades}} WHERE symbol = '{busy}' "
            f"AND event_time < '{last}') "
            "ASOF LEFT JOIN q ON key >= quote_key), "
            f"later AS (SELECT seconds, side, before, (receive_time + to_seconds(seconds), {_LAST_ID}) AS key "
            f"FROM t, (VALUES {horizons}) horizons(seconds)) "
            "SELECT seconds, side, count(middle - before) AS trades, sum(middle - before) AS double_moves "
            "FROM later ASOF LEFT JOIN q ON key >= quote_key GROUP BY ALL",
            functools.partial(_markouts, market),
            "SELECT horizon_us // 1000000 AS seconds, side, count(mid_move) AS trades, "
            "2 * sum(CASE side WHEN 'BUY' THEN mid_move ELSE -mid_move END) AS double_moves "
            f"FROM markouts('{busy}', NULL, '{last}', [{lengths}], tolerance := '1d') GROUP BY ALL",
        ),
        Query(
            "ten symbols of most volume",
            "SELECT symbol, sum(quantity) AS volume FROM {trades} GROUP BY symbol ORDER BY volume DESC LIMIT 10",
            _top_symbols,
        ),
        Query(
            "ten largest trades",
            "SELECT symbol, trade_id, price, quantity FROM {trades} ORDER BY quantity DESC, symbol, trade_id LIMIT 10",
            _top_trades,
        ),
        Query(
            "first and last price of each symbol",
            "SELECT symbol, arg_min(price, (event_time, trade_id)) AS opened, "
            "arg_max(price, (event_time, trade_id)) AS closed "
            "FROM {trades} GROUP BY symbol",
            _first_and_last,
        ),
        Query(
            "realized volatility of minutes by symbol",
            "WITH closes AS (SELECT symbol, date_trunc('minute', event_time) AS minute, "
            "ln(arg_max(price, (event_time, trade_id))::DOUBLE) AS close FROM {trades} GROUP BY ALL), "
            "moves AS (SELECT symbol, close - lag(close) OVER (PARTITION BY symbol ORDER BY minute) AS moved "
            "FROM closes) "
            "SELECT symbol, sqrt(sum(moved ** 2)) AS volatility FROM moves GROUP BY symbol",
            _volatility,
        ),
        Query(
            "buyers less sellers by hour and symbol",
            "SELECT symbol, date_trunc('hour', event_time) AS hour, "
            "sum(CASE WHEN side = 'BUY' THEN quantity ELSE -quantity END) AS imbalance, count(*) AS trades "
            "FROM {trades} GROUP BY ALL",
            _imbalance,
        ),
    )
