"""The documents are held to the code: links resolve, modules and errors that are named exist, settings are current."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import click
import pytest

import common.errors
from common.errors import K2Error
from common.settings import ALL_SETTINGS
from k2.cli import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ROOMS = ("clients", "common", "flight_server", "ingest", "k2", "sink")
ARCHITECTURE = (ROOT / "docs/ARCHITECTURE.md").read_text()


def settings_page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("settings_page", ROOT / "docs/settings_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_documents_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} leads nowhere"
        assert linked.is_relative_to(ROOT)
        assert not anchor or anchor in anchors(linked), f"{target} names no heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_and_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(rf"`((?:{'|'.join((*ROOMS, 'tests', 'docs', 'docker'))})/[\w./*-]*)`", page.read_text())
    missing = [name for name in named if not list(ROOT.glob(name.rstrip("/")))]
    assert not missing


def test_the_architecture_names_every_module() -> None:
    described = set(re.findall(rf"`((?:{'|'.join(ROOMS)})/[\w/]+\.py)`", ARCHITECTURE))
    modules = {str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert {module for module in modules if not module.endswith(("__init__.py", "_pb2.py"))} <= described


def test_every_decision_is_listed() -> None:
    index = (ROOT / "docs/decisions/README.md").read_text()
    pages = [path for path in (ROOT / "docs/decisions").glob("*.md") if path.name != "README.md"]
    assert pages
    for page in pages:
        title = page.read_text().splitlines()[0].removeprefix("# ")
        assert f"- [{title}]({page.name})" in index
        assert page.name.startswith(title.partition(":")[0])


def test_the_settings_page_is_current() -> None:
    generated = settings_page()
    assert generated.page() == generated.PAGE.read_text(), "run `just docs`"


def test_every_setting_is_on_the_settings_page() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    for settings in ALL_SETTINGS:
        for name in settings.model_fields:
            assert f"| `{settings.model_config['env_prefix']}{name.upper()}` |" in page


def _variables(option: click.Parameter) -> list[str]:
    given = option.envvar
    return [given] if isinstance(given, str) else list(given or ())


def test_variables_that_the_documents_name_are_settings() -> None:
    known = {f"{s.model_config['env_prefix']}{name.upper()}" for s in ALL_SETTINGS for name in s.model_fields}
    of_the_tests = {
        "K2_REQUIRE_KAFKA",
        "K2_REQUIRE_CATALOGS",
        "K2_REQUIRE_CLIENTS",
        "K2_REQUIRE_REGISTRY",
        "K2_REQUIRE_S3",
    }
    query = cli.get_command(click.Context(cli), "query")
    assert query is not None
    of_the_client = {name for option in query.params for name in _variables(option)} | {
        "K2_PASSWORD",
        "K2_TOKEN",
    }
    for page in PAGES:
        named = set(re.findall(r"\bK2_[A-Z][A-Z0-9_]+\b", page.read_text()))
        assert named <= known | of_the_tests | of_the_client, page


def test_the_architecture_names_every_error() -> None:
    ours = {
        name for name, value in vars(common.errors).items() if isinstance(value, type) and issubclass(value, K2Error)
    }
    tree = ARCHITECTURE.partition("K2Error(retryable)")[2].partition("A message is one sentence")[0]
    assert ours - {"K2Error"} <= set(re.findall(r"\w+", tree))
