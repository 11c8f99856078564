"""Ledger and gaps over restarts: a checkpoint file, the log behind it, and one writer per state directory (rule 10).

A checkpoint says: every record of the log below these offsets is in these, and everything in these is in the log.
The first half is what lets a restart skip the log's beginning; the second is why nothing in flight may be written down
as taken: after a crash the log alone decides.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import pyarrow as pa
import pyarrow.compute as pc

from common.clock import Clock
from common.codec import Decoder
from common.datasets import BOOK_SNAPSHOTS, DEPTH, GAP_EVENTS, INSTRUMENTS, QUOTES, TRADES, Dataset, dataset_of_topic
from common.errors import BrokerError, K2Error, SettingsError
from common.log import ConsumerBatch, KafkaLog, KafkaLogReader, LogReader, TopicInfo
from common.offsets import PartitionOffsets
from common.registry import SchemaRegistry
from common.settings import KafkaSettings
from common.telemetry import get_logger
from ingest.gaps import Gap, GapBook, GapLimits
from ingest.ledger import Ledger, Take

_FORM: Final = 2
#: The form without gaps, which are then read from the log.
_FORM_WITHOUT_GAPS: Final = 1
_CHECKPOINT_FILE: Final = "ledger.json"
_LOCK_FILE: Final = "ingest.lock"
_MESSAGES_PER_POLL: Final = 5_000
#: The log is taken to be out of reach when a catch-up saw nothing new, and no end, for so many request timeouts.
_SILENT_TIMEOUTS: Final = 3


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Ledger and gaps, and the offsets they cover: every record of the log below `covered` is in them."""

    covered: PartitionOffsets
    ledger: Ledger
    gaps: GapBook

    def to_text(self) -> str:
        tree = {
            "form": _FORM,
            "covered": json.loads(self.covered.to_text()),
            "ledger": json.loads(self.ledger.to_text()),
            "gaps": json.loads(self.gaps.to_text()),
        }
        return json.dumps(tree, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_text(cls, text: str, limits: GapLimits) -> Checkpoint:
        """The reverse of `to_text`. Raises K2Error when the text is not that form."""
        try:
            tree = json.loads(text)
            if tree["form"] not in (_FORM, _FORM_WITHOUT_GAPS):
                raise ValueError(f"form {tree['form']!r} is not known")
            covered, ledger = json.dumps(tree["covered"]), json.dumps(tree["ledger"])
            gaps = json.dumps(tree["gaps"]) if tree["form"] == _FORM else GapBook(limits).to_text()
        except (ValueError, KeyError, TypeError) as error:
            raise K2Error(f"it is no checkpoint of this version ({error!r})") from None
        return cls(PartitionOffsets.from_text(covered), Ledger.from_text(ledger), GapBook.from_text(gaps, limits))


class StateDirectory:
    """One ingest's own folder, locked for as long as it is open: its checkpoint, written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: IO[str] | None = None

    def open(self) -> Self:
        """Make and lock the folder, unless it is. Raises SettingsError when it cannot be written or another has it."""
        if self._lock is not None:
            return self
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            lock = (self._path / _LOCK_FILE).open("a+", encoding="utf-8")
        except OSError as error:
            raise SettingsError(
                f"ingest's state directory {self._path} cannot be written ({error.strerror}); "
                "choose another data directory"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read(20).strip()
            lock.close()
            raise SettingsError(
                f"another ingest (process {holder or 'unknown'}) already runs on the state directory {self._path}; "
                "stop it, or choose another data directory"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock
        return self

    def close(self) -> None:
        """Let the folder go. Safe to call twice."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def load(self, limits: GapLimits) -> Checkpoint | None:
        """The checkpoint; None when there is none yet. Raises SettingsError when it cannot be read."""
        file = self._path / _CHECKPOINT_FILE
        try:
            return Checkpoint.from_text(file.read_text(encoding="utf-8"), limits)
        except FileNotFoundError:
            return None
        except (OSError, K2Error, UnicodeDecodeError) as error:
            raise SettingsError(
                f"the ledger's checkpoint {file} cannot be read: {error}; "
                "remove it to have the ledger made from the log again"
            ) from None

    def save(self, text: str) -> None:
        """Replace the checkpoint, durably and atomically. Raises SettingsError when the disk does not take it."""
        file = self._path / _CHECKPOINT_FILE
        fresh = file.with_suffix(".new")
        try:
            with fresh.open("w", encoding="utf-8") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            fresh.replace(file)
            folder = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise SettingsError(
                f"the ledger's checkpoint {file} cannot be written ({error.strerror}); "
                "make room or choose another data directory"
            ) from None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def apply_batch(ledger: Ledger, gaps: GapBook, dataset: Dataset, rows: pa.RecordBatch) -> None:
    """Take every row of a decoded record batch. The order within a symbol is the log's."""
    if dataset is GAP_EVENTS:
        _apply_gaps(gaps, rows)
        return
    exchanges, symbols = rows.column("exchange").to_pylist(), rows.column("symbol").to_pylist()
    if dataset.optional:
        _apply_further(ledger, dataset, rows, exchanges, symbols)
        return
    ids = rows.column(dataset.id_column).to_pylist()
    takes: dict[str, Callable[[str, str, Any], Take]] = {
        TRADES.name: ledger.take,
        QUOTES.name: ledger.take_quote,
        INSTRUMENTS.name: ledger.take_instrument,
    }
    take = takes[dataset.name]
    for exchange, symbol, one_id in zip(exchanges, symbols, ids, strict=True):
        take(exchange, symbol, one_id)
    if dataset is TRADES:
        backfilled = pc.indices_nonzero(pc.equal(rows.column("source"), "backfill")).to_pylist()
        for index in backfilled:
            gaps.backfilled((exchanges[index], symbols[index]), ids[index])


def _apply_further(
    ledger: Ledger, dataset: Dataset, rows: pa.RecordBatch, exchanges: list[str], symbols: list[str]
) -> None:
    """Rows of a further stream."""
    lasts = rows.column(dataset.id_column).to_pylist()
    if dataset is BOOK_SNAPSHOTS:
        for exchange, symbol, an_id in zip(exchanges, symbols, lasts, strict=True):
            ledger.take_above(dataset.name, exchange, symbol, an_id)
        return
    firsts = rows.column("first_update_id").to_pylist() if dataset is DEPTH else lasts
    for exchange, symbol, first_id, last_id in zip(exchanges, symbols, firsts, lasts, strict=True):
        ledger.ids(dataset.name, exchange, symbol).take_range(first_id, last_id)


def _apply_gaps(gaps: GapBook, rows: pa.RecordBatch) -> None:
    """Times as they are in a Gap: integers of microseconds."""
    plain = pa.schema([pa.field(f.name, pa.int64() if pa.types.is_timestamp(f.type) else f.type) for f in rows.schema])
    for record in rows.cast(plain).to_pylist():
        gaps.apply(Gap.from_record(record))


class CatchUp:
    """Reads the log of one exchange into ledger and gaps before anything is produced.

    Blocking. Raises BrokerError when the log cannot be read to its end. `messages_read` and `messages_broken` count.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        registry: SchemaRegistry,
        topics: Iterable[TopicInfo],
        limits: GapLimits,
        *,
        clock: Clock,
    ) -> None:
        self._limits = limits
        self._kafka = kafka
        self._registry = registry
        self._topics = {info.topic: info for info in topics}
        self._clock = clock
        self._log = get_logger("ingest")
        self._decoders: dict[str, Decoder] = {}
        self.messages_read = 0
        self.messages_broken = 0

    def run(self, log: KafkaLog, checkpoint: Checkpoint | None) -> Checkpoint:
        """Ledger and gaps as of the log's end: `checkpoint` where it is this log's, and every record behind it.

        A checkpoint of another cluster, or of topics that were made anew since, counts for nothing: its records are not
        in this log. So does one that covers more than the log holds. Where retention has removed records behind the
        checkpoint, the ledger is kept and reading goes on with the oldest record.
        """
        oldest = log.start_offsets(self._topics.values())
        if checkpoint is not None and not set(checkpoint.covered) <= set(oldest):
            self._log.warning("the checkpoint is of another log and is not used")
            checkpoint = None
        if checkpoint is not None and not log.end_offsets(self._topics.values()).covers(checkpoint.covered):
            self._log.warning("the log lost records that the checkpoint covers; it is not used")
            checkpoint = None
        if checkpoint is None:
            return self._read(oldest, Ledger(), GapBook(self._limits))
        return self._read(oldest.advanced(checkpoint.covered), checkpoint.ledger.copy(), checkpoint.gaps.copy())

    def _read(self, starts: PartitionOffsets, ledger: Ledger, gaps: GapBook) -> Checkpoint:
        """The log from `starts` on, on top of what is known."""
        with contextlib.closing(KafkaLogReader(self._kafka, client_id="k2-ingest-catch-up")) as reader:
            reader.assign(starts, {info.topic_id: info.topic for info in self._topics.values()})
            self._read_to_end(reader, ledger, gaps)
            return Checkpoint(reader.positions(), ledger, gaps)

    def _read_to_end(self, reader: LogReader, ledger: Ledger, gaps: GapBook) -> None:
        silent_s_max = _SILENT_TIMEOUTS * self._kafka.request_timeout_ms / 1000
        heard_at_s = self._clock.monotonic_s()
        while not reader.at_end():
            batches = reader.poll(_MESSAGES_PER_POLL, 0.1)
            for batch in batches:
                self._take(batch, ledger, gaps)
            now_s = self._clock.monotonic_s()
            if batches:
                heard_at_s = now_s
            elif now_s - heard_at_s > silent_s_max:
                raise BrokerError(
                    f"the broker {self._kafka.bootstrap_servers} did not let ingest read its own log to the end within "
                    f"{silent_s_max:.0f} s; check the broker and start again"
                )

    def _take(self, batch: ConsumerBatch, ledger: Ledger, gaps: GapBook) -> None:
        dataset = dataset_of_topic(batch.topic)
        if dataset is None:
            return
        decoder = self._decoders.get(dataset.name)
        if decoder is None:
            decoder = self._decoders[dataset.name] = Decoder(dataset, self._registry)
        decoded = decoder.decode(batch)
        self.messages_read += len(batch)
        self.messages_broken += len(decoded.errors)
        apply_batch(ledger, gaps, dataset, decoded.record_batch)
