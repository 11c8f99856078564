"""Pure: dead letters as clients see them, `ops.dead_letters`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pyarrow as pa

from common.dead_letters import FoldedLetter
from common.errors import LimitExceeded

_TIME: Final = pa.timestamp("us", "UTC")
#: A row for each letter. `kafka_partition` and `kafka_offset` are where the message lay in `topic`, null for a frame or
#: a line, which never came into it. `value` is the beginning of its bytes.
DEAD_LETTERS: Final = pa.schema(
    [
        pa.field("letter_id", pa.string(), nullable=False),
        pa.field("written_at", _TIME, nullable=False),
        pa.field("topic", pa.string(), nullable=False),
        pa.field("kafka_partition", pa.int32()),
        pa.field("kafka_offset", pa.int64()),
        pa.field("schema_id", pa.int64()),
        pa.field("exchange", pa.string()),
        pa.field("file", pa.string()),
        pa.field("line", pa.int64()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("value_bytes", pa.int64()),
        pa.field("value", pa.binary()),
        pa.field("replays", pa.int32(), nullable=False),
        pa.field("replayed_at", _TIME),
        pa.field("dead_letter_topic", pa.string(), nullable=False),
        pa.field("dead_letter_partition", pa.int32(), nullable=False),
        pa.field("dead_letter_offset", pa.int64(), nullable=False),
    ]
)
#: So many letters are shown; of more none is, as a part is never given as the whole.
LETTERS_MAX: Final = 100_000
VALUE_BYTES_MAX: Final = 1_024


def letter_rows(letters: Iterable[FoldedLetter]) -> pa.Table:
    """The letters in their order, as DEAD_LETTERS. Raises LimitExceeded."""
    rows = [_row(one) for one in letters]
    if len(rows) > LETTERS_MAX:
        raise LimitExceeded(
            f"there are {len(rows)} dead letters, and ops.dead_letters shows {LETTERS_MAX} at most; "
            "read them with `k2 dlq export`"
        )
    return pa.Table.from_pylist(rows, schema=DEAD_LETTERS)


def _row(one: FoldedLetter) -> dict[str, object]:
    letter = one.letter
    partition, offset = letter.source_position or (None, None)
    return {
        "letter_id": letter.id,
        "written_at": letter.at_us,
        "topic": letter.source_topic,
        "kafka_partition": partition,
        "kafka_offset": offset,
        "schema_id": letter.schema_id,
        "exchange": letter.exchange,
        "file": letter.file,
        "line": letter.line,
        "reason": letter.reason,
        "value_bytes": None if letter.value is None else len(letter.value),
        "value": None if letter.value is None else letter.value[:VALUE_BYTES_MAX],
        "replays": one.replays,
        "replayed_at": one.replayed_at_us,
        "dead_letter_topic": letter.topic,
        "dead_letter_partition": letter.partition,
        "dead_letter_offset": letter.offset,
    }
