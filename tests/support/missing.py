"""What a test needs beyond Python: it skips with the reason where that is absent, and fails where it was promised."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

#: Set in CI: the clients of other languages have to be there.
REQUIRE = "K2_REQUIRE_CLIENTS"


class MissingTool(Exception):
    """A program or a package that the tests drive cannot be had on this machine; the text says why."""


def skip_or_fail(why: MissingTool, require: str = REQUIRE) -> NoReturn:
    """Skip the test, or fail it where the environment says, by this variable, that nothing may be missing."""
    if os.environ.get(require) == "1":
        pytest.fail(f"{require} is set, and {why}")
    pytest.skip(str(why))
