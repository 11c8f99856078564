"""Settings: from the environment, checked, and every error one sentence with the variable's name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from common.errors import SettingsError
from common.settings import FlightSettings, IngestSettings, KafkaSettings, LakeSettings, SinkSettings


def test_the_environment_is_read_and_an_override_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K2_SINK_COMMIT_AGE_MS_MAX", "250")
    assert SinkSettings.load().commit_age_ms_max == 250
    assert SinkSettings.load(commit_age_ms_max=99).commit_age_ms_max == 99
    assert SinkSettings.load(commit_age_ms_max=None).commit_age_ms_max == 250


@pytest.mark.parametrize(
    ("variable", "value"),
    [("K2_FLIGHT_PORT", "70000"), ("K2_FLIGHT_PORT", "door"), ("K2_FLIGHT_BATCH_BYTES_MAX", str(64 * 1024**2))],
)
def test_a_wrong_value_is_named_with_its_variable(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=variable) as caught:
        FlightSettings.load()
    assert value in caught.value.message
    assert "\n" not in caught.value.message


def test_settings_do_not_change() -> None:
    settings = SinkSettings.load()
    with pytest.raises(ValidationError):
        settings.commit_rows_max = 1  # type: ignore[misc]


def test_a_client_without_a_broker_is_told_which_variable_to_set() -> None:
    with pytest.raises(SettingsError, match="K2_KAFKA_BOOTSTRAP_SERVERS"):
        KafkaSettings(bootstrap_servers=None).client_config()


def test_a_password_is_handed_on_and_not_shown() -> None:
    settings = KafkaSettings.load(bootstrap_servers="b:1", sasl_username="u", sasl_password="open sesame")
    assert settings.client_config()["sasl.password"] == "open sesame"
    assert "open sesame" not in repr(settings)


def test_a_data_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(SettingsError, match="cannot be written"):
        LakeSettings.load(data_dir=taken / "lake").prepare()


def test_catalog_and_warehouse_default_to_the_data_directory(tmp_path: Path) -> None:
    settings = LakeSettings.load(data_dir=tmp_path)
    settings.prepare()
    assert settings.resolved_catalog_uri == f"sqlite:///{tmp_path / 'catalog.db'}"
    assert settings.resolved_warehouse == f"file://{tmp_path / 'warehouse'}"
    assert LakeSettings.load(warehouse="s3://bucket/k2").resolved_warehouse == "s3://bucket/k2"


def test_a_variable_that_is_no_json_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K2_INGEST_SHED_QUEUE_PERCENT", "[50, 70, 85, 95]")
    assert IngestSettings.load().shed_queue_percent == (50, 70, 85, 95)
    monkeypatch.setenv("K2_INGEST_SHED_QUEUE_PERCENT", "50,70,85,95")
    with pytest.raises(SettingsError, match=r"a variable K2_INGEST_\.\.\. is no JSON .*shed_queue_percent"):
        IngestSettings.load()
