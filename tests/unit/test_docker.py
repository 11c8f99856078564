"""docker/ is checked without an engine: what it names exists, what it sets is a setting, what it runs is a version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from common.settings import (
    ALL_SETTINGS,
    AccessSettings,
    FlightSettings,
    KafkaSettings,
    LakeSettings,
    TelemetrySettings,
)
from flight_server.access.gate import Gate
from k2.cli import cli

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OWN = {name: service for name, service in SERVICES.items() if "build" in service}
INSTRUCTIONS = re.sub(r"\\\n\s*", " ", (DOCKER / "Dockerfile").read_text()).splitlines()


def interpolated(value: object) -> str:
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))


def instructions(keyword: str) -> list[str]:
    return [line.removeprefix(f"{keyword} ") for line in INSTRUCTIONS if line.startswith(f"{keyword} ")]


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", instructions("ENV")[-1]))


def environment(service: dict[str, Any]) -> dict[str, str]:
    return {name: interpolated(value) for name, value in service.get("environment", {}).items()}


def known_variables() -> set[str]:
    return {
        f"{settings.model_config['env_prefix']}{field.upper()}"
        for settings in ALL_SETTINGS
        for field in settings.model_fields
    }


def test_k2_s_own_services_are_the_parts_of_the_command() -> None:
    assert {name: service["command"][0] for name, service in OWN.items()} == {
        "ingest": "ingest",
        "sink": "sink",
        "flight-server": "serve",
    }


def test_every_variable_is_a_setting() -> None:
    named = {name for service in OWN.values() for name in service["environment"]} | set(image_environment())
    assert {name for name in named if name.startswith("K2_")} <= known_variables()


@pytest.mark.parametrize("name", sorted(OWN))
def test_the_values_are_ones_that_the_settings_accept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [variable for variable in os.environ if variable.startswith("K2_")]:
        monkeypatch.delenv(variable)
    for variable, value in (image_environment() | environment(OWN[name])).items():
        monkeypatch.setenv(variable, value)
    for settings in ALL_SETTINGS:
        settings.load()
    lake, flight = LakeSettings.load(), FlightSettings.load()
    assert KafkaSettings.load().client_config()["bootstrap.servers"] == "kafka:9092"
    assert lake.resolved_warehouse == f"s3://{BUCKET}/warehouse"
    assert lake.catalog_properties["s3.access-key-id"] == environment(SERVICES["s3"])["AWS_ACCESS_KEY_ID"]
    assert lake.catalog_properties["s3.secret-access-key"] == environment(SERVICES["s3"])["AWS_SECRET_ACCESS_KEY"]
    assert f":{environment(SERVICES['postgres'])['POSTGRES_PASSWORD']}@postgres:5432/" in lake.resolved_catalog_uri
    if name == "flight-server":
        assert (flight.host, f"127.0.0.1:{flight.port}:{flight.port}") == ("0.0.0.0", OWN[name]["ports"][0])
        gate = Gate.from_settings(AccessSettings.load())
        gate.check_address(flight.host)
        assert not gate.anonymous


BUCKET = next(part.partition("=")[2] for part in SERVICES["s3"]["command"] if part.startswith("-bucket="))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned_by_version(name: str) -> None:
    service = SERVICES[name]
    if "build" not in service:
        assert re.fullmatch(r"[a-z0-9]+(/[a-z0-9-]+)?:v?\d+(\.\d+)+", service["image"])
    for base in instructions("FROM"):
        assert re.match(r"python:3\.\d+-slim-\w+", base)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_tells_its_health_and_listens_only_here(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_services_and_volumes_that_are_named_exist() -> None:
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0]
            assert (DOCKER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_every_password_has_a_variable_of_its_own() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    bare = re.sub(r"\$\{\w+:-development\}", "", text)
    assert "development" not in bare.replace("defaults for development", "")


def test_hosts_inside_the_network_are_services() -> None:
    text = "\n".join(
        line for line in (DOCKER / "compose.yaml").read_text().splitlines() if not line.lstrip().startswith("#")
    )
    hosts = set(re.findall(r"(?:://|@)([a-z][a-z0-9-]*):\d+", text))
    assert hosts - {"localhost"} <= set(SERVICES)
    assert {"kafka", "schema-registry", "postgres", "s3"} <= hosts


def test_prometheus_asks_every_part_at_the_port_it_serves() -> None:
    config = yaml.safe_load((DOCKER / "prometheus/prometheus.yaml").read_text())
    targets = {
        target for job in config["scrape_configs"] for group in job["static_configs"] for target in group["targets"]
    }
    port = image_environment()["K2_TELEMETRY_METRICS_PORT"]
    assert targets == {f"{name}:{port}" for name in OWN}
    assert f":{port}/metrics" in " ".join(OWN["sink"]["healthcheck"]["test"])
    assert set(TelemetrySettings.model_fields) >= {"metrics_port", "metrics_host"}


def test_the_image_is_built_from_what_is_there_and_runs_as_nobody_important() -> None:
    copied = {source for line in instructions("COPY") if "--from=" not in line for source in line.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    rooms = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    assert set(rooms) <= copied
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied == {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert (instructions("USER"), instructions("ENTRYPOINT")) == (["k2"], ['["k2"]'])


def test_the_extras_that_the_image_installs_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    used = {extra for line in instructions("RUN") for extra in re.findall(r"--extra (\w+)", line)}
    assert used
    assert used <= set(extras)


def test_the_commands_that_the_containers_run_are_ones_that_k2_has() -> None:
    for service in OWN.values():
        arguments = [interpolated(argument) for argument in service["command"]]
        command: click.Command = cli
        context = cli.make_context("k2", arguments, resilient_parsing=True)
        while isinstance(command, click.Group):
            name, found, arguments = command.resolve_command(context, arguments)
            assert name is not None and found is not None
            command = found
        command.make_context(name, arguments)


def test_compose_itself_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("the compose plugin of Docker is not installed")
    done = subprocess.run(
        [docker, "compose", "-f", str(DOCKER / "compose.yaml"), "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
