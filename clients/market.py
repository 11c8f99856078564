"""K2 as a quant has it in Python: trades, quotes and bars of a symbol, SQL, and any of it at an earlier instant.

    k2 = clients.K2("grpc://127.0.0.1:50051")
    day = k2.trades("BTCUSDT", "2026-11-24", "2026-11-25", columns=["event_time", "price", "quantity"]).polars()
    then = k2.now()                          # the same K2, standing still
    then.bars("BTCUSDT", interval="1m").pandas()

Guarantee: each result has the rows of one cut, once each, whatever happens to the connection meanwhile (clients/link.py
says how). What it raises is a ClientError: one sentence. May be used from several threads, which take turns.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from clients.closing import Closing
from clients.connection import Parameters, connect
from clients.errors import ClientError
from clients.link import Batches, Link
from clients.moments import Moment, instant_text
from clients.results import Result
from clients.statements import Query, Symbols, call_of, literal, rows_of
from clients.subscription import Access, AsyncSubscription, Subscription


class K2(Closing):
    """A K2 server, live or at one instant. Close it, or use it as a context manager.

    Times are datetimes with a zone, dates, ISO text or numpy's and pandas' (clients/moments.py); a span is
    start <= time < end, None for no bound.
    """

    def __init__(
        self,
        uri: str,
        *,
        username: str | None = None,
        password: str | None = None,
        token: str | None = None,
        ca_file: Path | None = None,
        headers: Mapping[str, str] | None = None,
        connect_timeout_s: float = 5.0,
        options: Mapping[str, str] | None = None,
        resume_s_max: float = 60.0,
    ) -> None:
        """Connects at once; the arguments are those of `clients.connect`. Raises ConnectError.

        `resume_s_max` bounds each time how long a server that was lost is tried again.
        """
        self.uri = uri
        self._access = Access(uri, username, password, token, ca_file, headers or {}, options or {})
        self._cut: str | None = None
        self._resume_s_max = resume_s_max

        connection = functools.partial(
            connect,
            uri,
            username=username,
            password=password,
            token=token,
            ca_file=ca_file,
            headers=headers,
            connect_timeout_s=connect_timeout_s,
            options=options,
        )
        self._link = Link(connection, resume_s_max=resume_s_max)

    @property
    def cut(self) -> str | None:
        """The instant that everything here is read at; None: each statement reads what is there when it begins."""
        return self._cut

    @property
    def reconnects(self) -> int:
        """How often the connection was lost and had back."""
        return self._link.reconnects

    def sql(self, query: str, parameters: Parameters | None = None) -> Result:
        """The whole result of a statement; `parameters` fill its `?` in order. Raises QueryError.

        A statement that only reads is run again, at the same cut, when the connection is lost. A change is run once.
        SET, USE, transactions and prepared statements are refused: they are for `clients.connect`.
        """
        return self._link.read(query, parameters, self._cut)

    def stream(self, query: str, parameters: Parameters | None = None) -> Batches:
        """The result batch by batch, on a connection of its own; memory does not grow with it. Raises QueryError.

        After a lost connection it goes on where it was, each row once, provided that the rows come in the same order
        again: let the query end in an ORDER BY in which no two rows are equal. Otherwise it ends with an error then.
        """
        return self._link.stream(query, parameters, self._cut)

    def trades(
        self,
        symbol: Symbols,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        columns: Sequence[str] | None = None,
        exchange: str | None = None,
    ) -> Result:
        """The trades of one or several symbols by their `event_time`, in the order of (event_time, trade_id).

        Raises ClientError, also for a symbol of which there never was a trade.
        """
        query = rows_of("trades", "event_time", "trade_id", symbol, start, end, columns=columns, exchange=exchange)
        return self._known("trades", symbol, self._run(query))

    def quotes(
        self,
        symbol: Symbols,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        columns: Sequence[str] | None = None,
        exchange: str | None = None,
    ) -> Result:
        """The best bids and asks of one or several symbols by their `receive_time`, in the order of (receive_time,
        quote_id). Not every venue tells when it published a quote; when K2 received it is always known.

        Raises ClientError, also for a symbol of which there never was a quote.
        """
        query = rows_of("quotes", "receive_time", "quote_id", symbol, start, end, columns=columns, exchange=exchange)
        return self._known("quotes", symbol, self._run(query))

    def bars(
        self,
        symbol: Symbols,
        start: Moment | None = None,
        end: Moment | None = None,
        interval: str = "1m",
        *,
        fill: str = "none",
        calendar: str = "24/7",
        exchange: str | None = None,
    ) -> Result:
        """Bars of the trades in [start, end), by exchange and symbol in the order of time: the server's `ohlcv`.

        `interval` is 100ms, 5m, 1h, 1 month and the like; `fill` what stands for an interval without trades: none,
        null, previous or linear; `calendar` whose sessions have bars: 24/7 or ASX (docs/sql.md). Raises ClientError.
        """
        options = {"every": interval, "fill": fill, "calendar": calendar, "exchange": exchange}
        return self._run(call_of("ohlcv", symbol, start, end, **options))

    def asof(
        self,
        symbol: Symbols,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        tolerance: str | None = None,
        ties: str | None = None,
        clock: str | None = None,
        exchange: str | None = None,
    ) -> Result:
        """Each trade in [start, end) with the quote that stood at it, and how old that was: the server's `asof_quotes`.

        A quote older than `tolerance` (such as 10s) is NULL; `ties` says which of equal times was first, quote or
        trade; `clock` by which both meet, receive or event (docs/sql.md). None: as the server has it. Raises
        ClientError.
        """
        options = {"tolerance": tolerance, "ties": ties, "clock": clock, "exchange": exchange}
        return self._run(call_of("asof_quotes", symbol, start, end, **options))

    def markouts(
        self,
        symbol: Symbols,
        start: Moment | None = None,
        end: Moment | None = None,
        horizons: Sequence[str] = ("1s", "5s", "60s"),
        *,
        tolerance: str | None = None,
        exchange: str | None = None,
    ) -> Result:
        """For each trade in [start, end) and each horizon the mid then and so much later: the server's `markouts`.

        Raises ClientError.
        """
        if isinstance(horizons, str):
            raise ClientError(f"horizons is a list, such as ['{horizons}']", code="INVALID_ARGUMENT")
        options = {"horizons": horizons, "tolerance": tolerance, "exchange": exchange}
        return self._run(call_of("markouts", symbol, start, end, **options))

    def functions(self) -> Result:
        """The functions of the market that SQL has here, each with its arguments, its help and an example."""
        return self.sql("SELECT * FROM k2_functions()")

    def snapshots(self, table: str = "trades") -> Result:
        """Each commit of a table of market, the newest last: its snapshot's id, its times, and the cut to read it at.

        Raises QueryError for a table that there is not.
        """
        return self.sql(f"SELECT * FROM k2_snapshots({literal(table)}) ORDER BY committed_at")

    def subscribe(self, query: str, start: str | None = None, *, with_empty: bool = False) -> Subscription:
        """The rows of `query` and then each one that arrives, once, without an end: see `Connection.subscribe`.

        `start` is the cut to go on from, or "now"; None: all rows, or at an instant those that came after it.
        Raises QueryError.
        """
        return Subscription(
            self._access, query, start or self._cut, resume_s_max=self._resume_s_max, with_empty=with_empty
        )

    def asubscribe(self, query: str, start: str | None = None, *, with_empty: bool = False) -> AsyncSubscription:
        """As `subscribe`, for `async for`. Errors come when it is entered, or with the first row."""
        return AsyncSubscription(
            self._access, query, start or self._cut, resume_s_max=self._resume_s_max, with_empty=with_empty
        )

    def at(self, instant: str | int | Moment) -> K2:
        """The same K2 as it was: at a result's cut, in the snapshot of that id, or at a time. Shares the connection.

        A cut and a snapshot say something only of the tables that they are of, and no other one can be read there. Of a
        time, what was committed then is shown, of every table. The cut that it means is looked up once, here, so that
        all that is read is of one instant. Raises ClientError for what is no instant, and for one that cannot be read
        any more.
        """
        if isinstance(instant, str) and instant.lstrip().startswith("{"):
            return self._view(instant)
        if isinstance(instant, int) or (isinstance(instant, str) and _SNAPSHOT_ID.fullmatch(instant.strip())):
            return self._view(self._cut_of_snapshot(int(instant)))
        tables = ", ".join(json.loads(self._cut_now()))
        found = self._link.read(f"SELECT 1 FROM {tables} WHERE false", None, instant_text(instant, "the instant"))
        return self._view(_known_cut(found.cut))

    def now(self) -> K2:
        """The same K2 standing still at this moment: all that is read is of one cut. Shares the connection."""
        return self if self._cut is not None else self._view(self._cut_now())

    def cancel(self) -> None:
        """End what is being read, from another thread: who reads it gets a QueryError, CANCELLED. Raises QueryError."""
        self._link.cancel()

    def close(self) -> None:
        """End the connection, for every view of it too; subscriptions have their own. May be called again."""
        self._link.close()

    def __repr__(self) -> str:
        return f"K2({self.uri!r})" if self._cut is None else f"K2({self.uri!r}).at({self._cut!r})"

    def _view(self, cut: str) -> K2:
        view = K2.__new__(K2)
        view.__dict__.update(self.__dict__, _cut=cut)
        return view

    def _cut_now(self) -> str:
        """The cut of all tables."""
        return _known_cut(self._link.read("SELECT k2_cut()", None, None).cut)

    def _cut_of_snapshot(self, snapshot_id: int) -> str:
        found = self._link.read("SELECT cut FROM ops.commits WHERE snapshot_id = ?", (snapshot_id,), None).rows()
        if not found or found[-1]["cut"] is None:
            raise ClientError(
                f"there is no snapshot {snapshot_id} that can be read; k2.snapshots() lists those of a table",
                code="NOT_FOUND",
            )
        return str(found[-1]["cut"])

    def _run(self, query: Query) -> Result:
        return self.sql(query.sql, query.parameters)

    def _known(self, table: str, symbol: Symbols, found: Result) -> Result:
        """The result. Raises ClientError where it has no rows because there is no such symbol."""
        if len(found):
            return found
        there = [row["symbol"] for row in self.sql(f"SELECT DISTINCT symbol FROM market.{table} ORDER BY 1").rows()]
        wanted = [symbol] if isinstance(symbol, str) else symbol
        unknown = [name for name in wanted if name not in there]
        if unknown and there:
            shown = ", ".join(there[:_SYMBOLS_SHOWN_MAX]) + (", ..." if len(there) > _SYMBOLS_SHOWN_MAX else "")
            raise ClientError(
                f"market.{table} has nothing of {', '.join(unknown)}; its symbols are {shown}", code="NOT_FOUND"
            )
        return found


_SYMBOLS_SHOWN_MAX = 20
#: Digits of that number could be a date.
_SNAPSHOT_ID = re.compile(r"[0-9]{9,19}")


def _known_cut(cut: str | None) -> str:
    if cut is None:
        raise ClientError("this server does not say at which cut it reads; is it K2?", code="UNIMPLEMENTED")
    return cut
