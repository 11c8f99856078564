"""`k2 doctor`: on one screen, whether all that K2 needs can be reached, and what to do about what cannot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from importlib import metadata
from pathlib import Path
from typing import Final

import click

from clients import connect
from common.clock import SystemClock
from common.errors import K2Error, Unavailable
from common.iceberg import listed_tables, touch_store
from common.log import KafkaLog
from common.registry import UnknownSchema, open_registry
from common.settings import FlightSettings, IngestSettings, KafkaSettings, LakeSettings
from ingest.reference import ReferenceData
from ingest.rest import RestClient
from ingest.venues.registry import VENUES, Venue
from ingest.websocket import open_websocket
from k2.checks import Check, Off, examined, lines_of, to_json
from k2.console import DATA_DIR, FILE, start_logging

#: Beyond this Kafka's, the exchange's and our times no longer tell which came first.
_SKEW_S_MAX: Final = 1.0
_DISK_FREE_MIN: Final = 1024**3
_DISK_FREE_SHARE_MIN: Final = 0.05
#: What is given to the part that is asked, of the time that is given to the check.
_SHARE_OF_TIME: Final = 0.8
#: No registry has a schema of this id: an answer that says so is an answer.
_NO_SCHEMA: Final = 2**31 - 1
_NO_VENUE: Final = "none"
_VERSIONS: Final = ("duckdb", "pyarrow", "pyiceberg", "confluent-kafka", "adbc-driver-flightsql")


class Exchange:
    """A venue's REST interface, its websocket, and how far its clock is from ours."""

    def __init__(self, venue: Venue, url: str | None, settings: IngestSettings, *, timeout_s: float) -> None:
        self._venue = venue
        self._url = (url or venue.url(settings)).partition(",")[0].strip()
        rest = venue.rest_url(settings) if url is None else None
        self._rest_url = (rest or "").partition(",")[0].strip() or venue.rest.rest_url_of(self._url)
        self._timeout_s = timeout_s
        self._offset_s: Future[tuple[float, float]] = Future()

    def rest(self) -> str:
        try:
            if self._rest_url is None:
                raise Off(f"no REST interface is known beside {self._url}; K2_INGEST_BINANCE_REST_URL names one")
            offset_s, took_s = asyncio.run(self._asked_for_time(self._rest_url))
        except BaseException as error:
            self._offset_s.set_exception(error)
            raise
        self._offset_s.set_result((offset_s, took_s))
        return f"{self._rest_url} tells its time in {took_s * 1_000:.0f} ms"

    def websocket(self) -> str:
        return asyncio.run(self._echoed())

    def clock(self) -> str:
        try:
            offset_s, took_s = self._offset_s.result(self._timeout_s)
        except (K2Error, Off, LateError):
            raise Off("not known, as the exchange does not tell its time") from None
        what = f"this machine's clock is {abs(offset_s) * 1_000:.0f} ms {'behind' if offset_s > 0 else 'ahead of'}"
        text = f"{what} {self._venue.title}'s, give or take {took_s * 500:.0f} ms"
        if abs(offset_s) - took_s / 2 > _SKEW_S_MAX:
            raise K2Error(f"{text}; more than {_SKEW_S_MAX:g} s")
        return text

    async def _asked_for_time(self, url: str) -> tuple[float, float]:
        """(the venue's clock minus ours, how long the answer took), in seconds."""
        rest = RestClient([url], weight_per_minute_max=100, timeout_s=self._timeout_s)
        clock = SystemClock()
        try:
            began_us = clock.now_us()
            theirs_us = await ReferenceData(rest, self._venue.rest).time_us()
            ended_us = clock.now_us()
        finally:
            await rest.close()
        return (theirs_us - (began_us + ended_us) / 2) / 1e6, (ended_us - began_us) / 1e6

    async def _echoed(self) -> str:
        session = self._venue.session([self._venue.symbols.partition(",")[0]], self._venue.streams)
        url = self._url.rstrip("/") + session.path_of(session.streams)
        websocket = await open_websocket(url, timeout_s=self._timeout_s, now_us=SystemClock().now_us)
        try:
            echo = await websocket.ask_alive()
            if echo is None:
                raise K2Error(f"{self._url} took the connection and ended it at once")
            took_s = await asyncio.wait_for(echo, self._timeout_s)
        except TimeoutError:
            raise K2Error(f"{self._url} took the connection and does not answer a ping") from None
        finally:
            websocket.abort()
        return f"{self._url} answers a ping in {took_s * 1_000:.0f} ms"


def broker(kafka: KafkaSettings) -> str:
    if not kafka.bootstrap_servers:
        raise Off(
            "K2_KAFKA_BOOTSTRAP_SERVERS is not set: each command would start a broker of its own, gone when it ends"
        )
    log = KafkaLog(kafka)
    cluster_id = log.cluster_id()
    topics = log.topics(r"^(market|ops)\.")
    return f"{kafka.bootstrap_servers} is the cluster {cluster_id}; {len(topics)} topics of K2's"


def registry(kafka: KafkaSettings) -> str:
    if not kafka.bootstrap_servers and not kafka.schema_registry_url:
        raise Off("the embedded one, which is at the broker, and no broker is set")
    where = kafka.schema_registry_url or f"the embedded one, at {kafka.bootstrap_servers},"
    with contextlib.suppress(UnknownSchema):
        open_registry(kafka).schema_text(_NO_SCHEMA)
    return f"{where} answers"


def catalog(lake: LakeSettings) -> str:
    if lake.catalog_uri is None and "uri" not in lake.catalog_properties:
        file = lake.data_dir / "catalog.db"
        if not file.exists():
            raise Off(f"there is no catalog in {lake.data_dir} yet; the first `k2 sink` makes it")
    tables = listed_tables(lake)
    return f"{_shown(lake.resolved_catalog_uri)} has {len(tables)} tables"


def store(lake: LakeSettings) -> str:
    warehouse = lake.resolved_warehouse
    if warehouse.startswith("file:") and not Path(warehouse.removeprefix("file://")).exists():
        raise Off(f"there is no {warehouse} yet; the first `k2 sink` makes it")
    touch_store(lake)
    return f"{warehouse} takes a file, gives it back, and deletes it"


def flight(uri: str, user: str | None, ca_file: Path | None, *, timeout_s: float) -> str:
    began_s = time.monotonic()
    password = os.environ.get("K2_PASSWORD") if user is not None else None
    token = os.environ.get("K2_TOKEN") if user is None else None
    with connect(
        uri, username=user, password=password, token=token or None, ca_file=ca_file, connect_timeout_s=timeout_s
    ):
        return f"{uri} answers SELECT 1 in {(time.monotonic() - began_s) * 1_000:.0f} ms"


def disk(folder: Path) -> str:
    """The disk of the folder, or of where it would be made."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    usage = shutil.disk_usage(there)
    text = f"{usage.free / 1024**3:.1f} of {usage.total / 1024**3:.1f} GiB are free at {there}"
    if usage.free < _DISK_FREE_MIN or usage.free < _DISK_FREE_SHARE_MIN * usage.total:
        raise K2Error(f"{text}; less than {_DISK_FREE_SHARE_MIN:.0%} or 1 GiB")
    if not os.access(there, os.W_OK):
        raise K2Error(f"{there} cannot be written")
    return text


def versions() -> str:
    parts = [f"K2 {metadata.version('k2')}", f"Python {sys.version.partition(' ')[0]}"]
    return ", ".join([*parts, *(f"{name} {metadata.version(name)}" for name in _VERSIONS)])


def _shown(uri: str) -> str:
    """The URI without the password that it may hold."""
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def checks_of(
    venues: Sequence[Venue],
    *,
    url: str | None,
    uri: str,
    user: str | None,
    ca_file: Path | None,
    lake: LakeSettings,
    timeout_s: float,
) -> list[Check]:
    """Everything that is looked at, in the order in which it is shown. Raises SettingsError."""
    within_s = timeout_s * _SHARE_OF_TIME
    kafka = KafkaSettings.load()
    kafka = kafka.model_copy(update={"request_timeout_ms": max(100, round(within_s * 1_000))})
    checks = []
    for venue in venues:
        exchange = Exchange(venue, url, IngestSettings.load(), timeout_s=within_s)
        address = f"K2_INGEST_{venue.name.upper()}_URL"
        reach = f"check the network and proxy of this machine, and {address}"
        checks += [
            Check(f"{venue.name} REST", exchange.rest, f"{reach}; a feed goes on without it, but fills no gaps"),
            Check(f"{venue.name} feed", exchange.websocket, reach),
            Check(f"{venue.name} clock", exchange.clock, "let this machine follow a time server (NTP)"),
        ]
    return [
        *checks,
        Check(
            "broker",
            lambda: broker(kafka),
            "start Kafka, or `k2 broker` on a laptop; check K2_KAFKA_BOOTSTRAP_SERVERS, and who may come in there",
        ),
        Check(
            "registry",
            lambda: registry(kafka),
            "start the registry and check K2_KAFKA_SCHEMA_REGISTRY_URL; without one the schemas are at the broker",
        ),
        Check(
            "catalog",
            lambda: catalog(lake),
            "start the catalog's database and check K2_LAKE_CATALOG_URI; if it is lost, see docs/runbook.md",
        ),
        Check(
            "store",
            lambda: store(lake),
            "check that the store runs, K2_LAKE_WAREHOUSE, and the keys in K2_LAKE_CATALOG_PROPERTIES",
        ),
        Check(
            "Flight SQL",
            lambda: flight(uri, user, ca_file, timeout_s=within_s),
            "start `k2 serve`, or name its address with --uri; credentials are --user with K2_PASSWORD, or K2_TOKEN",
        ),
        Check("disk", lambda: disk(lake.data_dir), "make room, or choose another K2_LAKE_DATA_DIR"),
        Check("versions", versions, "install K2 again"),
    ]


def _default_uri(settings: FlightSettings) -> str:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    return f"grpc{'+tls' if settings.tls_cert_file else ''}://{host}:{settings.port}"


@click.command()
@click.option(
    "--venue",
    type=click.Choice([*VENUES, _NO_VENUE]),
    default="binance",
    show_default=True,
    help="Whose interfaces are looked at.",
)
@click.option("--url", help="wss://..., or of `k2 simulate`.  [K2_INGEST_..._URL]")
@click.option("--uri", envvar="K2_URI", help="Of the Flight SQL server.  [K2_URI, K2_FLIGHT_HOST and _PORT]")
@click.option("--user", envvar="K2_USER", help="Also K2_USER; its password is K2_PASSWORD.")
@click.option("--ca-file", type=FILE, envvar="K2_CA_FILE", help="PEM to trust, with grpc+tls://.  Also K2_CA_FILE.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.5, 120), default=5.0, show_default=True, help="Seconds."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of the screen.")
@DATA_DIR
@click.pass_obj
def doctor(
    debug: bool,
    venue: str,
    url: str | None,
    uri: str | None,
    user: str | None,
    ca_file: Path | None,
    timeout_s: float,
    as_json: bool,
    data_dir: Path | None,
) -> None:
    """Look whether exchange, broker, registry, catalog, store and server can be reached, and say what to do if not.

    All of it is looked at at once, within --timeout. `off` is what the settings do not ask for. Nothing is changed.
    Ends with 3 when anything failed.
    """
    start_logging("doctor", debug, quiet=True)
    found = examined(
        checks_of(
            [] if venue == _NO_VENUE else [VENUES[venue]],
            url=url,
            uri=uri or _default_uri(FlightSettings.load()),
            user=user,
            ca_file=ca_file,
            lake=LakeSettings.load(data_dir=data_dir),
            timeout_s=timeout_s,
        ),
        timeout_s=timeout_s,
    )
    if as_json:
        click.echo(to_json(found))
    else:
        for line in lines_of(found, width=shutil.get_terminal_size().columns):
            click.echo(line)
    failed = [one.name for one in found if one.state == "failed"]
    if failed:
        raise Unavailable(f"{len(failed)} of {len(found)} checks failed: {', '.join(failed)}; see what to do above")
