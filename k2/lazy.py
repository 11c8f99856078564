"""A group of commands whose modules are imported when a command is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """A group that knows where further commands are: name -> "module:command". Their help imports them."""

    def __init__(self, *args: Any, lazy: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._lazy = dict(lazy)

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({*super().list_commands(context), *self._lazy})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        known = super().get_command(context, name)
        if known is not None or name not in self._lazy:
            return known
        module, _, attribute = self._lazy[name].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        self.add_command(command, name)
        return command
