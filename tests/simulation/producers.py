"""What is written in a world, and what becomes of the log: topics, transactions, retention, a broker that is away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from common.codec import Encoder
from common.datasets import GAP_EVENTS, QUOTES, SHED, TRADES, Dataset
from common.log import TopicInfo
from common.offsets import KafkaPartition
from common.registry import EmbeddedRegistry
from tests.simulation.truth import gap_of
from tests.support.records import EPOCH, quote, trade
from tests.support.versions import ADDED, trade_2_1

if TYPE_CHECKING:
    from tests.simulation.world import World

TOPICS: dict[str, Dataset] = {
    "market.crypto.trades.binance": TRADES,
    "market.crypto.quotes.binance": QUOTES,
    "market.crypto.trades.kraken": TRADES,
    "ops.crypto.gap_events.binance": GAP_EVENTS,
    "ops.crypto.shed.binance": SHED,
}
NAMES = tuple(TOPICS)
#: How often each of them is drawn: mostly trades and quotes.
_DRAWN = (*NAMES[:3], NAMES[3], *NAMES[:3], NAMES[0], NAMES[2], NAMES[4])
PARTITIONS, PARTITIONS_MAX = 2, 4
REGISTRY = EmbeddedRegistry()
ENCODERS = {name: Encoder(dataset, REGISTRY, topic=name) for name, dataset in TOPICS.items()}
#: Trades of a later release of K2, with a column more; and of a schema that nobody can fill the table from.
LATER = Encoder(TRADES, REGISTRY, topic=NAMES[0], schema_text=trade_2_1())
UNREADABLE = Encoder(TRADES, REGISTRY, topic="elsewhere", schema_text=trade_2_1(name="Price", **{"field-id": 41}))
_TRANSACTIONS = ("k2-ingest-binance", "k2-ingest-kraken")
_STATES = ("open", "partly_filled", "filled", "lost")


@dataclass(frozen=True)
class _Sent:
    """A record of a transaction that is open: what it will be once that is committed."""

    topic: str
    source: KafkaPartition
    offset: int
    number: int
    value: bytes | None
    is_broken: bool


class Producers:
    """`number` picks among what there is."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._later_release = False
        self._open: dict[str, list[_Sent]] = {name: [] for name in _TRANSACTIONS}
        for topic in NAMES:
            if not TOPICS[topic].optional:
                world.log.create(topic, PARTITIONS)

    # -- actions

    def produce(self, number: int) -> None:
        """Some records to one partition; about one in sixteen is broken. A topic that is gone is made anew."""
        for sent in self._send(number, None):
            self._count(sent)

    def transact(self, number: int) -> None:
        """The same in a transaction of one of two producers, which stays open: nobody sees what it wrote, nor anything
        behind it, whoever wrote that."""
        name = _TRANSACTIONS[number % 2]
        self._open[name] += self._send(number // 2, name)

    def end_transaction(self, number: int) -> None:
        """Committed, or aborted: by its producer, by the broker after a time, or by a successor, which fences it. Some
        brokers commit then what a fenced producer had sent: that is a commit too."""
        name = _TRANSACTIONS[number % 2]
        commit = number // 2 % 3 != 0
        sent, self._open[name] = self._open[name], []
        self._world.log.end_transaction(name, commit=commit)
        self._world.counts.transactions += commit and bool(sent)
        self._world.counts.aborted += not commit and bool(sent)
        for one in sent if commit else ():
            self._count(one)

    def later_release(self, number: int) -> None:
        """Some of those that write trades become a release that knows a field more, or go back to the one before."""
        self._later_release = number % 4 != 0

    def hole(self, number: int) -> None:
        """Offsets without records: a marker, an aborted transaction, or what the broker's compaction took."""
        if (info := self._topic(number)) is not None:
            self._world.log.hole(info.topic, number // len(NAMES) % info.partitions, 1 + number % 3)

    def grow_topic(self, number: int) -> None:
        info = self._topic(number)
        if info is not None and info.partitions < PARTITIONS_MAX:
            self._world.log.grow(info.topic, info.partitions + 1)

    def recreate_topic(self, number: int) -> None:
        if (info := self._topic(number)) is not None:
            self._forget(info)
            self._world.log.create(info.topic, PARTITIONS)

    def delete_topic(self, number: int) -> None:
        if (info := self._topic(number)) is not None:
            self._forget(info)
            self._world.log.delete(info.topic)

    def retention(self, number: int) -> None:
        """The broker forgets records that the table has; one time in four some that it does not have yet."""
        info = self._topic(number)
        if info is None:
            return
        log = self._world.log
        partition = KafkaPartition(log.cluster_id, info.topic_id, number // len(NAMES) % info.partitions)
        committed = self._world.tables.holds(TOPICS[info.topic]).get(partition)
        if committed is None:  # where a table begins behind a log's first records is told by the sink's own tests
            return
        ahead = number % 4 == 0
        end = log.end_offsets()[partition]
        start = log.start_offsets()[partition]
        until = min(end, committed + (1 + number % 5 if ahead else 0))
        if until > start:
            log.truncate(info.topic, until, partition.partition)

    def broker(self, number: int) -> None:
        """It does not answer for a while."""
        self._world.log.down = number % 3 == 0

    def settle(self) -> None:
        """The broker is there, and no transaction is open."""
        self._world.log.down = False
        for number in range(len(_TRANSACTIONS)):
            self.end_transaction(2 + number)

    # -- inside

    def _topic(self, number: int) -> TopicInfo | None:
        return self._world.log.topics.get(NAMES[number % len(NAMES)])

    def _send(self, number: int, transaction: str | None) -> list[_Sent]:
        log, truth = self._world.log, self._world.truth
        topic = _DRAWN[number % len(_DRAWN)]
        if topic not in log.topics:
            log.create(topic, PARTITIONS)
        info = log.topics[topic]
        partition = number // len(_DRAWN) % info.partitions
        source = KafkaPartition(log.cluster_id, info.topic_id, partition)
        sent = []
        for index in range(1 + number % 7):
            value = self._value(topic, truth.next_number)
            is_broken = (number + index) % 16 == 0
            if is_broken:
                value = _BREAKS[number % len(_BREAKS)](value, truth.next_number)
            offset = log.append(topic, value, partition, transaction=transaction)
            sent.append(_Sent(topic, source, offset, truth.next_number, value, is_broken))
            truth.next_number += 1
        return sent

    def _value(self, topic: str, number: int) -> bytes:
        dataset, exchange = TOPICS[topic], topic.rpartition(".")[2]
        if dataset is not TRADES:
            return ENCODERS[topic].encode(_RECORDS[dataset.name](number))
        record = trade_of(number, exchange)
        self._world.truth.trades[number] = record
        if not self._later_release or number % 2:
            return ENCODERS[topic].encode(record)
        self._world.truth.added[number] = f"b{number}"
        return LATER.encode(record | {ADDED: f"b{number}"})

    def _count(self, sent: _Sent) -> None:
        """From now on readers see it."""
        truth = self._world.truth
        if sent.is_broken:
            truth.broken[sent.topic, sent.source, sent.offset] = sent.value
        else:
            truth.records[TOPICS[sent.topic].name].setdefault(sent.source, {})[sent.offset] = sent.number

    def _forget(self, info: TopicInfo) -> None:
        """What open transactions wrote to a topic goes with it."""
        for name, sent in self._open.items():
            self._open[name] = [one for one in sent if one.source.topic_id != info.topic_id]


def trade_of(number: int, exchange: str) -> dict[str, Any]:
    """Most come in the order of their times; some are late, by seconds or by days, as those of a backfill are."""
    seconds = number * 0.4
    if number % 9 == 0:
        seconds -= (0.9, 50.0, 86_400.0, 200_000.5)[number // 9 % 4]
    return trade(
        number,
        symbol="AB"[number // 2 % 2],
        exchange=exchange,
        event_time=EPOCH + timedelta(seconds=seconds),
        price=Decimal(100 + number % 7) + Decimal(number).scaleb(-8),
        source="backfill" if number % 9 == 0 else "stream",
    )


def _gap_event(number: int) -> dict[str, Any]:
    at = EPOCH + timedelta(seconds=number)
    return {
        "message_id": f"{gap_of(number)}:{number}",
        "gap_id": gap_of(number),
        "exchange": "binance",
        "symbol": "A",
        "first_id": number,
        "last_id": number + 3,
        "state": _STATES[number // 5 % 4],
        "severity": "warning",
        "missing_ids": 4,
        "backfilled_ids": 0,
        "opened_time": EPOCH,
        "updated_time": at,
        "closed_time": None,
        "closed_by": None,
        "reason": None,
    }


def _shed(number: int) -> dict[str, Any]:
    at = EPOCH + timedelta(seconds=number)
    return {
        "message_id": f"binance:A:quotes:{number}",
        "exchange": "binance",
        "symbol": "A",
        "dataset": "quotes",
        "level": "graceful",
        "records": 1 + number % 5,
        "first_id": number,
        "last_id": number + 4,
        "first_time": at,
        "last_time": at,
    }


_RECORDS: dict[str, Callable[[int], dict[str, Any]]] = {
    QUOTES.name: quote,
    GAP_EVENTS.name: _gap_event,
    SHED.name: _shed,
}
#: What is wrong with a message: nothing at all, cut off, too long, of a schema that is unknown, or that does not fit.
_BREAKS: tuple[Callable[[bytes, int], bytes | None], ...] = (
    lambda value, number: None,
    lambda value, number: value[:-1],
    lambda value, number: b"",
    lambda value, number: value + b"\0",
    lambda value, number: b"\0\0\0\0\7" + value[5:],
    lambda value, number: UNREADABLE.encode(trade(number, Price=f"b{number}")),
)
