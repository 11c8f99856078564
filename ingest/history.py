"""`k2 ingest asx`: files of history into Kafka, each line once, however often and with whatever interruption.

What is taken already is what the log and the tables hold, told by the lines' content; nothing else is kept. So the same
file twice adds nothing, one that grew adds what it grew by, and a run that was killed is gone on with where the log
says. Ids are given in the order of taking, dense for each symbol. A run fences the one before it (decision 0025):
behind the end of the log that it read nothing of another run can follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from common import dead_letters
from common.clock import Clock, SystemClock
from common.codec import Decoder
from common.datasets import INSTRUMENTS, QUOTES, TRADES, Dataset, dataset_of_topic, dead_letter_topic
from common.dead_letters import letter_id, read_letters
from common.errors import EncodeError, FeedProtocolError, SettingsError
from common.log import KafkaLog, KafkaLogReader, TopicInfo
from common.registry import SchemaRegistry, open_registry
from common.settings import IngestSettings, KafkaSettings
from common.telemetry import new_correlation_id
from common.whole_log import read_whole
from ingest.asx import ASSET_CLASS, COMPANIES, CURRENCY, EXCHANGE, FOLDERS, AsxParser, AsxRow, quote_key, trade_key
from ingest.ledger import IdRanges
from ingest.normaliser import Normaliser
from ingest.producer import EventProducer, correlation_headers
from ingest.venues.events import InstrumentInfo

#: The datasets that history fills.
HISTORY_DATASETS: Final = (TRADES, QUOTES, INSTRUMENTS)
TRANSACTIONAL_ID: Final = f"k2-ingest-{EXCHANGE}"
#: Lines between two looks at the broker and at the clock; some 5 ms.
_LINES_AT_ONCE: Final = 256
_FULL_QUEUE_WAIT_S: Final = 0.003
_TOPICS_WAIT_S: Final = 15.0


class Progress(Protocol):
    """Who watches, and may end the run: then both methods raise, and the run lets that pass."""

    def step(self, doing: str, total: int | None = None) -> None: ...

    def advance(self, units: int = 1) -> None: ...


@dataclass(frozen=True, slots=True)
class AsxFile:
    """One company's trades or quotes; `name` is the folder's and the file's, `trades/7181.csv`."""

    path: Path
    dataset: Dataset
    company_id: str
    symbol: str

    @property
    def name(self) -> str:
        return f"{self.dataset.name}/{self.path.name}"


@dataclass(slots=True)
class FileOutcome:
    """What became of one file's lines: `lines` = taken + known + dead_letters + known_dead_letters."""

    name: str
    symbol: str
    lines: int = 0
    taken: int = 0
    known: int = 0
    dead_letters: int = 0
    known_dead_letters: int = 0
    #: Of the quotes: those whose bid is above their ask, taken or known.
    crossed: int = 0


def asx_files(path: Path, companies: Mapping[str, str] = COMPANIES) -> list[AsxFile]:
    """The files below `path` in the order in which they are taken: the trades first, then by name.

    `path` is a folder with `trades` or `quotes` in it, one of these, or a file in one. Raises SettingsError.
    """
    if not path.exists():
        raise SettingsError(f"there is no {path}; give a folder with trades or quotes in it, or a file of one")
    found = []
    for folder, dataset in FOLDERS.items():
        if path.is_file():
            paths = [path] if path.resolve().parent.name == folder else []
        elif path.resolve().name == folder:
            paths = sorted(path.glob("*.csv"))
        else:
            paths = sorted((path / folder).glob("*.csv"))
        found += [(dataset, one) for one in paths]
    if not found:
        raise SettingsError(
            f"{path} has no history of ASX: files named COMPANY_ID.csv in a folder trades or quotes; see docs/asx.md"
        )
    unknown = sorted({one.stem for _, one in found if one.stem not in companies})
    if unknown:
        raise SettingsError(
            f"the symbol of the company {', '.join(unknown)} is not known; name it in a file of lines "
            "company_id,symbol and give that with --companies"
        )
    return [AsxFile(one, dataset, one.stem, companies[one.stem]) for dataset, one in found]


def read_companies(path: Path) -> dict[str, str]:
    """Symbols by company id: what K2 knows, and lines of `company_id,symbol`. Raises SettingsError."""
    companies = dict(COMPANIES)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the companies cannot be read from {path} ({error}); give another file") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"\s*(\d+)\s*,\s*([A-Za-z0-9]{1,12})\s*", line)
        if match is None:
            raise SettingsError(f"line {number} of {path} is not company_id,symbol: {line.strip()!r}; correct it")
        companies[match[1]] = match[2].upper()
    symbols = Counter(companies.values())
    if twice := sorted(symbol for symbol, count in symbols.items() if count > 1):
        raise SettingsError(f"{path} gives two companies the symbol {twice[0]}; each has one of its own")
    return companies


class KnownRows:
    """What log and tables hold of ASX: for each symbol the ids that are given, and how often each line is there.

    A record that is in both counts once, by its id. A million different lines take 91 MB.
    """

    def __init__(self) -> None:
        self._ids: dict[tuple[str, str], IdRanges] = {}
        self._keys: dict[tuple[str, str], Counter[bytes]] = {}
        self._instruments: set[str] = set()
        self._symbols: dict[str, str] = {}

    def add(self, dataset: Dataset, rows: pa.RecordBatch | pa.Table) -> None:
        """Rows of a table or of the log; those of other exchanges are passed over."""
        rows = rows.filter(pc.equal(rows.column("exchange"), EXCHANGE))
        if dataset is INSTRUMENTS:
            self._instruments.update(rows.column("message_id").to_pylist())
            return
        plain = rows.cast(
            pa.schema([pa.field(f.name, pa.int64() if pa.types.is_timestamp(f.type) else f.type) for f in rows.schema])
        )
        for record in plain.to_pylist():
            vendor_data = dict(record["vendor_data"] or ())
            symbol = record["symbol"]
            if "company_id" in vendor_data:
                self._symbols[vendor_data["company_id"]] = symbol
            if self.ids(dataset, symbol).take(record[dataset.id_column]):
                key = trade_key(record, vendor_data) if dataset is TRADES else quote_key(record)
                self.keys(dataset, symbol)[key] += 1

    def ids(self, dataset: Dataset, symbol: str) -> IdRanges:
        """The ids given, live."""
        return self._ids.setdefault((dataset.name, symbol), IdRanges())

    def keys(self, dataset: Dataset, symbol: str) -> Counter[bytes]:
        """How often each line is there, live."""
        return self._keys.setdefault((dataset.name, symbol), Counter())

    def has_instrument(self, message_id: str) -> bool:
        return message_id in self._instruments

    def check(self, file: AsxFile) -> None:
        """Raises SettingsError when the company's records are there under another symbol: they would come twice."""
        symbol = self._symbols.get(file.company_id, file.symbol)
        if symbol != file.symbol:
            raise SettingsError(
                f"the company {file.company_id} was taken in before as {symbol}, not as {file.symbol}; "
                "give it the same symbol, or its records would be there twice"
            )


class HistoryIngest:
    """Takes files of ASX history into Kafka. One run.

    Guarantee: once `run` returns, each usable line of each file is in the log or the tables as often as the file has
    it, each other one in the dead letters once; whatever ends it before, the next run makes that true.
    """

    def __init__(
        self,
        files: Iterable[AsxFile],
        *,
        kafka: KafkaSettings,
        settings: IngestSettings,
        of_tables: Callable[[KnownRows], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`of_tables` adds what the tables hold, which the log may have forgotten."""
        self._files = tuple(files)
        self._kafka = kafka
        self._settings = settings
        self._of_tables = of_tables
        self._clock = clock or SystemClock()
        self._known = KnownRows()
        self._letters: set[str] = set()
        self._commits: asyncio.Task[None] | None = None
        self._headers = correlation_headers(new_correlation_id())

    def run(self, progress: Progress) -> list[FileOutcome]:
        """Blocking. Raises BrokerError, IngestFenced when another run began meanwhile, SettingsError, CatalogError."""
        progress.step("what is there already")
        registry = open_registry(self._kafka)
        topics = self._topics()
        producer = EventProducer(
            self._kafka,
            self._settings,
            registry,
            topics=topics,
            transactional_id=TRANSACTIONAL_ID,
            clock=self._clock,
            timed=lambda _seconds: None,
        )
        try:
            producer.fence()
            # The tables first: what leaves the log for them meanwhile is seen there or here.
            if self._of_tables is not None:
                self._of_tables(self._known)
            self._read_log(registry, topics, progress)
            for file in self._files:
                self._known.check(file)
            return asyncio.run(self._take_files(producer, progress))
        finally:
            producer.close()

    def _topics(self) -> dict[str, TopicInfo]:
        names = {d.name: d.topic(asset_class=ASSET_CLASS, exchange=EXCHANGE) for d in HISTORY_DATASETS}
        log = KafkaLog(self._kafka)
        log.ensure_topics([*names.values(), *map(dead_letter_topic, names.values())])
        topics = log.made(names.values(), wait_s_max=_TOPICS_WAIT_S)
        return {dataset: topics[name] for dataset, name in names.items()}

    def _read_log(self, registry: SchemaRegistry, topics: Mapping[str, TopicInfo], progress: Progress) -> None:
        """Everything that the log holds of ASX, to its end."""
        decoders = {dataset.name: Decoder(dataset, registry) for dataset in HISTORY_DATASETS}
        with contextlib.closing(KafkaLogReader(self._kafka, client_id="k2-ingest-history")) as reader:
            for batches in read_whole(reader, self._kafka, topics.values()):
                for batch in batches:
                    dataset = dataset_of_topic(batch.topic)
                    assert dataset is not None
                    self._known.add(dataset, decoders[dataset.name].decode(batch).record_batch)
                    progress.advance(len(batch))
        letters = read_letters(self._kafka, (dead_letter_topic(info.topic) for info in topics.values()))
        self._letters.update(letter.id for letter in letters)

    async def _take_files(self, producer: EventProducer, progress: Progress) -> list[FileOutcome]:
        self._commits = commits = asyncio.create_task(producer.run())
        try:
            await self._announce(producer)
            outcomes = []
            for file in self._files:
                progress.step(file.name, _line_count(file.path))
                outcomes.append(await self._take_file(producer, file, progress))
            while producer.queued:
                await self._room(producer)
            return outcomes
        finally:
            commits.cancel()
            await asyncio.gather(commits, return_exceptions=True)
            producer.close()  # here: the thread of a commit that is under way ends by it, and the loop waits for that

    async def _announce(self, producer: EventProducer) -> None:
        """What each symbol is, unless that is known."""
        normaliser = Normaliser(exchange=EXCHANGE, asset_class=ASSET_CLASS)
        for symbol, company_id in sorted({(file.symbol, file.company_id) for file in self._files}):
            normaliser.learn(InstrumentInfo(symbol, None, CURRENCY, None, None, None, company_id))
            record = normaliser.instrument(symbol, self._clock.now_us())
            if not self._known.has_instrument(record["message_id"]):
                await self._send(producer, INSTRUMENTS, symbol, record)

    async def _take_file(self, producer: EventProducer, file: AsxFile, progress: Progress) -> FileOutcome:
        outcome = FileOutcome(file.name, file.symbol)
        parser = AsxParser(file.dataset, symbol=file.symbol, company_id=file.company_id)
        ids, known = self._known.ids(file.dataset, file.symbol), self._known.keys(file.dataset, file.symbol)
        seen: Counter[bytes] = Counter()
        unshown = 0
        for number, line in _lines(file.path):
            unshown += 1
            if unshown == _LINES_AT_ONCE:
                progress.advance(unshown)
                producer.poll()
                await asyncio.sleep(0)
                unshown = 0
            row = None
            try:
                row = parser.row(line)
                if row is None:
                    continue
                outcome.lines += 1
                outcome.crossed += row.is_crossed
                seen[row.key] += 1
                if seen[row.key] <= known[row.key]:
                    outcome.known += 1
                    continue
                await self._take(producer, row, ids)
            except (FeedProtocolError, EncodeError) as error:
                outcome.lines += row is None
                await self._send_dead_letter(producer, file, number, line, error, outcome)
                continue
            known[row.key] += 1
            outcome.taken += 1
        progress.advance(unshown)
        return outcome

    async def _take(self, producer: EventProducer, row: AsxRow, ids: IdRanges) -> None:
        """Under the next id, which is given once the queue has the record."""
        an_id = (ids.last_id or 0) + 1
        await self._send(producer, row.dataset, row.record["symbol"], row.identified(an_id))
        ids.take(an_id)

    async def _send(self, producer: EventProducer, dataset: Dataset, symbol: str, record: dict[str, Any]) -> None:
        payload = producer.encode(dataset, record)
        while not producer.send(dataset, symbol, payload, self._headers, self._clock.now_us()):
            await self._room(producer)

    async def _send_dead_letter(
        self,
        producer: EventProducer,
        file: AsxFile,
        number: int,
        line: bytes,
        error: FeedProtocolError | EncodeError,
        outcome: FileOutcome,
    ) -> None:
        """The line as it is, once over all runs."""
        about = {dead_letters.EXCHANGE: EXCHANGE, dead_letters.FILE: file.name, dead_letters.LINE: str(number)}
        topic = file.dataset.topic(asset_class=ASSET_CLASS, exchange=EXCHANGE)
        an_id = letter_id(line, about | {dead_letters.TOPIC: topic})
        if an_id in self._letters:
            outcome.known_dead_letters += 1
            return
        headers = [*self._headers, *((name, text.encode()) for name, text in about.items())]
        while not producer.send_dead_letter(file.dataset, line, error.message, headers):
            await self._room(producer)
        self._letters.add(an_id)
        outcome.dead_letters += 1

    async def _room(self, producer: EventProducer) -> None:
        """Give the broker time. Raises what the producer failed with."""
        producer.poll()
        if self._commits is not None and self._commits.done():
            self._commits.result()
        await asyncio.sleep(_FULL_QUEUE_WAIT_S)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines from 1 on, without what ends them. Raises SettingsError."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip(b"\r\n")
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); check it and run again") from None


def _line_count(path: Path) -> int:
    """Raises SettingsError."""
    return sum(1 for _ in _lines(path))
