"""Write docs/settings.md from common/settings.py: `just docs`. A test holds the page current."""

from __future__ import annotations

import sys
import types
import typing
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from common.settings import ALL_SETTINGS, Settings

PAGE = Path(__file__).with_name("settings.md")
_SIGNS: dict[type, tuple[str, str]] = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}
_HEAD = """# Settings

Written by `just docs` from `common/settings.py`.

Every setting is an environment variable, read once at start and checked against its bounds; options of the command win
over it. A wrong value stops the service with the variable's name, what it is, and what it may be. `--check-settings`
does only that.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(_section(settings) for settings in ALL_SETTINGS)])


def _section(settings: type[Settings]) -> str:
    prefix = str(settings.model_config["env_prefix"])
    doc = " ".join((settings.__doc__ or "").split())
    rows = [_row(prefix, name, field) for name, field in settings.model_fields.items()]
    return "\n".join(
        [
            f"## {settings.__name__}\n",
            f"{doc}\n",
            "| variable | default | may be | meaning |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _row(prefix: str, name: str, field: FieldInfo) -> str:
    cells = (f"`{prefix}{name.upper()}`", _default(field), _may_be(field), field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, tuple):
        value = list(value)
    return "unset" if value is None or value in ({}, []) else f"`{value}`"


def _may_be(field: FieldInfo) -> str:
    bounds = []
    for bound in field.metadata:
        if isinstance(bound, MinLen):
            bounds.append("not empty")
        elif type(bound) in _SIGNS:
            attribute, sign = _SIGNS[type(bound)]
            bounds.append(f"{sign} {getattr(bound, attribute):,}")
    return ", ".join([_kind(field.annotation), *bounds])


def _kind(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return _kind(next(argument for argument in arguments if argument is not type(None)))
    if origin is dict:
        return "a JSON object"
    if origin is tuple:
        return "a JSON list"
    names = {
        "int": "integer",
        "float": "number",
        "bool": "true or false",
        "str": "text",
        "Path": "path",
        "SecretStr": "secret text",
    }
    return names[annotation.__name__]


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stderr.write(f"wrote {PAGE.name}\n")
