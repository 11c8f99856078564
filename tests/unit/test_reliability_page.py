"""docs/reliability.md is held to the fault matrix: every cell stands there once, and nothing was lost or doubled.

That the page says what the runs measure is held by the runs themselves.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
from test_docs import ROOT

from tests.support.fault_matrix import CATALOGS, CELLS, PAGE, Outcome, cells_of_the_page


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reliability_page", ROOT / "docs/reliability_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_cell_stands_on_the_page_and_is_nothing() -> None:
    cells = cells_of_the_page()
    assert set(cells) == {(catalog, fault, step) for catalog in CATALOGS for fault, step in CELLS}
    assert set(cells.values()) == {Outcome(lost=0, doubled=0, left=0)}


def test_the_page_is_as_it_would_be_written(writer: ModuleType) -> None:
    none = {"lost": 0, "doubled": 0, "left": 0}
    measured = {catalog: {f"{fault.name} {step.name}": none for fault, step in CELLS} for catalog in CATALOGS}
    text = PAGE.read_text(encoding="utf-8")
    assert writer.page(text, writer.table(measured)) == text, "run `just docs`"


def test_a_cell_that_was_not_measured_is_not_written(writer: ModuleType) -> None:
    with pytest.raises(KeyError):
        writer.table({catalog: {} for catalog in CATALOGS})
