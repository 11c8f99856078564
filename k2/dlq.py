"""`k2 dlq`: dead letters looked at, kept elsewhere, and put back once they can be used."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import click

from clients.formats import write
from common.dead_letters import FoldedLetter, all_letters
from common.errors import Refused, SettingsError
from common.registry import open_registry
from common.settings import KafkaSettings
from flight_server.storage.dead_letter_rows import letter_rows
from ingest.replaying import Outcome, Reader, Replay
from k2.console import FILE, say, start_logging

_TOPIC = click.option("--topic", help="Only those of this topic: market.crypto.trades.binance.")
_REASON = click.option("--reason", help="Only those whose reason has this text in it.")
_JSON = click.option("--json", "as_json", is_flag=True, help="JSON, an object a line, instead of text.")
#: Of `ops.dead_letters`, what fits a terminal.
_LISTED = (
    "letter_id",
    "written_at",
    "topic",
    "kafka_partition",
    "kafka_offset",
    "schema_id",
    "replays",
    "reason",
)
_ID_CHARS_MIN = 4
_BYTES_A_LINE = 16

Wanted = Callable[[FoldedLetter], bool]


@click.group()
def dlq() -> None:
    """Dead letters: messages and frames that could not be used, in the topics dead-letter.<topic>.

    In SQL they are ops.dead_letters. docs/dead-letters.md says how they come about and what becomes of them.
    """


@dlq.command("list")
@_TOPIC
@_REASON
@click.option("--waiting", is_flag=True, help="Only those that were not put back.")
@_JSON
@click.pass_obj
def list_(debug: bool, topic: str | None, reason: str | None, waiting: bool, as_json: bool) -> None:
    """Each letter once, in the order of their times."""
    letters = _letters(debug, _wanted((), topic, reason, waiting=waiting))
    rows = letter_rows(letters)
    if not as_json:
        rows = rows.select(_LISTED)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    write(rows.schema, rows.to_batches(), "json" if as_json else "table", sys.stdout.buffer, width=width)


@dlq.command()
@click.argument("letter_id")
@_JSON
@click.pass_obj
def show(debug: bool, letter_id: str, as_json: bool) -> None:
    """One letter with all its bytes, and whether it could be used today."""
    one = _one(_letters(debug, _wanted((letter_id,), None, None)), letter_id)
    back = Reader(open_registry(_kafka())).back(one.letter)
    today = back if isinstance(back, str) else f"it can be used: `k2 dlq replay {one.letter.id}` puts it back"
    if as_json:
        click.echo(json.dumps(_exported(one) | {"today": today}))
        return
    lines = [("letter", one.letter.id), ("written at", _time(one.letter.at_us)), ("topic", one.letter.source_topic)]
    lines += sorted(one.letter.headers.items())
    lines.append(("in", f"{one.letter.topic}[{one.letter.partition}]@{one.letter.offset}"))
    if one.replayed_at_us is not None:
        lines.append(("put back", f"{one.replays} times, last {_time(one.replayed_at_us)}"))
    lines.append(("today", today))
    for name, text in lines:
        click.echo(f"{name:<20} {text}")
    for line in _dump(one.letter.value or b""):
        click.echo(line)


@dlq.command()
@click.argument("letter_ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that were not put back.")
@_TOPIC
@_REASON
@click.option(
    "--again", is_flag=True, help="Also what was put back before or is in the log: that may be there twice then."
)
@click.option("--dry-run", is_flag=True, help="Say what would be put back, and change nothing.")
@_JSON
@click.pass_obj
def replay(
    debug: bool,
    letter_ids: tuple[str, ...],
    every: bool,
    topic: str | None,
    reason: str | None,
    again: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Put letters back into the log, each once, where K2 or its schemas can use them by now.

    The bytes go to the topic and the partition that they lay in; a frame goes through ingest's parser. What still
    cannot be used, and what the log has by now, stays where it is.
    """
    if not letter_ids and not every and topic is None and reason is None:
        raise SettingsError("nothing is chosen; name letters by their ids, or give --all, --topic or --reason")
    start_logging("dlq", debug, quiet=True)
    kafka = _kafka()
    for letter_id in letter_ids:
        _one(all_letters(kafka), letter_id)
    # Marked ones that are named are told about; of all of them only the others are meant.
    wanted = _wanted(letter_ids, topic, reason, waiting=not letter_ids and not again)
    outcomes = Replay(kafka).run(wanted, again=again, dry_run=dry_run)
    for outcome in outcomes:
        click.echo(_told(outcome, dry_run=dry_run, as_json=as_json))
    put = sum(outcome.why is None for outcome in outcomes)
    if not as_json:
        say(f"{put} {'would be put' if dry_run else 'put'} back, {len(outcomes) - put} left where they are")
    if letter_ids and not put:
        raise Refused("none of these letters can be put back; each line above says why")


@dlq.command()
@_TOPIC
@_REASON
@click.option("--output", type=FILE, help="Write there instead of to the terminal.")
@click.pass_obj
def export(debug: bool, topic: str | None, reason: str | None, output: Path | None) -> None:
    """Every letter with all its headers and bytes (base64), a JSON object a line."""
    with _output(output) as out:
        for one in _letters(debug, _wanted((), topic, reason)):
            out.write(json.dumps(_exported(one)) + "\n")


def _kafka() -> KafkaSettings:
    """The broker of the settings: an embedded one would have no letters. Raises SettingsError."""
    kafka = KafkaSettings.load()
    kafka.client_config()
    return kafka


def _letters(debug: bool, wanted: Wanted) -> list[FoldedLetter]:
    start_logging("dlq", debug, quiet=True)
    return [one for one in all_letters(_kafka()) if wanted(one)]


def _wanted(letter_ids: Sequence[str], topic: str | None, reason: str | None, *, waiting: bool = False) -> Wanted:
    """Letters are named by the beginnings of their ids, too."""

    def wanted(one: FoldedLetter) -> bool:
        return (
            (not letter_ids or one.letter.id.startswith(tuple(letter_ids)))
            and (topic is None or topic in (one.letter.source_topic, one.letter.topic))
            and (reason is None or reason in one.letter.reason)
            and not (waiting and one.replays)
        )

    return wanted


def _one(letters: Sequence[FoldedLetter], letter_id: str) -> FoldedLetter:
    """The letter whose id begins so. Raises SettingsError unless there is exactly one."""
    found = [one for one in letters if one.letter.id.startswith(letter_id)]
    if len(letter_id) < _ID_CHARS_MIN or len(found) != 1:
        many = f"{len(found)} dead letters have" if found else "no dead letter has"
        raise SettingsError(f"{many} an id that begins with {letter_id!r}; `k2 dlq list` shows them")
    return found[0]


def _exported(one: FoldedLetter) -> dict[str, Any]:
    letter = one.letter
    return {
        "letter_id": letter.id,
        "written_at": _time(letter.at_us),
        "topic": letter.source_topic,
        "dead_letter_topic": letter.topic,
        "dead_letter_partition": letter.partition,
        "dead_letter_offset": letter.offset,
        "schema_id": letter.schema_id,
        "reason": letter.reason,
        "replays": one.replays,
        "replayed_at": None if one.replayed_at_us is None else _time(one.replayed_at_us),
        "headers": dict(letter.headers),
        "value": None if letter.value is None else base64.b64encode(letter.value).decode(),
    }


def _told(outcome: Outcome, *, dry_run: bool, as_json: bool) -> str:
    letter, put = outcome.letter, outcome.why is None
    if as_json:
        return json.dumps({"letter_id": letter.id, "put_back": put and not dry_run, "why_not": outcome.why})
    return f"{letter.id} {letter.source_topic}: " + (outcome.why or ("would be put back" if dry_run else "put back"))


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(timespec="milliseconds")


def _dump(value: bytes) -> Iterator[str]:
    """The bytes, 16 a line: where, in hexadecimal, as text."""
    for start in range(0, len(value), _BYTES_A_LINE):
        part = value[start : start + _BYTES_A_LINE]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"{start:08x}  {part.hex(' '):<{3 * _BYTES_A_LINE}} {text}"


@contextmanager
def _output(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        return
    try:
        opened = path.open("w", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({error.strerror}); choose another --output") from None
    with opened:
        yield opened
