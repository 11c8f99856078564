"""The `k2` command line. Each subcommand runs one part against the same settings; `demo` runs all of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from common.errors import K2Error, SettingsError
from common.heap import heap
from common.settings import ALL_SETTINGS, AccessSettings, FlightSettings, SinkSettings
from common.telemetry import Readiness, correlation
from k2.broker import EmbeddedBroker
from k2.console import DATA_DIR, FILE, kafka_or_embedded, prepared_lake, say, speed_of, start_logging, symbols_of
from k2.lazy import LazyGroup
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

#: Commands in modules of their own. None is imported before it is asked for: `k2 ingest` needs neither DuckDB nor
#: PyIceberg, which would be 150 MB of its memory.
_LAZY = {
    "access": "k2.access:access",
    "backup": "k2.backup:backup",
    "bars": "k2.bars:bars",
    "dlq": "k2.dlq:dlq",
    "doctor": "k2.doctor:doctor",
    "export": "k2.export:export",
    "ingest": "k2.feeds:ingest",
    "maintain": "k2.maintain:maintain",
    "query": "k2.query:query",
    "restore": "k2.backup:restore",
    "shell": "k2.shell.command:shell",
    "simulate": "k2.feeds:simulate",
    "tables": "k2.tables:tables",
    "tail": "k2.tail:tail",
}
_EPILOG = (
    f"Exit codes: 0 done or stopped by a signal; {EXIT_FAILED} failed; {EXIT_WRONG_USE} wrong use or settings; "
    f"{EXIT_UNREACHABLE} a broker, catalog or server cannot be reached; {EXIT_REFUSED} the statement or the job was "
    f"refused; {EXIT_DEFECT} a defect of K2; {EXIT_INTERRUPTED} interrupted."
)
#: How long a thread that computes in Python may keep another one waiting. To publish what arrived takes a dozen turns;
#: Python's own 5 ms for each of them would be 60 ms while another thread reads a snapshot's metadata.
_SWITCH_S = 0.0005


@click.group(cls=LazyGroup, lazy=_LAZY, epilog=_EPILOG, invoke_without_command=True)
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
@DATA_DIR
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
    from k2.demo import Demo, DemoOptions

    replay = (*given.pop("replay"), *given.pop("more"))
    symbols = given.pop("symbols")
    if given["live"] and replay:
        raise SettingsError("--live and --replay exclude each other; choose one")
    options = DemoOptions(
        replay=replay,
        symbols=symbols_of(symbols) if symbols else None,
        speed=speed_of(given.pop("speed")),
        **given,
    )
    start_logging("demo", debug, quiet=True)
    Demo(options).run()


@cli.command()
@DATA_DIR
@click.pass_obj
def sink(debug: bool, data_dir: Path | None) -> None:
    """Take Kafka into the Iceberg tables, exactly once, until stopped."""
    from sink.service import SinkService

    registry = start_logging("sink", debug)
    lake = prepared_lake(data_dir)
    with kafka_or_embedded() as kafka:
        service = SinkService(kafka, lake, SinkSettings.load(), registry=registry)
        run_until_stopped(service, lambda: say(f"{kafka.bootstrap_servers} -> {lake.resolved_warehouse}"))


@cli.command()
@DATA_DIR
@click.option("--host", help="Address to listen on.  [K2_FLIGHT_HOST, 127.0.0.1]")
@click.option("--port", type=int, help="0 = any free one.  [K2_FLIGHT_PORT, 50051]")
@click.option("--access-file", type=FILE, help="Who may come in: docs/access.md.  [K2_ACCESS_FILE]")
@click.option("--tls-cert", "tls_cert_file", type=FILE, help="PEM certificate chain.  [K2_FLIGHT_TLS_CERT_FILE]")
@click.option("--tls-key", "tls_key_file", type=FILE, help="PEM key.  [K2_FLIGHT_TLS_KEY_FILE]")
@click.option(
    "--tls-client-ca",
    "tls_client_ca_file",
    type=FILE,
    help="Ask every client for a certificate of these authorities.  [K2_FLIGHT_TLS_CLIENT_CA_FILE]",
)
@click.pass_obj
def serve(debug: bool, /, data_dir: Path | None, access_file: Path | None, **flight: Any) -> None:
    """Serve market.* by Arrow Flight SQL: the Iceberg snapshot and the Kafka tail at one exact cut.

    Without credentials it is open, and listens on loopback only.
    """
    from flight_server.access.gate import Gate
    from k2.stack import Server

    readiness = Readiness()
    registry = start_logging("flight_server", debug, readiness=readiness)
    settings = FlightSettings.load(**flight)
    certificates = settings.tls_client_ca_file is not None
    gate = Gate.from_settings(AccessSettings.load(file=access_file), certificates=certificates)
    gate.check_address(settings.host)
    with kafka_or_embedded() as kafka:
        service = Server(kafka, prepared_lake(data_dir), settings, registry, gate)
        readiness.check = service.check_ready
        run_until_stopped(service, lambda: say(f"Flight SQL at {service.flight.uri}"))


@cli.command()
@click.option("--port", type=int, default=9092, show_default=True, help="0 = any free one.")
@click.pass_obj
def broker(debug: bool, port: int) -> None:
    """Run the embedded Kafka broker by itself: memory only, for a laptop; what it holds ends with it."""
    start_logging("broker", debug)
    service = EmbeddedBroker(port)
    run_until_stopped(
        _Broker(service),
        lambda: say(
            f"broker at {service.bootstrap_servers}: export K2_KAFKA_BOOTSTRAP_SERVERS={service.bootstrap_servers}"
        ),
    )


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
    heap.keep_few()
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
