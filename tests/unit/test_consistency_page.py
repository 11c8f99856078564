"""The pages on consistency and reliability name tests that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "consistency.md").read_text()
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()
_TEST = r"`(tests/[\w/]+\.py)::(\w+)`"
NAMED = sorted(set(re.findall(_TEST, PAGE + RELIABILITY)))
RULES = range(1, 11)


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_test_that_is_named_is_collected(file: str, name: str) -> None:
    """In a file that pytest collects, at its outermost level, under a name that it takes for a test."""
    path = ROOT / file
    assert path.name.startswith("test_") and name.startswith("test_")
    functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert name in functions, f"{file}::{name} is named in docs/consistency.md or docs/reliability.md, and is not there"


def test_every_rule_has_its_tests() -> None:
    rows = [line.split("|")[1].split()[0] for line in PAGE.splitlines() if line.startswith("| ") and "::test_" in line]
    assert {int(rule) for rule in rows if rule.isdigit()} == set(RULES)
    assert len(set(re.findall(_TEST, PAGE))) > 3 * len(RULES)
