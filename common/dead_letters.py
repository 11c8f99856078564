"""Dead letters: messages that could not be used, in a topic beside their own, as they were and with the reason.

This is what sink, ingest and the command agree on: the names of the headers, and reading the letters back.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from common.datasets import dead_letter_topic
from common.log import ConsumerBatch, KafkaLog, KafkaLogReader
from common.settings import KafkaSettings
from common.whole_log import read_whole

REASON: Final = "k2-reason"
#: The topic that the message was in, or was for.
TOPIC: Final = "k2-topic"
#: Of a message of the log: where it lay, and the schema id that it begins with, if it does.
PARTITION: Final = "k2-partition"
OFFSET: Final = "k2-offset"
SCHEMA_ID: Final = "k2-schema-id"
VALUE_OMITTED: Final = "k2-value-omitted"
#: Of a frame of a venue: which, and when it came.
EXCHANGE: Final = "k2-exchange"
RECEIVE_TIME: Final = "k2-receive-time-us"
#: Of a line of a file: which file, and its number from 1.
FILE: Final = "k2-file"
LINE: Final = "k2-line"
#: A mark beside the letters, without a value: the letter of this id was put back. So is what was put back marked.
REPLAY_OF: Final = "k2-replay-of"

_PREFIX: Final = dead_letter_topic("")
#: What tells one letter from another, besides its bytes. A letter that was written twice has these twice the same.
_IDENTITY: Final = (TOPIC, PARTITION, OFFSET, EXCHANGE, RECEIVE_TIME, FILE, LINE)
_ID_BYTES: Final = 6


def letter_id(value: bytes | None, headers: Mapping[str, str]) -> str:
    """The letter's name, 12 hexadecimal digits: a function of what it is about, wherever it was written."""
    digest = hashlib.blake2b(value or b"", digest_size=_ID_BYTES)
    for name in _IDENTITY:
        digest.update(b"\0" + headers.get(name, "").encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Letter:
    """One message of a dead-letter topic: the bytes that could not be used, and what its headers say.

    `partition` and `offset` are its own place in the dead-letter topic, `at_us` when the broker took it there.
    """

    topic: str
    partition: int
    offset: int
    at_us: int
    value: bytes | None
    headers: Mapping[str, str]

    @property
    def id(self) -> str:
        return letter_id(self.value, self.headers)

    @property
    def reason(self) -> str:
        return self.headers.get(REASON, "")

    @property
    def source_topic(self) -> str:
        """The topic that the message was in, or was for."""
        return self.headers.get(TOPIC) or self.topic.removeprefix(_PREFIX)

    @property
    def source_position(self) -> tuple[int, int] | None:
        """(partition, offset) of a message of the log; None for what never came into it."""
        partition, offset = self.headers.get(PARTITION, ""), self.headers.get(OFFSET, "")
        return (int(partition), int(offset)) if partition.isdecimal() and offset.isdecimal() else None

    @property
    def schema_id(self) -> int | None:
        text = self.headers.get(SCHEMA_ID, "")
        return int(text) if text.isdecimal() else None

    @property
    def exchange(self) -> str | None:
        """Of a frame or a line that ingest could not use: whose it is."""
        return self.headers.get(EXCHANGE)

    @property
    def file(self) -> str | None:
        """Of a line of a file: which file."""
        return self.headers.get(FILE)

    @property
    def line(self) -> int | None:
        """Of a line of a file: its number, from 1."""
        text = self.headers.get(LINE, "")
        return int(text) if text.isdecimal() else None

    @property
    def replay_of(self) -> str | None:
        """The id of the letter that was put back, when this is no letter but the mark of that."""
        return self.headers.get(REPLAY_OF)


@dataclass(frozen=True, slots=True)
class FoldedLetter:
    """One letter, however often it was written, and how often and when it was put back last."""

    letter: Letter
    replays: int
    replayed_at_us: int | None


class _LetterReader(KafkaLogReader):
    """A reader that keeps what comes with each message."""

    def __init__(self, settings: KafkaSettings) -> None:
        super().__init__(settings, client_id="k2-dead-letters")
        self.letters: list[Letter] = []

    def _batch(self, topic: str, messages: Sequence[Any]) -> ConsumerBatch:
        self.letters += map(_letter, messages)
        return super()._batch(topic, messages)


def _letter(message: Any) -> Letter:
    headers = {name: (value or b"").decode(errors="replace") for name, value in message.headers() or ()}
    return Letter(
        message.topic(),
        message.partition(),
        message.offset(),
        message.timestamp()[1] * 1_000,
        message.value(),
        headers,
    )


def dead_letter_topics(log: KafkaLog) -> list[str]:
    """Every dead-letter topic that there is. Raises BrokerError."""
    return sorted(log.topics(f"^{re.escape(_PREFIX)}"))


def all_letters(kafka: KafkaSettings) -> list[FoldedLetter]:
    """Every dead letter that the broker has, once, in the order of their times. Blocking. Raises BrokerError."""
    return folded(read_letters(kafka, dead_letter_topics(KafkaLog(kafka))))


def read_letters(kafka: KafkaSettings, topics: Iterable[str]) -> Iterator[Letter]:
    """Each letter and mark of these dead-letter topics, up to their end now, in the order of each partition.

    Topics that do not exist have none. Blocking. Raises BrokerError.
    """
    wanted = set(topics)
    infos = [info for name, info in KafkaLog(kafka).topics(f"^{re.escape(_PREFIX)}").items() if name in wanted]
    with contextlib.closing(_LetterReader(kafka)) as reader:
        for _ in read_whole(reader, kafka, infos):
            yield from reader.letters
            reader.letters.clear()


def folded(letters: Iterable[Letter]) -> list[FoldedLetter]:
    """Each letter once, in the order of their times, with its marks. Pure.

    A letter that was written twice, after a crash, is one, as it was first.
    """
    firsts: dict[str, Letter] = {}
    marks: dict[str, list[int]] = {}
    for letter in letters:
        if letter.replay_of is not None:
            marks.setdefault(letter.replay_of, []).append(letter.at_us)
            continue
        an_id = letter.id
        if an_id not in firsts or letter.at_us < firsts[an_id].at_us:
            firsts[an_id] = letter
    return [
        FoldedLetter(letter, len(marks.get(an_id, ())), max(marks.get(an_id, ()), default=None))
        for an_id, letter in sorted(firsts.items(), key=lambda one: (one[1].at_us, one[1].partition, one[1].offset))
    ]
