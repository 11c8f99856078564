"""Captures of a websocket: text files of `<receive time, ns> <frame>` lines, gzipped or plain, hftbacktest's form.

Reading is lazy and takes constant memory, so that a capture of a day works as well as one of five minutes.
"""

from __future__ import annotations

import gzip
import heapq
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from common.errors import FeedProtocolError, SettingsError

_GZIP_MAGIC = b"\x1f\x8b"


class CaptureFrame(NamedTuple):
    """A combined-stream frame, its stream, and when it came, in nanoseconds since the first line of its file."""

    elapsed_ns: int
    stream: str
    frame: bytes


def read_capture(path: Path) -> Iterator[CaptureFrame]:
    """The stream frames of one capture, in the file's order. Lines that hold no stream frame (a book snapshot fetched
    beside it) are passed over, and so are blank ones.

    Raises SettingsError when the file cannot be read, FeedProtocolError naming file and line when a line is malformed
    or the compressed data is damaged; what stands before that line has been given by then.
    """
    line_number = 0
    start_ns: int | None = None
    decode = json.JSONDecoder().decode
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == _GZIP_MAGIC
        with gzip.open(path, "rb") if compressed else path.open("rb") as lines:
            for line_number, line in enumerate(lines, 1):
                time_text, _space, body = line.strip().partition(b" ")
                if not time_text:
                    continue
                if not time_text.isdigit() or len(time_text) > 19:
                    raise _malformed(path, line_number, "it does not begin with a time in nanoseconds")
                try:
                    message = decode(body.decode())
                except (ValueError, RecursionError):
                    raise _malformed(path, line_number, "there is no JSON behind the time") from None
                if start_ns is None:
                    start_ns = int(time_text)
                stream = message.get("stream") if isinstance(message, dict) else None
                if isinstance(stream, str):
                    yield CaptureFrame(int(time_text) - start_ns, stream, body)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FeedProtocolError(
            f"the capture {path} is damaged behind line {line_number} ({error}); get a whole copy"
        ) from None
    except OSError as error:
        raise SettingsError(f"the capture {path} cannot be read ({error.strerror}); check its path") from None
    if line_number == 0:
        raise FeedProtocolError(f"the capture {path} is empty; give one with `<ns> <json>` lines")


def merge_captures(paths: Iterable[Path]) -> Iterator[CaptureFrame]:
    """The frames of several captures as if all had begun at once: merged by the time since each file's own start.

    Each file's own order is kept. Raises as `read_capture` does.
    """
    return heapq.merge(*(read_capture(path) for path in paths), key=lambda frame: frame.elapsed_ns)


def _malformed(path: Path, line_number: int, why: str) -> FeedProtocolError:
    return FeedProtocolError(f"line {line_number} of the capture {path} is malformed: {why}; mend or remove the line")
