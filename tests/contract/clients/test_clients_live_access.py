"""Subscriptions of clients that log in by a password or an API key, over TLS and in the clear."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clients
from common.clock import SystemClock
from common.settings import AccessSettings, FlightSettings
from flight_server.access.credentials import api_key_digest, new_api_key
from flight_server.access.gate import Gate
from flight_server.access.passwords import PasswordHash
from flight_server.service.service import FlightService
from tests.support.certificates import Authority
from tests.support.fake_lake import FakeLake, trades

PASSWORD, KEY = "open sesame", new_api_key()


class Door:
    """A server that lets in who has the password or the key."""

    def __init__(self, folder: Path, authority: Authority | None) -> None:
        file = folder / "access.toml"
        hashed = PasswordHash.of(PASSWORD, log_n=4).to_text()
        file.write_text(
            f'[[users]]\nname = "ada"\npassword = "{hashed}"\n'
            f'[[api_keys]]\nname = "dashboards"\nsha256 = "{api_key_digest(KEY).hex()}"\n'
        )
        file.chmod(0o600)
        tls: dict[str, Any] = {}
        if authority is not None:
            pair = authority.server()
            tls = {"tls_cert_file": pair.certificate_file, "tls_key_file": pair.key_file}
        settings = FlightSettings(port=0, **tls)
        gate = Gate.from_settings(AccessSettings.load(file=file), certificates=False, clock=SystemClock())
        self.lake = FakeLake(10, settings)
        self.service = FlightService(self.lake, settings, gate=gate)
        self.service.start()
        self.uri = self.service.uri.replace("127.0.0.1", "localhost")
        self.ca_file = None if authority is None else authority.file

    def stop(self) -> None:
        self.service.stop()
        self.lake.close()


@pytest.fixture(scope="module", params=["in the clear", "tls"])
def door(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("access")
    door = Door(folder, Authority(folder / "ca") if request.param == "tls" else None)
    yield door
    door.stop()


@pytest.mark.parametrize("who", [{"username": "ada", "password": PASSWORD}, {"token": KEY}], ids=["password", "key"])
def test_who_is_let_in_may_subscribe(door: Door, who: dict[str, str]) -> None:
    sql = "SELECT trade_id FROM market.trades WHERE trade_id % 2 = 0"
    with clients.connect(door.uri, ca_file=door.ca_file, **who) as k2, k2.subscribe(sql) as arrivals:  # type: ignore[arg-type]
        first = next(arrivals).batch.num_rows
        after = 2 * first
        door.lake.publish(trades(range(after, after + 4)))
        assert next(arrivals).batch.column("trade_id").to_pylist() == [after, after + 2]


def test_who_is_not_let_in_is_told_so(door: Door) -> None:
    with clients.connect(door.uri, ca_file=door.ca_file, token=KEY) as k2:
        stranger = clients.Connection(k2._raw, door.uri, clients.subscription.Access(door.uri, ca_file=door.ca_file))
        with pytest.raises(clients.QueryError) as caught:
            stranger.subscribe("SELECT trade_id FROM market.trades")
    assert caught.value.code == "UNAUTHENTICATED"
