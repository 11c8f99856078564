"""The path of a frame: from what the venue's session makes of it to a message in the producer's queue, each event once.

Session (what does it mean) -> ledger (is it in the log) -> normaliser and encoder (its bytes) -> producer (into the
queue) -> ledger (now it is taken). Taking comes last, so that whatever fails or is cancelled before it leaves no
identity that is taken and not sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from common import dead_letters
from common.clock import Clock
from common.datasets import (
    DATASETS,
    GAP_EVENTS,
    QUOTES,
    SHED,
    TRADES,
    Dataset,
)
from common.degradation import Level
from common.errors import EncodeError, FeedProtocolError, K2Error
from common.telemetry import get_logger
from ingest.echoes import Echoes
from ingest.gap_watch import GapWatch
from ingest.ledger import Ledger, Take
from ingest.normaliser import DATASET_OF, Normaliser, Record
from ingest.producer import EventProducer, Headers, correlation_headers
from ingest.sampling import Sampler
from ingest.shedding import THINNED, Shedding
from ingest.venues.events import (
    AggTradeEvent,
    BlockTradeEvent,
    BookSnapshotEvent,
    BookTickerEvent,
    DepthEvent,
    Event,
    FurtherEvent,
    IgnoredEvent,
    ServerShutdown,
    TradeEvent,
)
from ingest.venues.session import Session

#: Delivery reports are taken in after so many sends. A poll costs about 1 us when there is none.
_SENDS_PER_POLL: Final = 256
#: How long a full queue is left alone before it is asked again: about what the embedded broker takes for 1,000
#: messages.
_FULL_QUEUE_WAIT_S: Final = 0.003
#: Events that leave no record. Their frames do something for each connection that brings them, so none is an echo.
_NO_RECORD: Final = (ServerShutdown, IgnoredEvent)
#: Trades of the past that are sent in one turn: some 2 ms, for which a frame of the socket may have to wait.
_PAST_TRADES_AT_ONCE: Final = 64


class Intake:
    """On the loop's thread, from `begin` on; what it counts may be read from any."""

    def __init__(
        self,
        session: Session,
        normaliser: Normaliser,
        shedding: Shedding,
        clock: Clock,
        *,
        queue_messages_max: int,
        connections: Callable[[], int],
        rotate: Callable[[str], None],
        received: Callable[[Event | FeedProtocolError], None],
    ) -> None:
        """`connections` are those that bring the same frames; `rotate` moves the one of this correlation id to a new
        one; `received` is told the first event of each read."""
        self._normaliser = normaliser
        self._shedding = shedding
        self._clock = clock
        self._queue_messages_max = queue_messages_max
        self._connections = connections
        self._rotate = rotate
        self._received = received
        self._log = get_logger("ingest")
        self._sampler = Sampler()
        self._correlation_id = ""
        self._headers: Headers = []
        self._sends = 0
        self._producer: EventProducer | None = None
        self._ledger = Ledger()
        self._watch: GapWatch | None = None
        #: Another one when the symbols are others.
        self.session = session
        #: Whether trades that are left out are brought by the backfill.
        self.is_filled = False
        #: Held while something is taken: who holds it sees a whole state.
        self.turn = asyncio.Lock()
        self.echoes = Echoes()
        self.frames = self.ignored = 0
        self.taken = dict.fromkeys(DATASETS, 0)
        self.duplicates = dict.fromkeys((name for name in DATASETS if name not in (GAP_EVENTS.name, SHED.name)), 0)

    def begin(self, producer: EventProducer, ledger: Ledger, watch: GapWatch) -> None:
        """What is taken goes there from now on, and is told there."""
        self._producer, self._ledger, self._watch = producer, ledger, watch

    def belong_to(self, correlation_id: str) -> None:
        """What is sent until the next frame belongs to this."""
        self._headers = correlation_headers(correlation_id)
        self._correlation_id = ""

    async def handle(self, frames: Sequence[bytes], receive_time_us: int, correlation_id: str) -> None:
        """Every frame of one read of the socket, in its order."""
        async with self.turn:
            if correlation_id != self._correlation_id:
                self._correlation_id = correlation_id
                self._headers = correlation_headers(correlation_id)
            two = self._connections() > 1
            fresh = self.echoes.fresh(frames) if two else frames
            self.frames += len(frames) - len(fresh)
            others: list[bytes] = []
            events = self.session.receive_all(fresh, receive_time_us)
            if events:
                self._received(events[0])
            for frame, event in zip(fresh, events, strict=True):
                self.frames += 1
                try:
                    if isinstance(event, FeedProtocolError):
                        raise event
                    while not self._take(event):
                        await self.room()
                    if type(event) in _NO_RECORD:
                        others.append(frame)
                except (FeedProtocolError, EncodeError) as error:
                    others.append(frame)
                    await self._send_dead_letter(frame, receive_time_us, error)
            if two and fresh:
                self.echoes.remember([frame for frame in fresh if frame not in others] if others else fresh)

    def _take(self, event: Event) -> bool:
        """One event into the queue unless the ledger has it; False, and nothing is done, when the queue is full.

        Raises EncodeError, and BrokerError.
        """
        exchange = self.session.exchange
        if self._shedding.level and self._shedding.sheds(event):
            return True
        if type(event) is TradeEvent:
            ids = self._ledger.trade_ids(exchange, event.symbol)
            if event.trade_id in ids:
                self.duplicates[TRADES.name] += 1
                return True
            if self.send(TRADES, event.symbol, self._normaliser.trade(event), event.receive_time_us):
                return ids.take(event.trade_id)
            return self._shed_trade(event)
        if type(event) is BookTickerEvent:
            if not self._ledger.is_new_quote(exchange, event.symbol, event.update_id):
                self.duplicates[QUOTES.name] += 1
                return True
            sent = self.send(QUOTES, event.symbol, self._normaliser.quote(event), event.receive_time_us)
            return sent and self._ledger.take_quote(exchange, event.symbol, event.update_id) is Take.TAKEN
        if isinstance(event, AggTradeEvent | BlockTradeEvent | DepthEvent | BookSnapshotEvent):
            return self._take_further(event)
        self.ignored += 1
        if type(event) is ServerShutdown:
            self._log.warning("the venue announced that this connection ends; moving to a new one")
            self._rotate(self._correlation_id)
        elif type(event) is IgnoredEvent and (count := self._sampler.take(event.what, self._clock.monotonic_s())):
            self._log.info("an event of no use", what=event.what, count=count)
        return True

    def _shed_trade(self, event: TradeEvent) -> bool:
        """A trade for which there is no room: left out, where that is a gap that the backfill fills; else False."""
        if self._shedding.level is not Level.CIRCUIT_BREAK or not self.is_filled:
            return False
        self._shedding.shed_trade(event)
        return True

    def _take_further(self, event: FurtherEvent) -> bool:
        """As `_take`, of the streams that are taken when they are asked for."""
        exchange, symbol, dataset = self.session.exchange, event.symbol, DATASET_OF[type(event)]
        ledger = self._ledger
        if isinstance(event, BookSnapshotEvent):
            known = not ledger.is_above(dataset.name, exchange, symbol, event.update_id)
        else:
            known = event[1] in ledger.ids(dataset.name, exchange, symbol)
        if known:
            self.duplicates[dataset.name] += 1
            return True
        if not self.send(dataset, symbol, self._normaliser.further(event), event.receive_time_us):
            return False
        if isinstance(event, BookSnapshotEvent):
            ledger.take_above(dataset.name, exchange, symbol, event.update_id)
        else:
            first_id = event.first_update_id if isinstance(event, DepthEvent) else event[1]
            ledger.ids(dataset.name, exchange, symbol).take_range(first_id, event[1])
        return True

    async def take_past(self, trades: Sequence[TradeEvent]) -> None:
        """Missing trades into the queue, a few at a time: frames of the socket wait for no more than these, and while
        half of the queue is full only they are taken."""
        for start in range(0, len(trades), _PAST_TRADES_AT_ONCE):
            assert self._producer is not None
            while self._producer.queued > self._queue_messages_max // 2:
                await self.room()
            async with self.turn:
                for event in trades[start : start + _PAST_TRADES_AT_ONCE]:
                    while not self._take_one_past(event):
                        await self.room()
            await asyncio.sleep(0)

    def _take_one_past(self, event: TradeEvent) -> bool:
        """Like `_take`, for a trade that the backfill brought. False when the queue is full."""
        key = (self.session.exchange, event.symbol)
        ids = self._ledger.trade_ids(*key)
        if event.trade_id in ids:
            return True
        record = self._normaliser.trade(event) | {"source": "backfill"}
        if not self.send(TRADES, event.symbol, record, event.receive_time_us):
            return False
        ids.take(event.trade_id)
        assert self._watch is not None
        self._watch.backfilled(key, event.trade_id)
        return True

    def send(self, dataset: Dataset, symbol: str, record: Record, since_us: int) -> bool:
        """Into the queue; False when it is full. Raises EncodeError, and BrokerError."""
        producer = self._producer
        assert producer is not None
        if not producer.send(dataset, symbol, producer.encode(dataset, record), self._headers, since_us):
            return False
        self.taken[dataset.name] += 1
        if self._normaliser.thins and dataset.name in THINNED and self._normaliser.vendor_data:
            self._shedding.thin(dataset.name)
        self._sends += 1
        if self._sends % _SENDS_PER_POLL == 0:
            producer.poll()
        return True

    async def _send_dead_letter(self, frame: bytes, receive_time_us: int, error: K2Error) -> None:
        assert self._producer is not None
        if count := self._sampler.take(f"dead letter: {error.message[:60]}", self._clock.monotonic_s()):
            self._log.warning("a frame goes to the dead letters", reason=error.message, count=count)
        headers = [
            *self._headers,
            (dead_letters.EXCHANGE, self.session.exchange.encode()),
            (dead_letters.RECEIVE_TIME, str(receive_time_us).encode()),
        ]
        while not self._producer.send_dead_letter(self.session.dataset_of_frame(frame), frame, error.message, headers):
            await self.room()

    async def room(self) -> None:
        """Give the broker time to take some of the queue; meanwhile nothing else is handled, and the socket not read.

        Raises BrokerError when it refused.
        """
        assert self._producer is not None
        self._producer.poll()
        await asyncio.sleep(_FULL_QUEUE_WAIT_S)

    async def flushed(self, timeout_s: float) -> bool:
        """True once nothing is queued. Raises BrokerError when a delivery failed."""
        assert self._producer is not None
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._producer.poll()
            if not self._producer.queued:
                return True
            if time.monotonic() >= deadline_s:
                return False
            await asyncio.sleep(_FULL_QUEUE_WAIT_S)
