"""`k2 ingest asx`: history of ASX from files into Kafka."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from common.settings import IngestSettings, KafkaSettings
from ingest.asx import COMPANIES
from ingest.history import FileOutcome, HistoryIngest, asx_files, read_companies
from k2.console import DATA_DIR, FILE, prepared_lake, say, start_logging


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--companies", type=FILE, help="Lines of company_id,symbol, beside the companies that K2 knows.")
@click.option("--json", "as_json", is_flag=True, help="No bars; print one JSON document at the end.")
@DATA_DIR
@click.pass_obj
def asx(debug: bool, path: Path, companies: Path | None, as_json: bool, data_dir: Path | None) -> None:
    """Trades and quotes of ASX from files, each line once; docs/asx.md says what becomes of them.

    PATH is a folder with `trades` and `quotes` in it, one of these, or a file in one, named COMPANY_ID.csv. Run it
    again after whatever ended it, or with files that grew: what the log and the tables hold is not taken again.
    """
    # Only now: a live ingest has no use for PyIceberg's memory.
    from k2.seed import history_of_tables
    from k2.watching import watched

    start_logging("ingest", debug)
    files = asx_files(path, COMPANIES if companies is None else read_companies(companies))
    kafka = KafkaSettings.load()
    kafka.client_config()  # an embedded broker would forget everything at the end: refused
    lake = prepared_lake(data_dir)
    history = HistoryIngest(
        files, kafka=kafka, settings=IngestSettings.load(), of_tables=partial(history_of_tables, lake)
    )
    with watched(quiet=as_json) as progress:
        outcomes = history.run(progress)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in outcomes]))
        return
    for one in outcomes:
        say(_sentence(one))


def _sentence(one: FileOutcome) -> str:
    parts = [f"{one.taken} taken", f"{one.known} there already"]
    if letters := one.dead_letters + one.known_dead_letters:
        parts.append(
            f"{letters} to the dead letters" + (f", {one.known_dead_letters} before" * bool(one.known_dead_letters))
        )
    if one.crossed:
        parts.append(f"{one.crossed} with the bid above the ask")
    return f"{one.name} ({one.symbol}): {one.lines} lines, {', '.join(parts)}"
