"""The prompt itself: history, completion, colours, several lines. The home of prompt_toolkit and pygments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import completion_is_selected, has_selection
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from prompt_toolkit.patch_stdout import patch_stdout
from pygments.lexers.sql import PostgresLexer

from k2.shell.completion import candidates, word_before
from k2.shell.shell import Shell
from k2.shell.statements import is_complete

__all__ = ["patch_stdout", "session"]
#: How long the first Tab waits for the names that it completes.
_CATALOG_S_MAX = 30.0


class _Completions(Completer):
    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        self._shell.learned.wait(_CATALOG_S_MAX)
        before = document.text_before_cursor
        length = len(word_before(before))
        for each in candidates(before, document.text, self._shell.catalog):
            yield Completion(each.text, start_position=-length, display_meta=each.about)


def session(shell: Shell, **streams: Any) -> PromptSession[str]:
    """A prompt that gives whole statements, or a command of the shell. `streams`: prompt_toolkit's input, output."""
    keys = KeyBindings()

    @keys.add("enter", filter=completion_is_selected)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.complete_state = None  # it is taken, and the statement goes on

    @keys.add("enter", filter=~has_selection & ~completion_is_selected)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    return PromptSession(
        history=_history(),
        lexer=PygmentsLexer(PostgresLexer),
        completer=_Completions(shell),
        complete_while_typing=False,
        complete_in_thread=True,
        auto_suggest=AutoSuggestFromHistory(),
        multiline=True,
        key_bindings=keys,
        prompt_continuation=lambda width, _line, _soft: "  > ".rjust(width),
        enable_history_search=True,
        **streams,
    )


def _history() -> History:
    """What was typed, for the next time; in memory where no file can be kept."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "k2"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "history"
        file.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(file)
