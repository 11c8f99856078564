"""A file of symbols, which may be changed while ingest runs: one or more a line, `#` begins a comment."""

from __future__ import annotations

from pathlib import Path

from common.errors import SettingsError


def read_symbols(path: Path) -> tuple[str, ...]:
    """The symbols in the file's order, doubles dropped. Raises SettingsError when it cannot be read or has none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(f"the file of symbols {path} cannot be read ({reason}); give another one") from None
    lines = (line.partition("#")[0].replace(",", " ") for line in text.splitlines())
    symbols = tuple(dict.fromkeys(word.upper() for line in lines for word in line.split()))
    if not symbols:
        raise SettingsError(f"the file {path} names no symbol; write at least one, such as BTCUSDT")
    return symbols


class SymbolsFile:
    """The file's symbols, and whether it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._stamp()

    def changed(self) -> tuple[str, ...] | None:
        """The symbols when the file is another than the last time; else None. Blocking. Raises SettingsError."""
        stamp = self._stamp()
        if stamp == self._seen:
            return None
        self._seen = stamp
        return read_symbols(self._path)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
