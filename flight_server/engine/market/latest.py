"""latest_on and top_trades: the last trade and quote of each symbol, and the largest trades. Pure."""

from __future__ import annotations

from flight_server.engine.market.arguments import Call, Integer, Taken, Word
from flight_server.engine.market.functions import MarketFunction, asked, of_market, trades_of
from flight_server.engine.market.joins import DOUBLE_MID, middle

COUNT = Taken("count", Integer(1_000_000), "how many trades", 10)
BY = Taken("measure", Word(("quantity", "notional", "price")), "what a trade is measured by", "quantity", also=("by",))
_KEYS = "exchange, symbol"


def latest_on(call: Call) -> str:
    """A row for each exchange that traded the symbol, in the order of exchange and symbol."""
    trade = "trade_id, event_time, side, price, quantity"
    quote = "quote_id, receive_time AS quote_time, bid_price, bid_quantity, ask_price, ask_quantity"
    trades = trades_of(call, f"{_KEYS}, {trade}")
    quotes = f"SELECT {_KEYS}, {quote} FROM {call.relation('quotes')} WHERE {asked(call, 'receive_time')}"
    names = trade.replace("event_time", "trade_time"), quote.replace("receive_time AS ", "")
    return (
        f"SELECT {_KEYS}, {names[0]}, {names[1]}, {middle(DOUBLE_MID)} AS mid FROM "
        f"({_last(trades, 'event_time, trade_id', trade.replace('event_time', 'event_time AS trade_time'))}) "
        f"LEFT JOIN ({_last(quotes, 'quote_time, quote_id', names[1])}) USING ({_KEYS}) ORDER BY {_KEYS}"
    )


def _last(rows: str, order: str, columns: str) -> str:
    """The last row of each exchange and symbol."""
    return (
        f"SELECT {_KEYS}, unnest(last_row) FROM (SELECT {_KEYS}, max_by(row_, ({order})) AS last_row FROM "
        f"(SELECT {_KEYS}, {order}, {_packed(columns)} AS row_ FROM ({rows})) GROUP BY {_KEYS})"
    )


def _packed(columns: str) -> str:
    pairs = (column.split(" AS ") for column in columns.split(", "))
    return f"struct_pack({', '.join(f'{pair[-1]} := {pair[0]}' for pair in pairs)})"


def top_trades(call: Call) -> str:
    """The largest first; of equal ones in the order of exchange, symbol, time and id."""
    rows = trades_of(
        call,
        f"{_KEYS}, trade_id, event_time, side, price, quantity, "
        "CAST(TRY(price * quantity) AS DECIMAL(38,16)) AS notional",
    )
    order = f"{call['measure']} DESC NULLS LAST, {_KEYS}, event_time, trade_id"
    return (
        f"SELECT row_number() OVER (ORDER BY {order}) AS rank, * FROM ({rows} ORDER BY {order} LIMIT {call['count']}) "
        "ORDER BY rank"
    )


LATEST_ON = MarketFunction(
    name="latest_on",
    takes=of_market(),
    returns="exchange VARCHAR, symbol VARCHAR, trade_id BIGINT, trade_time TIMESTAMP WITH TIME ZONE, side VARCHAR, "
    "price DECIMAL(18,8), quantity DECIMAL(28,8), quote_id BIGINT, quote_time TIMESTAMP WITH TIME ZONE, "
    "bid_price DECIMAL(18,8), bid_quantity DECIMAL(28,8), ask_price DECIMAL(18,8), ask_quantity DECIMAL(28,8), "
    "mid DECIMAL(19,9)",
    help="The last trade of each symbol by (event_time, trade_id), and its last quote by (receive_time, quote_id). A "
    "from_time keeps it from reading all that there is.",
    example="SELECT * FROM latest_on(['BTCUSDT'], '2024-08-08')",
    select=latest_on,
)
TOP_TRADES = MarketFunction(
    name="top_trades",
    takes=of_market(COUNT, BY),
    returns="rank BIGINT, exchange VARCHAR, symbol VARCHAR, trade_id BIGINT, event_time TIMESTAMP WITH TIME ZONE, "
    "side VARCHAR, price DECIMAL(18,8), quantity DECIMAL(28,8), notional DECIMAL(38,16)",
    help="The largest trades of all the symbols together. A notional of 10^22 or more is NULL, and last.",
    example="SELECT * FROM top_trades('BTCUSDT', '2024-08-08', count := 5, measure := 'notional')",
    select=top_trades,
)
