"""Checks looked at side by side, within a bounded time, whatever they meet; and what they found, on one screen."""

from __future__ import annotations

import json
import queue
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from common.errors import K2Error

State = Literal["ok", "failed", "off"]
#: Says what was found; raises K2Error when that is bad, and Off when there is nothing to look at.
Look = Callable[[], str]


class Off(Exception):
    """There is nothing to look at; the text says why, and what would change that."""


@dataclass(frozen=True)
class Check:
    """One thing to look at, and what to do when it fails."""

    name: str
    look: Look
    todo: str


@dataclass(frozen=True)
class Found:
    """What a check found. `todo` is None unless it failed."""

    name: str
    state: State
    what: str
    todo: str | None
    took_ms: float


def examined(checks: Sequence[Check], *, timeout_s: float) -> list[Found]:
    """What each check found, in their order, all looked at side by side: returns within `timeout_s`, come what may.

    A look that does not return by then has failed, and is left to itself.
    """
    found: dict[str, Found] = {}
    arrived: queue.SimpleQueue[Found] = queue.SimpleQueue()
    for check in checks:
        threading.Thread(target=lambda one=check: arrived.put(_looked(one)), name=check.name, daemon=True).start()
    deadline_s = time.monotonic() + timeout_s
    while len(found) < len(checks):
        try:
            one = arrived.get(timeout=max(0.0, deadline_s - time.monotonic()))
        except queue.Empty:
            break
        found[one.name] = one
    late = f"no answer within {timeout_s:g} s"
    return [
        found.get(check.name) or Found(check.name, "failed", late, check.todo, timeout_s * 1_000) for check in checks
    ]


def _looked(check: Check) -> Found:
    began_s = time.monotonic()
    state: State = "ok"
    try:
        what = check.look()
    except Off as off:
        state, what = "off", str(off)
    except K2Error as error:
        state, what = "failed", error.message
    except Exception as error:  # noqa: BLE001  (whatever breaks in one check, the others are shown, and this one too)
        state, what = "failed", f"{type(error).__name__}: {error}"
    took_ms = round((time.monotonic() - began_s) * 1_000, 1)
    return Found(check.name, state, " ".join(what.split()), check.todo if state == "failed" else None, took_ms)


def lines_of(found: Sequence[Found], *, width: int) -> Iterator[str]:
    """The screen: a line a check, and below each that failed what to do."""
    name_chars = max(len(one.name) for one in found)
    indent = " " * (name_chars + 10)
    for one in found:
        yield from _folded(f"{one.state:<8}{one.name:<{name_chars}}  {one.what}", indent, width)
        if one.todo is not None:
            yield from _folded(f"{indent}-> {one.todo}", f"{indent}   ", width)


def _folded(line: str, indent: str, width: int) -> Iterator[str]:
    yield from textwrap.wrap(
        line, max(width, len(indent) + 40), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def to_json(found: Sequence[Found]) -> str:
    checks = [asdict(one) for one in found]
    return json.dumps({"ok": all(one.state != "failed" for one in found), "checks": checks})
