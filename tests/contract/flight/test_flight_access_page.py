"""docs/access.md is run: each block of Python and each JDBC URL against the kind of server that it is about."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import jpype
import pytest
from prometheus_client import CollectorRegistry

from common.settings import AccessSettings, FlightSettings
from flight_server.access.credentials import api_key_digest, new_api_key
from flight_server.access.gate import Gate
from flight_server.access.passwords import PasswordHash
from flight_server.service.service import FlightService
from tests.support import jdbc
from tests.support.certificates import Authority
from tests.support.fake_lake import FakeLake
from tests.support.missing import MissingTool, skip_or_fail

PAGE = (Path(__file__).resolve().parents[3] / "docs/access.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
URLS = re.findall(r"^    (jdbc:\S+)$", PAGE, re.MULTILINE)
KEY = new_api_key()
ADDRESS = "localhost:50051"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the page speaks of."""
    folder = tmp_path_factory.mktemp("page")
    authority = Authority(folder)
    authority.server()
    authority.client("ops")
    (folder / "access.toml").write_text(
        f'[[users]]\nname = "ada"\npassword = "{PasswordHash.of("open sesame", log_n=4).to_text()}"\n'
        f'[[api_keys]]\nname = "dashboards"\nsha256 = "{api_key_digest(KEY).hex()}"\n'
        '[[certificates]]\nname = "ops"\nadmin = true\n'
    )
    (folder / "access.toml").chmod(0o600)
    return folder


@contextlib.contextmanager
def running(settings: FlightSettings, folder: Path) -> Iterator[str]:
    certificates = settings.tls_client_ca_file is not None
    gate = Gate.from_settings(AccessSettings.load(file=folder / "access.toml"), certificates=certificates)
    lake = FakeLake(10, settings)
    service = FlightService(lake, settings, CollectorRegistry(), gate=gate)
    service.start()
    try:
        yield f"localhost:{service.port}"
    finally:
        service.stop()
        lake.close()


@pytest.fixture(scope="module")
def address_for(folder: Path) -> Iterator[Callable[[str], str]]:
    """Where the server is that a text of the page is about: in the clear, with TLS, with certificates on both sides."""
    tls = {"tls_cert_file": folder / "localhost.crt", "tls_key_file": folder / "localhost.key"}
    with contextlib.ExitStack() as stack:
        plain, secure, mutual = (
            stack.enter_context(running(FlightSettings.load(port=0, threads=1, **files), folder))
            for files in ({}, tls, {**tls, "tls_client_ca_file": folder / "ca.pem"})
        )

        def choose(text: str) -> str:
            if "ops.crt" in text:
                return mutual
            return secure if "ca.pem" in text else plain

        yield choose


def titled(text: str) -> str:
    kind = next(kind for kind in ("jdbc:", "dbapi", "clients.", "flight.") if kind in text).strip(":.")
    return f"{kind}, {'certificate' if 'ops.crt' in text else 'tls' if 'ca.pem' in text else 'clear'}"


def test_the_page_has_every_client_and_every_kind_of_server() -> None:
    titles = {titled(text) for text in (*BLOCKS, *URLS)}
    assert titles >= {
        f"{kind}, {how}" for kind in ("dbapi", "flight", "jdbc") for how in ("clear", "tls", "certificate")
    }
    assert titles >= {"clients, clear", "clients, tls"}
    assert all(ADDRESS in text for text in (*BLOCKS, *URLS))


@pytest.mark.parametrize("block", BLOCKS, ids=titled)
def test_a_block_of_python(
    block: str,
    address_for: Callable[[str], str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("K2_TOKEN", KEY)
    code = compile(block.replace(ADDRESS, address_for(block)), "docs/access.md", "exec")
    exec(code, {"__name__": "page"})
    shown = capsys.readouterr().out
    assert "42" in shown or "ActionType" in shown or "authorization" in shown


@pytest.mark.parametrize("url", URLS, ids=titled)
def test_a_jdbc_url(url: str, address_for: Callable[[str], str], folder: Path) -> None:
    try:
        jdbc.start_jvm()
    except MissingTool as why:
        skip_or_fail(why)
    # A JVM's working directory is where it was started: its files are named in full.
    here = re.sub(r"=(ca\.pem|ops\.\w+)", rf"={folder}/\1", url).replace("$K2_TOKEN", KEY)
    connect = jpype.JClass("java.sql.DriverManager").getConnection
    with contextlib.closing(connect(here.replace(ADDRESS, address_for(url)))) as connection:
        assert jdbc.query(connection, "SELECT 42")[1] == [[42]]
