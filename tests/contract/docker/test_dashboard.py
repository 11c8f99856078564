"""The dashboard against the running parts: what it draws is what they tell Prometheus."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from prometheus_client import CollectorRegistry

from common.settings import FlightSettings, IngestSettings, KafkaSettings, LakeSettings, SinkSettings
from ingest.service import IngestService
from k2.broker import EmbeddedBroker
from k2.stack import Server
from sink.service import SinkService

GRAFANA = Path(__file__).resolve().parents[3] / "docker/grafana"


def test_the_dashboard_draws_metrics_that_k2_has(tmp_path: Path) -> None:
    dashboard = json.loads((GRAFANA / "dashboards/k2.json").read_text())
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]
    drawn: set[str] = set()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            assert target["datasource"] == {"type": source["type"], "uid": source["uid"]}
            drawn |= set(re.findall(r"\bk2_\w+", target["expr"]))
    assert len(drawn) >= 20
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in drawn} <= metrics(tmp_path)


def metrics(data_dir: Path) -> set[str]:
    """The names of the metrics of every part, as the parts themselves register them."""
    registry = CollectorRegistry()
    lake = LakeSettings.load(data_dir=data_dir)
    with EmbeddedBroker() as broker:
        kafka = KafkaSettings.load(bootstrap_servers=broker.bootstrap_servers)
        IngestService(["BTCUSDT"], kafka=kafka, settings=IngestSettings.load(), registry=registry)
        SinkService(kafka, lake, SinkSettings.load(), registry=registry)
        server = Server(kafka, lake, FlightSettings.load(port=0, memory_bytes_max=512 * 1024**2), registry)
        server.start()
        try:
            return {metric.name for metric in registry.collect()}
        finally:
            server.stop()
