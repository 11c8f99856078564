"""`k2 ingest` and `k2 simulate`: feeds into Kafka, and a venue to take them from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from common.errors import SettingsError
from common.settings import IngestSettings
from ingest.faults import FaultPlan
from ingest.market import Market, market_symbols
from ingest.service import IngestService
from ingest.simulator import Simulator
from ingest.standby import StandbyIngest
from ingest.symbols import read_symbols
from ingest.venues.registry import BINANCE, COINBASE, VENUES, Venue
from k2.asx import asx
from k2.console import DATA_DIR, FILE, kafka_or_embedded, prepared_lake, say, speed_of, start_logging, symbols_of
from k2.replay import Replay, ReplayDone
from k2.runner import run_until_stopped


@click.group()
def ingest() -> None:
    """Take a feed into Kafka."""


def _feed_command(venue: Venue) -> click.Command:
    """`k2 ingest VENUE`."""
    about = (
        f"What {venue.title} sends of some symbols, each event once, until stopped.\n\nOne ingest of a venue writes at "
        "a time: one that starts ends the other. A --standby on the same machine needs a --data-dir of its own."
    )

    @click.command(venue.name, help=about)
    @click.option("--symbols", help=f"Comma separated.  [{venue.symbols}]")
    @click.option(
        "--symbols-file", type=FILE, help="Symbols, one or more a line, instead; followed while it is changed."
    )
    @click.option(
        "--streams", help=f"Comma separated, of {', '.join(venue.streams_known)}.  [{','.join(venue.streams)}]"
    )
    @click.option("--url", help=f"wss://..., or of `k2 simulate`.  [K2_INGEST_{venue.name.upper()}_URL]")
    @click.option("--standby", is_flag=True, help="Wait, and take over when the ingest that writes dies or stalls.")
    @DATA_DIR
    @click.pass_obj
    def command(
        debug: bool,
        symbols: str | None,
        symbols_file: Path | None,
        streams: str | None,
        url: str | None,
        standby: bool,
        data_dir: Path | None,
    ) -> None:
        if symbols is not None and symbols_file is not None:
            raise SettingsError("--symbols and --symbols-file exclude each other; choose one")
        named = read_symbols(symbols_file) if symbols_file is not None else symbols_of(symbols or venue.symbols)
        registry = start_logging("ingest", debug)
        # Each venue has a folder of its own, so that two may run; Binance's is where it was before there was another.
        folder = "ingest" if venue is BINANCE else f"ingest-{venue.name}"
        state_dir = prepared_lake(data_dir).data_dir / folder
        with kafka_or_embedded() as kafka:
            service = IngestService(
                named,
                venue=venue,
                streams=None if streams is None else [one.strip() for one in streams.split(",") if one.strip()],
                kafka=kafka,
                settings=IngestSettings.load(),
                url=url,
                symbols_file=symbols_file,
                state_dir=state_dir,
                registry=registry,
            )
            what = f"{','.join(named)} into {kafka.bootstrap_servers}"
            if standby:
                run_until_stopped(StandbyIngest(service), lambda: say(f"on standby for {what}"))
            else:
                run_until_stopped(service, lambda: say(f"ingesting {what}"))

    return command


for _venue in VENUES.values():
    ingest.add_command(_feed_command(_venue))
ingest.add_command(asx)


@ingest.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--symbols", default="BTCUSDT,ETHUSDT", show_default=True, help="Comma separated; others in the files are left out."
)
@click.option("--speed", default="max", show_default=True, help="A factor, or max.")
@DATA_DIR
@click.pass_obj
def replay(debug: bool, files: tuple[Path, ...], symbols: str, speed: str, data_dir: Path | None) -> None:
    """Captured frames of Binance (`<ns> <json>` lines, .gz or plain), through the same client; ends with the files."""
    registry = start_logging("ingest", debug)
    state_dir = prepared_lake(data_dir).data_dir / "ingest"
    simulator = Simulator.replay(files, speed=speed_of(speed))
    with kafka_or_embedded() as kafka:
        simulator.start()
        try:
            service = IngestService(
                symbols_of(symbols),
                kafka=kafka,
                # Each connection would get the whole replay, and a replay can wait: nothing of it is shed.
                settings=IngestSettings.load(connections=1, shed=False),
                url=simulator.url,
                state_dir=state_dir,
                registry=registry,
            )
            run_until_stopped(Replay(simulator, service), lambda: say(f"replaying into {kafka.bootstrap_servers}"))
        except ReplayDone:
            pass
        finally:
            simulator.stop()
        stats = service.stats()
        say(f"{stats.acknowledged} messages acknowledged, {sum(stats.duplicates_dropped.values())} duplicates dropped")


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--symbols", type=int, default=20, show_default=True, help="How many symbols, without files.")
@click.option("--rate", default=1_000.0, show_default=True, help="Trades per second, without files.")
@click.option("--seed", default=1, show_default=True, help="The same seed, the same market; without files.")
@click.option("--speed", default="1", show_default=True, help="Of a replay: a factor, or max.")
@click.option("--port", type=int, default=9443, show_default=True, help="0 = any free one.")
@click.option("--venue", type=click.Choice(["binance", "coinbase"]), default="binance", show_default=True)
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
    venue: Literal["binance", "coinbase"],
    faults: int | None,
    faults_every: float,
) -> None:
    """Serve a venue's websocket protocol and its REST beside it on loopback, from captures or a random market."""
    start_logging("simulator", debug)
    factor = speed_of(speed)
    plan = None if faults is None else FaultPlan.seeded(faults, seconds=86_400, every_s=faults_every)
    if files:
        service = Simulator.replay(files, speed=factor, port=port, venue=venue, faults=plan)
        names = "its own symbols"
    else:
        products = COINBASE.symbols.split(",")[:symbols] if venue == "coinbase" else market_symbols(symbols)
        market = Market(products, seed=seed)
        service = Simulator.random_market(market, trades_per_s=rate, port=port, venue=venue, faults=plan)
        names = ",".join(market.symbols)
    run_until_stopped(service, lambda: say(f"simulating {names} at {service.url}"))
