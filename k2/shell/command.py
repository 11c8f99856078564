"""`k2 shell`: the command. At a terminal it prompts; otherwise it runs what standard input holds."""

from __future__ import annotations

import sys

import click
from rich.console import Console

from common.clock import SystemClock
from k2.runner import EXIT_INTERRUPTED, exit_code
from k2.server_options import Server, server_options
from k2.shell.shell import Leave, Shell


@click.command(short_help="SQL at a prompt.")
@server_options
def shell(server: Server) -> None:
    """Ask a server in SQL: completion, history, timings, plots; `\\?` lists the shell's own commands.

    Statements end with a semicolon and may have several lines. Ctrl-C cancels the running one, Ctrl-D leaves. Without a
    terminal the statements of standard input are run, until one fails; results go to standard output, the rest to
    standard error.
    """
    is_typed = sys.stdin.isatty()
    console = Console(highlight=False)
    notes = console if is_typed else Console(highlight=False, soft_wrap=True, stderr=True)
    running = Shell(server, console, SystemClock(), notes=notes)
    running.connect()
    try:
        if is_typed:
            _prompt(running, console, server.uri)
        else:
            _run_all(running, sys.stdin.read())
    except Leave:
        pass
    finally:
        running.close()


def _prompt(running: Shell, console: Console, uri: str) -> None:
    from k2.shell.prompt import patch_stdout, session

    console.print(f"{uri}   end a statement with ;   \\? for help   Ctrl-D to leave", style="dim")
    running.learn_beside()
    prompt = session(running)
    while True:
        try:
            with patch_stdout(raw=True):  # what a thread has to say goes above the line that is being typed
                text = prompt.prompt(running.prompt())
        except KeyboardInterrupt:
            continue  # the line is let go, not the shell
        except EOFError:
            return
        if text.strip():
            running.run(text)


def _run_all(running: Shell, text: str) -> None:
    """Line by line where a line is a command of the shell's, else statement by statement."""
    from k2.shell.statements import is_complete

    gathered = ""
    for line in text.splitlines(keepends=True):
        gathered += line
        if is_complete(gathered):
            _run(running, gathered)
            gathered = ""
    _run(running, gathered)


def _run(running: Shell, text: str) -> None:
    if text.strip():
        running.run(text)
    if running.failed is not None:
        raise click.exceptions.Exit(exit_code(running.failed))
    if running.is_interrupted:
        raise click.exceptions.Exit(EXIT_INTERRUPTED)
