"""Dead letters back into the log, once what could not read them can.

What the sink could not decode goes back as it is, to the partition that it lay in. A frame of a venue that ingest could
not parse is parsed again, and goes where it would have gone. What still cannot be used is not put back: it would only
come again. Neither is a record that the log has by now, as a backfill may have brought it, nor a trade of a gap that a
backfill may still fill.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from confluent_kafka import KafkaException, Producer

from common.clock import SystemClock
from common.codec import Decoder, Encoder
from common.datasets import (
    DATASETS,
    GAP_EVENTS,
    TRADES,
    Dataset,
    dataset_of_topic,
)
from common.dead_letters import RECEIVE_TIME, REPLAY_OF, FoldedLetter, Letter, all_letters
from common.errors import BrokerError, EncodeError, FeedProtocolError, SettingsError
from common.log import ConsumerBatch, KafkaLog, KafkaLogReader
from common.registry import SchemaRegistry, open_registry
from common.schemas.arrow import record_schema
from common.settings import KafkaSettings
from common.whole_log import read_whole
from ingest.asx import EXCHANGE as ASX
from ingest.normaliser import DATASET_OF, Normaliser, Record
from ingest.venues.events import (
    AggTradeEvent,
    BlockTradeEvent,
    BookSnapshotEvent,
    BookTickerEvent,
    DepthEvent,
    TradeEvent,
)
from ingest.venues.registry import VENUES, Venue

#: Of two replays at once the first one ends: its transaction is aborted, and what it marked is not marked.
TRANSACTIONAL_ID: Final = "k2-dlq-replay"
_LETTERS_PER_TRANSACTION: Final = 1_000
_CALL_S: Final = 30.0
_SYMBOL: Final = re.compile(r"[A-Z0-9]{2,20}(?:-[A-Z0-9]{2,20})?")


class Identity(NamedTuple):
    """What makes two records of a topic the same one."""

    exchange: str
    symbol: str
    id: object


@dataclass(frozen=True, slots=True)
class Back:
    """What of a letter goes back: to a partition, or under a key."""

    topic: str
    value: bytes
    partition: int | None
    key: str | None
    identity: Identity


@dataclass(frozen=True, slots=True)
class _OpenGap:
    """Trades of one symbol of a topic that are missing, the last one inclusive."""

    topic: str
    exchange: str
    symbol: str
    first_id: int
    last_id: int

    def covers(self, back: Back) -> bool:
        same = (self.topic, self.exchange, self.symbol) == (back.topic, back.identity.exchange, back.identity.symbol)
        return same and isinstance(back.identity.id, int) and self.first_id <= back.identity.id <= self.last_id


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one letter; `why` says in a sentence why it was not put back, None when it was."""

    letter: Letter
    why: str | None


class Reader:
    """What a letter is to those who use messages today. Pure, but for asking the registry for schemas."""

    def __init__(self, registry: SchemaRegistry) -> None:
        self._registry = registry
        self._decoders: dict[str, Decoder] = {}
        #: What the registry does not have now it is not asked for again with each letter.
        self._as_of_s = SystemClock().monotonic_s()

    def back(self, letter: Letter) -> Back | str:
        """What of the letter goes back into the log, or one sentence that says why nothing does. Raises BrokerError."""
        if letter.value is None:
            return "its bytes are not there: they were too large for the dead-letter topic, or there never were any"
        dataset = dataset_of_topic(letter.source_topic)
        if dataset is None:
            return f"no dataset of K2 has the topic {letter.source_topic}"
        if letter.source_position is not None:
            return self._message(letter, dataset, letter.value, letter.source_position[0])
        if letter.exchange == ASX:
            return "it is a line of a file: mend it there, or run a K2 that takes it, and run `k2 ingest asx` again"
        if letter.exchange not in VENUES:
            return f"the exchange {letter.exchange!r} is none that K2 knows"
        try:
            return self._frame(letter, letter.exchange, letter.value)
        except (FeedProtocolError, EncodeError, SettingsError) as error:
            return f"it still cannot be used: {error}"

    def _message(self, letter: Letter, dataset: Dataset, value: bytes, partition: int) -> Back | str:
        decoder = self._decoders.get(dataset.name)
        if decoder is None:
            decoder = self._decoders[dataset.name] = Decoder(dataset, self._registry, read_s=lambda: self._as_of_s)
        batch = ConsumerBatch(letter.source_topic, "", "", [partition], [0], [value])
        decoded = decoder.decode(batch)
        if decoded.errors:
            return f"it still cannot be used: {decoded.errors[0].reason}"
        (row,) = decoded.record_batch.to_pylist()
        return Back(letter.source_topic, value, partition, None, _identity(dataset, row))

    def _frame(self, letter: Letter, exchange: str, frame: bytes) -> Back | str:
        venue = VENUES[exchange]
        session = venue.session(_symbols_in(frame, venue), venue.streams_known)
        (event,) = session.receive_all([frame], int(letter.headers.get(RECEIVE_TIME, "0")))
        if isinstance(event, FeedProtocolError):
            raise event
        normaliser = Normaliser(exchange=session.exchange, asset_class=session.asset_class)
        if isinstance(event, TradeEvent):
            record: Record = normaliser.trade(event)
        elif isinstance(event, BookTickerEvent):
            record = normaliser.quote(event)
        elif isinstance(event, AggTradeEvent | BlockTradeEvent | DepthEvent | BookSnapshotEvent):
            record = normaliser.further(event)
        else:
            return "it says nothing of the market"
        dataset = DATASET_OF[type(event)]
        topic = dataset.topic(asset_class=session.asset_class, exchange=session.exchange)
        value = Encoder(dataset, self._registry, topic=topic).encode(record)
        return Back(topic, value, None, record["symbol"], _identity(dataset, record))


def _identity(dataset: Dataset, record: Mapping[str, Any]) -> Identity:
    return Identity(record["exchange"], record["symbol"], record[dataset.id_column])


def _symbols_in(frame: bytes, venue: Venue) -> list[str]:
    """Every text of a frame that the venue takes for a symbol; what a stream is named after too.

    Raises FeedProtocolError.
    """
    try:
        tree = json.loads(frame)
    except (ValueError, RecursionError) as error:
        raise FeedProtocolError(f"the frame is not JSON ({error})") from None
    texts: list[str] = []
    pending = [tree]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            pending += one.values()
        elif isinstance(one, list):
            pending += one
        elif isinstance(one, str):
            texts.append(one.partition("@")[0].upper())
    return [text for text in texts if _SYMBOL.fullmatch(text) and _is_symbol(text, venue)]


def _is_symbol(text: str, venue: Venue) -> bool:
    try:
        venue.session([text], venue.streams)
    except SettingsError:
        return False
    return True


class Replay:
    """Puts letters back. One run.

    Guarantee: each letter that is put back is so once, together with its mark, in one transaction; a replay that died
    has put back and marked what it has marked, and the next one goes on behind that.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka

    def run(self, wanted: Callable[[FoldedLetter], bool], *, again: bool, dry_run: bool) -> list[Outcome]:
        """Put back those that are wanted; with `again` also those that were before, or that the log has.

        Blocking. Raises BrokerError.
        """
        producer = None if dry_run else self._fenced()
        # Behind the fence, so that every mark of a replay before this one is seen.
        letters = all_letters(self._kafka)
        reader = Reader(open_registry(self._kafka))
        outcomes: list[Outcome] = []
        ready: list[tuple[Letter, Back]] = []
        for one in letters:
            if not wanted(one):
                continue
            back = "it was put back before" if one.replays and not again else reader.back(one.letter)
            if isinstance(back, str):
                outcomes.append(Outcome(one.letter, back))
            else:
                ready.append((one.letter, back))
        # The gaps first: what closes one is in the log before the gap is told to be closed.
        gaps = [] if again else self._open_gaps({back.topic for _, back in ready})
        found = set() if again else self._in_log([back for _, back in ready], letters)
        going: list[tuple[Letter, Back]] = []
        for letter, back in ready:
            if (back.topic, back.identity) in found:
                outcomes.append(Outcome(letter, "the log has this record already"))
            elif any(gap.covers(back) for gap in gaps):
                outcomes.append(
                    Outcome(letter, "ingest asks the exchange for it; ops.gaps says when it no longer does")
                )
            else:
                if not again:
                    found.add((back.topic, back.identity))  # two letters of one record: one goes back
                going.append((letter, back))
                outcomes.append(Outcome(letter, None))
        if producer is not None:
            for start in range(0, len(going), _LETTERS_PER_TRANSACTION):
                self._put(producer, going[start : start + _LETTERS_PER_TRANSACTION])
        return outcomes

    def _in_log(self, backs: Sequence[Back], letters: Iterable[FoldedLetter]) -> set[tuple[str, Identity]]:
        """Which of these records the log has. Messages that became letters do not count, readable as they may be."""
        wanted = {(back.topic, back.identity) for back in backs}
        dead = {(one.letter.source_topic, one.letter.source_position) for one in letters}
        by_dataset: dict[str, set[str]] = {}
        for topic, _ in wanted:
            dataset = dataset_of_topic(topic)
            assert dataset is not None
            by_dataset.setdefault(dataset.name, set()).add(topic)
        found: set[tuple[str, Identity]] = set()
        for name, topics in by_dataset.items():
            dataset = DATASETS[name]
            columns = ("exchange", "symbol", dataset.id_column, "_kafka_partition", "_kafka_offset")
            for topic, row in self._rows(topics, dataset, columns):
                key = (topic, _identity(dataset, row))
                if key in wanted and (topic, (row["_kafka_partition"], row["_kafka_offset"])) not in dead:
                    found.add(key)
        return found

    def _open_gaps(self, topics: Iterable[str]) -> list[_OpenGap]:
        """The gaps of these topics' trades that are not closed: what is missing there may still come by itself."""
        trades_of = {}
        for topic in topics:
            if dataset_of_topic(topic) is TRADES:
                _, asset_class, _, exchange = topic.split(".")
                trades_of[GAP_EVENTS.topic(asset_class=asset_class, exchange=exchange)] = topic
        newest: dict[tuple[str, str], dict[str, Any]] = {}
        for topic, row in self._rows(trades_of, GAP_EVENTS, record_schema(GAP_EVENTS.schema_name).names):
            key = (topic, row["gap_id"])
            if key not in newest or newest[key]["updated_time"] <= row["updated_time"]:
                newest[key] = row
        return [
            _OpenGap(trades_of[topic], row["exchange"], row["symbol"], row["first_id"], row["last_id"])
            for (topic, _), row in newest.items()
            if row["closed_time"] is None
        ]

    def _rows(
        self, topics: Iterable[str], dataset: Dataset, columns: Sequence[str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every usable row of the topics of one dataset, with its topic."""
        names = sorted(topics)
        if not names:
            return
        decoder = Decoder(dataset, open_registry(self._kafka))
        infos = KafkaLog(self._kafka).topics("^(" + "|".join(map(re.escape, names)) + ")$").values()
        with contextlib.closing(KafkaLogReader(self._kafka, client_id="k2-dlq")) as reader:
            for batches in read_whole(reader, self._kafka, infos):
                for batch in batches:
                    for row in decoder.decode(batch).record_batch.select(list(columns)).to_pylist():
                        yield batch.topic, row

    def _fenced(self) -> Any:
        """A producer beside which no earlier replay writes anything any more."""
        config = {"client.id": "k2-dlq", "transactional.id": TRANSACTIONAL_ID, "linger.ms": 5}
        # As ingest does it, so that a key lands where its symbol is.
        config |= {"partitioner": "murmur2_random"}
        with self._translated("did not begin a replay"):
            producer = Producer(
                self._kafka.client_config() | config | {"acks": "all", "message.max.bytes": 16 * 1024 * 1024}
            )
            producer.init_transactions(_CALL_S)
        return producer

    def _put(self, producer: Any, going: Sequence[tuple[Letter, Back]]) -> None:
        """The records and the marks of their letters, all or none."""
        with self._translated("did not take what was put back"):
            producer.begin_transaction()
            for letter, back in going:
                mark = {REPLAY_OF: letter.id.encode()}
                where: dict[str, Any] = {"key": back.key} if back.partition is None else {"partition": back.partition}
                producer.produce(back.topic, back.value, headers=mark, **where)
                producer.produce(letter.topic, None, partition=letter.partition, headers=mark)
            producer.commit_transaction(_CALL_S)

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except (KafkaException, BufferError) as error:
            reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
            raise BrokerError(
                f"the broker {self._kafka.bootstrap_servers} {what} ({reason}); check the broker and run it again: "
                "what was put back is marked and is not put back again"
            ) from None
