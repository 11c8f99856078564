"""What the commands share: logs and metrics, the broker, the lake, and how options are read."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import click
from prometheus_client import CollectorRegistry

from common.errors import SettingsError
from common.settings import KafkaSettings, LakeSettings, TelemetrySettings
from common.telemetry import Readiness, configure_logging, serve_metrics
from k2.broker import EmbeddedBroker

FILE = click.Path(path_type=Path, dir_okay=False)
DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="K2's folder: catalog, warehouse, state.  [K2_LAKE_DATA_DIR, .k2]",
)


def start_logging(
    service: str, debug: bool, *, quiet: bool = False, readiness: Readiness | None = None
) -> CollectorRegistry:
    """Logs and the Prometheus endpoint of one process; the registry its metrics go into."""
    level = "debug" if debug else "error" if quiet else None
    settings = TelemetrySettings.load(log_level=level)
    configure_logging(settings, service=service)
    registry = CollectorRegistry()
    port = serve_metrics(settings, registry, readiness)
    if port is not None:
        say(f"metrics at http://{settings.metrics_host}:{port}/metrics")
    return registry


@contextlib.contextmanager
def kafka_or_embedded() -> Iterator[KafkaSettings]:
    """The broker of the settings; without one, an embedded broker for as long as this runs."""
    settings = KafkaSettings.load()
    if settings.bootstrap_servers:
        yield settings
        return
    with EmbeddedBroker() as embedded:
        say(
            f"K2_KAFKA_BOOTSTRAP_SERVERS is not set: embedded broker at {embedded.bootstrap_servers}, "
            "gone when this ends"
        )
        yield KafkaSettings.load(bootstrap_servers=embedded.bootstrap_servers)


def prepared_lake(data_dir: Path | None) -> LakeSettings:
    lake = LakeSettings.load(data_dir=data_dir)
    lake.prepare()
    return lake


def symbols_of(text: str) -> tuple[str, ...]:
    return tuple(part.strip().upper() for part in text.split(",") if part.strip())


def speed_of(text: str) -> float:
    try:
        speed = math.inf if text == "max" else float(text)
    except ValueError:
        speed = math.nan
    if not speed > 0:
        raise SettingsError(f"--speed is a number above 0 or max, not {text!r}")
    return speed


def is_coloured(stream: TextIO) -> bool:
    """Whether colours are welcome there: on a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def say(line: str) -> None:
    sys.stderr.write(f"k2: {line}\n")
    sys.stderr.flush()
