"""docs/tables.md is held to the command: its options are current, its examples are commands that there are."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import click

from k2.tables import tables

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/tables.md").read_text()


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables_page", ROOT / "docs/tables_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_options_are_current() -> None:
    assert generator().page() == PAGE, "run `just docs`"


def test_every_command_has_a_place() -> None:
    headings = {name for line in re.findall(r"^## (.+)$", PAGE, re.MULTILINE) for name in line.split(", ")}
    assert set(tables.commands) <= headings


def test_the_examples_are_commands_that_there_are() -> None:
    examples = re.findall(r"^    \$ k2 tables (.+)$", PAGE, re.MULTILINE)
    assert examples
    for example in examples:
        name, *arguments = shlex.split(example)
        command = tables.commands[name]
        command.make_context(name, arguments, parent=click.Context(tables))
