"""docs/sql.md is held to the server: every function that there is is on it as it is."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
from test_docs import ROOT


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sql_page", ROOT / "docs/sql_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(page: ModuleType) -> None:
    assert page.page() == page.PAGE.read_text(encoding="utf-8"), "run `just docs`"
