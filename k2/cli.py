"""The `k2` command line. Each subcommand runs one part against the same settings; `demo` runs all of them."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import click
from prometheus_client import CollectorRegistry

from clients import connect
from clients.formats import BINARY_FORMATS, FORMATS, Format, write
from common.errors import K2Error, SettingsError
from common.settings import (
    ALL_SETTINGS,
    AccessSettings,
    FlightSettings,
    IngestSettings,
    KafkaSettings,
    LakeSettings,
    SinkSettings,
    TelemetrySettings,
)
from common.telemetry import Readiness, configure_logging, correlation, serve_metrics
from flight_server.access.gate import Gate
from ingest.faults import FaultPlan
from ingest.market import Market, market_symbols
from ingest.service import IngestService
from ingest.simulator import Simulator
from k2.access import access
from k2.backup import backup, restore
from k2.bars import bars
from k2.broker import EmbeddedBroker
from k2.demo import Demo, DemoOptions
from k2.runner import (
    EXIT_DEFECT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    EXIT_WRONG_USE,
    report,
    run_until_stopped,
)
from k2.stack import Replay, ReplayDone, Server
from k2.tables import tables
from sink.service import SinkService

_EPILOG = (
    f"Exit codes: 0 done or stopped by a signal; {EXIT_FAILED} failed; {EXIT_WRONG_USE} wrong use or settings; "
    f"{EXIT_UNREACHABLE} a broker, catalog or server cannot be reached; {EXIT_REFUSED} the statement or the job was "
    f"refused; {EXIT_DEFECT} a defect of K2; {EXIT_INTERRUPTED} interrupted."
)
#: How long a thread that computes in Python may keep another one waiting. To publish what arrived takes a dozen turns;
#: Python's own 5 ms for each of them would be 60 ms while another thread reads a snapshot's metadata.
_SWITCH_S = 0.0005
_FILE = click.Path(path_type=Path, dir_okay=False)
_DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="K2's folder: catalog, warehouse, state.  [K2_LAKE_DATA_DIR, .k2]",
)


@click.group(epilog=_EPILOG, invoke_without_command=True)
@click.option("--debug", is_flag=True, help="Show debug logs, and a traceback where K2 fails.")
@click.option("--check-settings", is_flag=True, help="Check every K2_... variable, list what is in force, and end.")
@click.version_option(package_name="k2", prog_name="k2")
@click.pass_context
def cli(context: click.Context, debug: bool, check_settings: bool) -> None:
    """K2: exchange feeds through Kafka into Iceberg, served by Arrow Flight SQL, each answer at one exact cut.

    Settings are K2_... environment variables; `k2 --check-settings` lists them.
    """
    context.obj = debug
    if check_settings:
        _list_settings()
        context.exit()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@click.option(
    "--replay",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Capture file(s) to replay, several after one --replay.",
)
@click.option("--live", is_flag=True, help="Take the real exchange instead of the simulator.")
@click.option("--symbols", help="Comma separated; with --live or a replay's own.  [BTCUSDT,ETHUSDT]")
@click.option("--rate", default=1_000.0, show_default=True, help="Trades per second of the simulated market.")
@click.option("--speed", default="1", show_default=True, help="Of a replay: a factor, or max.")
@click.option("--seconds", default=10.0, show_default=True, help="With --once and no replay: how long the market runs.")
@_DATA_DIR
@click.option("--flight-port", type=int, default=0, help="Port of the Flight SQL server.  [any free one]")
@click.option("--once", is_flag=True, help="End when everything is committed and the queries have run.")
@click.option("--json", "as_json", is_flag=True, help="No panel; print one JSON summary at the end.")
@click.argument("more", nargs=-1, type=click.Path(path_type=Path))
@click.pass_obj
def demo(debug: bool, /, **given: Any) -> None:
    """Run everything in this terminal: market -> ingest -> Kafka -> Iceberg + tail -> Flight SQL -> queries.

    Without options: a simulated market on an embedded broker and a temporary warehouse, until Ctrl-C.
    Files after the options belong to --replay.
    """
    replay = (*given.pop("replay"), *given.pop("more"))
    symbols = given.pop("symbols")
    if given["live"] and replay:
        raise SettingsError("--live and --replay exclude each other; choose one")
    options = DemoOptions(
        replay=replay,
        symbols=_symbols(symbols) if symbols else None,
        speed=_speed(given.pop("speed")),
        **given,
    )
    _logging("demo", debug, quiet=True)
    Demo(options).run()


@cli.group()
def ingest() -> None:
    """Take a feed into Kafka."""


@ingest.command()
@click.option("--symbols", default="BTCUSDT,ETHUSDT", show_default=True, help="Comma separated.")
@click.option("--url", help="wss://... of the exchange or of `k2 simulate`.  [K2_INGEST_BINANCE_URL]")
@_DATA_DIR
@click.pass_obj
def binance(debug: bool, symbols: str, url: str | None, data_dir: Path | None) -> None:
    """Trades and best quotes of Binance Spot, each once, until stopped."""
    registry = _logging("ingest", debug)
    state_dir = _lake(data_dir).data_dir / "ingest"
    with _kafka() as kafka:
        service = IngestService(
            _symbols(symbols),
            kafka=kafka,
            settings=IngestSettings.load(),
            url=url,
            state_dir=state_dir,
            registry=registry,
        )
        run_until_stopped(service, lambda: _say(f"ingesting {symbols} into {kafka.bootstrap_servers}"))


@ingest.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--symbols", default="BTCUSDT,ETHUSDT", show_default=True, help="Comma separated; others in the files are left out."
)
@click.option("--speed", default="max", show_default=True, help="A factor, or max.")
@_DATA_DIR
@click.pass_obj
def replay(debug: bool, files: tuple[Path, ...], symbols: str, speed: str, data_dir: Path | None) -> None:
    """Captured frames of Binance (`<ns> <json>` lines, .gz or plain), through the same client; ends with the files."""
    registry = _logging("ingest", debug)
    state_dir = _lake(data_dir).data_dir / "ingest"
    simulator = Simulator.replay(files, speed=_speed(speed))
    with _kafka() as kafka:
        simulator.start()
        try:
            service = IngestService(
                _symbols(symbols),
                kafka=kafka,
                settings=IngestSettings.load(connections=1),  # each connection would get the whole replay
                url=simulator.url,
                state_dir=state_dir,
                registry=registry,
            )
            run_until_stopped(Replay(simulator, service), lambda: _say(f"replaying into {kafka.bootstrap_servers}"))
        except ReplayDone:
            pass
        finally:
            simulator.stop()
        stats = service.stats()
        _say(f"{stats.acknowledged} messages acknowledged, {sum(stats.duplicates_dropped.values())} duplicates dropped")


@cli.command()
@_DATA_DIR
@click.pass_obj
def sink(debug: bool, data_dir: Path | None) -> None:
    """Take Kafka into the Iceberg tables, exactly once, until stopped."""
    registry = _logging("sink", debug)
    lake = _lake(data_dir)
    with _kafka() as kafka:
        service = SinkService(kafka, lake, SinkSettings.load(), registry=registry)
        run_until_stopped(service, lambda: _say(f"{kafka.bootstrap_servers} -> {lake.resolved_warehouse}"))


@cli.command()
@_DATA_DIR
@click.option("--host", help="Address to listen on.  [K2_FLIGHT_HOST, 127.0.0.1]")
@click.option("--port", type=int, help="0 = any free one.  [K2_FLIGHT_PORT, 50051]")
@click.option("--access-file", type=_FILE, help="Who may come in: docs/access.md.  [K2_ACCESS_FILE]")
@click.option("--tls-cert", "tls_cert_file", type=_FILE, help="PEM certificate chain.  [K2_FLIGHT_TLS_CERT_FILE]")
@click.option("--tls-key", "tls_key_file", type=_FILE, help="PEM key.  [K2_FLIGHT_TLS_KEY_FILE]")
@click.option(
    "--tls-client-ca",
    "tls_client_ca_file",
    type=_FILE,
    help="Ask every client for a certificate of these authorities.  [K2_FLIGHT_TLS_CLIENT_CA_FILE]",
)
@click.pass_obj
def serve(debug: bool, /, data_dir: Path | None, access_file: Path | None, **flight: Any) -> None:
    """Serve market.* by Arrow Flight SQL: the Iceberg snapshot and the Kafka tail at one exact cut.

    Without credentials it is open, and listens on loopback only.
    """
    readiness = Readiness()
    registry = _logging("flight_server", debug, readiness=readiness)
    settings = FlightSettings.load(**flight)
    certificates = settings.tls_client_ca_file is not None
    gate = Gate.from_settings(AccessSettings.load(file=access_file), certificates=certificates)
    gate.check_address(settings.host)
    with _kafka() as kafka:
        service = Server(kafka, _lake(data_dir), settings, registry, gate)
        readiness.check = service.check_ready
        run_until_stopped(service, lambda: _say(f"Flight SQL at {service.flight.uri}"))


@cli.command()
@click.option("--port", type=int, default=9092, show_default=True, help="0 = any free one.")
@click.pass_obj
def broker(debug: bool, port: int) -> None:
    """Run the embedded Kafka broker by itself: memory only, for a laptop; what it holds ends with it."""
    _logging("broker", debug)
    service = EmbeddedBroker(port)
    run_until_stopped(
        _Broker(service),
        lambda: _say(
            f"broker at {service.bootstrap_servers}: export K2_KAFKA_BOOTSTRAP_SERVERS={service.bootstrap_servers}"
        ),
    )


@cli.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--symbols", type=int, default=20, show_default=True, help="How many symbols, without files.")
@click.option("--rate", default=1_000.0, show_default=True, help="Trades per second, without files.")
@click.option("--seed", default=1, show_default=True, help="The same seed, the same market; without files.")
@click.option("--speed", default="1", show_default=True, help="Of a replay: a factor, or max.")
@click.option("--port", type=int, default=9443, show_default=True, help="0 = any free one.")
@click.option("--faults", type=int, metavar="SEED", help="Cut, stall, withhold ... for a day, by this seed's plan.")
@click.option("--faults-every", default=5.0, show_default=True, help="Seconds between two faults, on average.")
@click.pass_obj
def simulate(
    debug: bool,
    files: tuple[Path, ...],
    symbols: int,
    rate: float,
    seed: int,
    speed: str,
    port: int,
    faults: int | None,
    faults_every: float,
) -> None:
    """Serve Binance's websocket protocol and its REST beside it on loopback, from captures or a random market."""
    _logging("simulator", debug)
    factor = _speed(speed)
    plan = None if faults is None else FaultPlan.seeded(faults, seconds=86_400, every_s=faults_every)
    if files:
        service = Simulator.replay(files, speed=factor, port=port, faults=plan)
        names = "its own symbols"
    else:
        market = Market(market_symbols(symbols), seed=seed)
        service = Simulator.random_market(market, trades_per_s=rate, port=port, faults=plan)
        names = ",".join(market.symbols)
    run_until_stopped(service, lambda: _say(f"simulating {names} at {service.url}"))


@cli.command()
@click.argument("sql")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("--uri", default="grpc://127.0.0.1:50051", show_default=True, envvar="K2_URI", help="Also K2_URI.")
@click.option("--user", envvar="K2_USER", help="Also K2_USER; its password is K2_PASSWORD, or is asked for.")
@click.option("--ca-file", type=_FILE, envvar="K2_CA_FILE", help="PEM to trust, with grpc+tls://.  Also K2_CA_FILE.")
@click.option("--output", type=_FILE, help="Write there instead of to the terminal.")
def query(sql: str, form: Format, uri: str, user: str | None, ca_file: Path | None, output: Path | None) -> None:
    """Run one statement and print its result; `-` reads the statement from standard input.

    An API key or another bearer token is read from K2_TOKEN.
    """
    if form in BINARY_FORMATS and output is None and sys.stdout.isatty():
        raise SettingsError(f"{form} is binary and this is a terminal; add --output FILE")
    text = sys.stdin.read() if sql == "-" else sql
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() and output is None else None
    password = token = None
    if user is not None:
        password = os.environ.get("K2_PASSWORD") or click.prompt("Password", hide_input=True, err=True)
    else:
        token = os.environ.get("K2_TOKEN") or None
    with (
        connect(uri, username=user, password=password, token=token, ca_file=ca_file) as connection,
        connection.stream(text) as result,
        _output(output) as out,
    ):
        write(result.schema, result, form, out, width=width)


cli.add_command(access)
cli.add_command(backup)
cli.add_command(restore)
cli.add_command(bars)
cli.add_command(tables)


class _Broker:
    """The embedded broker in the shape of a service."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self._broker = broker
        self._stopped = False

    def start(self) -> None:
        self._broker.start()

    def stop(self, timeout_s: float = 4.0) -> None:
        self._stopped = True
        self._broker.stop()

    @property
    def failure(self) -> BaseException | None:
        if self._stopped or self._broker.running:
            return None
        return K2Error("the broker ended by itself; start it again")


def main() -> None:
    """The console script: never a traceback without --debug."""
    debug = "--debug" in sys.argv[1:]
    sys.setswitchinterval(_SWITCH_S)
    try:
        with correlation(None):
            cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_WRONG_USE)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(EXIT_FAILED)
    except Exception as error:  # noqa: BLE001  (the outermost frame: whatever it is, the user gets one sentence)
        sys.exit(report(error, debug=debug))


def _logging(
    service: str, debug: bool, *, quiet: bool = False, readiness: Readiness | None = None
) -> CollectorRegistry:
    """Logs and the Prometheus endpoint of one process; the registry its metrics go into."""
    level = "debug" if debug else "error" if quiet else None
    settings = TelemetrySettings.load(log_level=level)
    configure_logging(settings, service=service)
    registry = CollectorRegistry()
    port = serve_metrics(settings, registry, readiness)
    if port is not None:
        _say(f"metrics at http://{settings.metrics_host}:{port}/metrics")
    return registry


@contextlib.contextmanager
def _kafka() -> Iterator[KafkaSettings]:
    """The broker of the settings; without one, an embedded broker for as long as this runs."""
    settings = KafkaSettings.load()
    if settings.bootstrap_servers:
        yield settings
        return
    with EmbeddedBroker() as embedded:
        _say(
            f"K2_KAFKA_BOOTSTRAP_SERVERS is not set: embedded broker at {embedded.bootstrap_servers}, "
            "gone when this ends"
        )
        yield KafkaSettings.load(bootstrap_servers=embedded.bootstrap_servers)


def _lake(data_dir: Path | None) -> LakeSettings:
    lake = LakeSettings.load(data_dir=data_dir)
    lake.prepare()
    return lake


def _symbols(text: str) -> tuple[str, ...]:
    return tuple(part.strip().upper() for part in text.split(",") if part.strip())


def _speed(text: str) -> float:
    try:
        speed = math.inf if text == "max" else float(text)
    except ValueError:
        speed = math.nan
    if not speed > 0:
        raise SettingsError(f"--speed is a number above 0 or max, not {text!r}")
    return speed


def _say(line: str) -> None:
    sys.stderr.write(f"k2: {line}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        yield sys.stdout.buffer
        return
    try:
        opened: IO[bytes] = path.open("wb")
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({error.strerror}); choose another --output") from None
    with opened:
        yield opened  # type: ignore[misc]


def _list_settings() -> None:
    """Every variable with the value in force, in the form of an environment file."""
    for kind in ALL_SETTINGS:
        loaded = kind.load()
        for name, field in kind.model_fields.items():
            value = getattr(loaded, name)
            comment = f"  # {field.description}" if field.description else ""
            click.echo(f"{kind.model_config['env_prefix']}{name.upper()}={'' if value is None else value}{comment}")


if __name__ == "__main__":
    main()
