"""The gate: who comes in by what, who waits and for how long, and what the log says of it."""

from __future__ import annotations

import base64
import dataclasses
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from common.clock import ManualClock
from common.errors import SettingsError, Unauthenticated, Unavailable
from common.settings import AccessSettings
from flight_server.access.credentials import Credentials, User, api_key_digest, new_api_key
from flight_server.access.gate import Gate
from flight_server.access.passwords import PasswordHash
from flight_server.access.principal import ANONYMOUS, Principal
from flight_server.access.web_tokens import WebTokens
from tests.support.key_server import AUDIENCE, SECRET, claims

PASSWORD, KEY = "open sesame", new_api_key()
PEER = "ipv4:192.0.2.1:50000"
OTHER_PEER = "ipv4:192.0.2.2:50000"
ADA = Principal("ada", True, "password")
BOB = Principal("bob", False, "password")
DASHBOARDS = Principal("dashboards", False, "api-key")
HASH = PasswordHash.of(PASSWORD, log_n=1, r=1, p=1)
CREDENTIALS = Credentials(
    {"ada": User(ADA, HASH), "bob": User(BOB, HASH)}, {api_key_digest(KEY): DASHBOARDS}, frozenset({"ops"})
)


def gate(
    clock: ManualClock | None = None,
    credentials: Credentials = CREDENTIALS,
    *,
    certificates: bool = False,
    **given: Any,
) -> Gate:
    clock = clock or ManualClock(time_us=time.time_ns() // 1000)
    settings = AccessSettings.load(**given)
    return Gate(settings, credentials, WebTokens.from_settings(settings, clock), certificates=certificates, clock=clock)


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def jwt_bearer(**changes: Any) -> str:
    return "Bearer " + jwt.encode(claims(**changes), SECRET, algorithm="HS256")


@contextmanager
def log_lines() -> Iterator[list[Any]]:
    """Every line logged meanwhile, of any level."""
    before = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG))
    try:
        with capture_logs() as lines:
            yield lines
    finally:
        structlog.configure(wrapper_class=before)


JWT = {"jwt_secret": SECRET, "jwt_audience": AUDIENCE}


FUZZED = gate(**JWT)


# -- who comes in


def test_a_password_on_a_call() -> None:
    assert gate().admit(basic("ada", PASSWORD), peer=PEER).principal == ADA


@pytest.mark.parametrize("name", ["a", "ab", "abc", "Zoë"])
def test_base64_may_lack_its_padding(name: str) -> None:
    door = gate(credentials=Credentials({name: User(Principal(name), HASH)}))
    for header in (basic(name, PASSWORD), basic(name, PASSWORD).rstrip("=")):
        assert door.admit(header, peer=PEER).principal.name == name


def test_a_login_gives_a_token_that_stands_for_it_until_it_is_revoked() -> None:
    door = gate()
    token = door.handshake(basic("bob", PASSWORD))
    assert token is not None
    admission = door.admit(f"Bearer {token}", peer=PEER)
    assert admission.principal == BOB
    assert admission.session_token is not None
    assert token not in admission.session_token
    assert door.admit(f"bearer  {token} ", peer=PEER) == admission
    door.revoke(admission.session_token)
    with pytest.raises(Unauthenticated, match="session has ended"):
        door.admit(f"Bearer {token}", peer=PEER)


def test_only_a_password_is_changed_into_a_token() -> None:
    door = gate(**JWT)
    assert door.handshake(f"Bearer {KEY}") is None
    assert door.handshake(jwt_bearer()) is None
    assert door.handshake(None) is None
    with pytest.raises(Unauthenticated):
        door.handshake("Bearer what")
    with pytest.raises(Unauthenticated):
        door.handshake(basic("ada", "what"))


def test_an_api_key() -> None:
    admission = gate().admit(f"Bearer {KEY}", peer=PEER)
    assert (admission.principal, admission.session_token) == (DASHBOARDS, None)
    with pytest.raises(Unauthenticated, match="not known here"):
        gate().admit(f"Bearer {new_api_key()}", peer=PEER)


def test_a_web_token_is_believed_until_it_expires() -> None:
    now_s = int(time.time())
    clock = ManualClock(time_us=now_s * 1_000_000)
    door = gate(clock, **JWT, jwt_leeway_s=0)
    header = jwt_bearer(exp=now_s + 100)
    assert door.admit(header, peer=PEER).principal == Principal("ada", False, "jwt")
    assert len(door._proved) == 1
    clock.advance(99.0)
    assert door._proved.get(header) is not None
    clock.advance(1.0)
    assert door._proved.get(header) is None


def test_a_long_lived_web_token_is_proved_again_after_a_while() -> None:
    clock = ManualClock(time_us=time.time_ns() // 1000)
    door = gate(clock, **JWT)
    header = jwt_bearer()
    door.admit(header, peer=PEER)
    clock.advance(299.0)
    assert door._proved.get(header) is not None
    clock.advance(2.0)
    assert door._proved.get(header) is None
    assert door.admit(header, peer=PEER).principal.name == "ada"


def test_a_certificate_is_a_name_and_a_header_goes_before_it() -> None:
    door = gate(certificates=True)
    assert door.admit(None, peer=PEER, certificate="eve").principal == Principal("eve", False, "certificate")
    assert door.admit(None, peer=PEER, certificate="ops").principal == Principal("ops", True, "certificate")
    assert door.admit(f"Bearer {KEY}", peer=PEER, certificate="ops").principal == DASHBOARDS
    with pytest.raises(Unauthenticated):
        door.admit("Bearer what", peer=PEER, certificate="ops")
    for nameless in (None, "", "anonymous", "a\nb"):
        with pytest.raises(Unauthenticated, match="certificate holds no name"):
            door.admit(None, peer=PEER, certificate=nameless)


def test_a_certificate_that_nobody_proved_is_none() -> None:
    with pytest.raises(Unauthenticated, match="asks for credentials"):
        gate().admit(None, peer=PEER, certificate="ops")


@pytest.mark.parametrize(
    "header", ["", "Digest x", "Basic", "Basic ***", "Basic " + base64.b64encode(b"nocolon").decode(), "Bearer",
               "Bearer ", "Basic " + base64.b64encode(b"\xff:\xff").decode(), "x" * 7000, "Basic Zm9vOmJhcg==\x00"]
)  # fmt: skip
def test_what_cannot_be_read_is_refused(header: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        gate(**JWT).admit(header, peer=PEER)
    assert "\n" not in caught.value.message


@given(
    st.one_of(
        st.text(max_size=60),
        st.text(max_size=60).map("Bearer {}".format),
        st.text(max_size=60).map("Basic {}".format),
        st.text(max_size=60).map("Bearer ey.{}.".format),
        st.binary(max_size=60).map(lambda raw: "Basic " + base64.b64encode(raw).decode()),
        st.binary(max_size=60).map(lambda raw: "Bearer ey" + base64.urlsafe_b64encode(raw).decode() + ".e30.e30"),
    )
)
def test_whatever_is_sent_is_refused_in_one_sentence(header: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        FUZZED.admit(header, peer=PEER)
    assert "\n" not in caught.value.message
    FUZZED._limiter.succeeded(("peer", "192.0.2.1"))


# -- nobody


def test_without_any_credentials_everybody_comes_in_as_nobody() -> None:
    door = gate(credentials=Credentials())
    assert door.anonymous
    for header in (None, basic("eve", "x"), "Bearer x", "Digest x"):
        assert door.admit(header, peer=PEER).principal is ANONYMOUS
    token = door.handshake(basic("eve", "x"))
    admission = door.admit(f"Bearer {token}", peer=PEER)
    assert (admission.principal, admission.session_token is None) == (ANONYMOUS, False)


def test_with_credentials_nobody_comes_in_as_nobody_unless_that_is_said() -> None:
    with pytest.raises(Unauthenticated, match="asks for credentials"):
        gate().admit(None, peer=PEER)
    door = gate(anonymous="on")
    assert door.admit(None, peer=PEER).principal is ANONYMOUS
    for header in (basic("ada", "wrong"), "Bearer wrong"):
        with pytest.raises(Unauthenticated):
            door.admit(header, peer=PEER)
    with pytest.raises(Unauthenticated):
        gate(credentials=Credentials(), anonymous="off").admit(None, peer=PEER)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_an_open_server_listens_on_loopback(host: str) -> None:
    gate(credentials=Credentials()).check_address(host)
    gate(anonymous="on").check_address(host)
    gate().check_address(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "no-such-host.invalid"])
def test_and_nowhere_else(host: str) -> None:
    gate().check_address(host)
    gate(credentials=Credentials(), certificates=True).check_address(host)
    with pytest.raises(SettingsError, match="no credentials are configured; set K2_ACCESS_FILE"):
        gate(credentials=Credentials()).check_address(host)
    for credentials in (CREDENTIALS, Credentials()):
        with pytest.raises(SettingsError, match="other machines"):
            gate(credentials=credentials, anonymous="on").check_address(host)
    with pytest.raises(SettingsError, match="other machines"):
        Gate.open().check_address(host)


def test_a_server_that_nobody_could_enter_does_not_start() -> None:
    with pytest.raises(SettingsError, match="nobody could come in"):
        gate(credentials=Credentials(), anonymous="off").check_address("127.0.0.1")


def test_the_open_gate_does_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K2_ACCESS_ANONYMOUS", "off")
    monkeypatch.setenv("K2_ACCESS_PASSWORD", PASSWORD)
    assert Gate.open().admit(None, peer=None).principal is ANONYMOUS


# -- settings


def test_one_user_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K2_ACCESS_PASSWORD", PASSWORD)
    door = Gate.from_settings(AccessSettings.load())
    assert door.admit(basic("k2", PASSWORD), peer=PEER).principal == Principal("k2", True, "password")
    assert not door.anonymous
    assert PASSWORD not in repr(AccessSettings.load())


def test_a_user_is_in_one_place_only(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text(f'[[users]]\nname = "k2"\npassword = "{HASH.to_text()}"\n')
    path.chmod(0o600)
    assert Gate.from_settings(AccessSettings.load(file=path)).admit(basic("k2", PASSWORD), peer=PEER)
    with pytest.raises(SettingsError, match="leave one of them"):
        Gate.from_settings(AccessSettings.load(file=path, password="x"))
    with pytest.raises(SettingsError, match="is no name"):
        Gate.from_settings(AccessSettings.load(user="a:b", password="x"))


# -- who guesses


def failures(door: Gate, header: str, count: int, *, peer: str | None = PEER) -> list[str]:
    messages = []
    for _ in range(count):
        with pytest.raises(Unauthenticated) as caught:
            door.admit(header, peer=peer)
        messages.append(caught.value.message)
    return messages


def test_an_unknown_name_and_a_wrong_password_get_the_same_answer() -> None:
    known, unknown = gate(), gate()
    assert failures(known, basic("ada", "x"), 12) == failures(unknown, basic("nobody", "x"), 12)


def test_an_unknown_name_costs_what_a_wrong_password_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[tuple[int, int, int, int]] = []

    def counting(stored: PasswordHash, password: str) -> bool:
        checked.append((stored.log_n, stored.r, stored.p, len(stored.digest)))
        return False

    monkeypatch.setattr(PasswordHash, "matches", counting)
    failures(gate(), basic("ada", "x"), 1)
    failures(gate(), basic("nobody", "x"), 1)
    assert len(checked) == 2
    assert checked[0] == checked[1]


def test_a_name_is_locked_for_longer_and_longer_and_opens_again() -> None:
    clock = ManualClock()
    door = gate(clock, failures_free=3)
    wrong, right = basic("ada", "x"), basic("ada", PASSWORD)
    assert {message.partition(";")[0] for message in failures(door, wrong, 4)} == {"the name or the password is wrong"}
    assert failures(door, right, 1, peer=OTHER_PEER) == ["too many logins failed; try again in 1 s"]
    clock.advance(1.0)
    failures(door, wrong, 1)
    assert failures(door, right, 1) == ["too many logins failed; try again in 2 s"]
    assert door.admit(basic("bob", PASSWORD), peer=OTHER_PEER).principal == BOB
    clock.advance(2.0)
    assert door.admit(right, peer=PEER).principal == ADA
    failures(door, wrong, 3)
    assert door.admit(basic("ada", PASSWORD), peer=PEER).principal == ADA


def test_who_came_in_before_is_not_locked_out_by_others() -> None:
    door = gate(failures_free=1)
    token = door.handshake(basic("ada", PASSWORD))
    door.admit(f"Bearer {KEY}", peer=PEER)
    failures(door, basic("ada", "x"), 10)
    failures(door, "Bearer x", 10)
    assert door.admit(f"Bearer {token}", peer=PEER).principal == ADA
    assert door.admit(f"Bearer {KEY}", peer=PEER).principal == DASHBOARDS
    assert door.admit(basic("ada", PASSWORD), peer=PEER).principal == ADA


def test_a_peer_that_tries_many_names_is_locked_and_others_are_not() -> None:
    door = gate(failures_free=2)
    for number in range(9):
        failures(door, basic(f"name{number}", "x"), 1)
    assert failures(door, basic("ada", PASSWORD), 1) == ["too many logins failed; try again in 1 s"]
    assert failures(door, "Bearer what", 1) == ["too many logins failed; try again in 1 s"]
    assert door.admit(basic("ada", PASSWORD), peer=OTHER_PEER).principal == ADA


def test_handshakes_have_no_peer_and_are_limited_together_for_short_times() -> None:
    clock = ManualClock()
    door = gate(clock, failures_free=2)
    for number in range(50):
        assert "wrong" in failures(door, basic(f"name{number}", "x"), 1, peer=None)[0]
        clock.advance(5.0 if number >= 40 else 0.0)
    assert "wrong" in failures(door, basic("nobody", "x"), 1, peer=None)[0]
    assert failures(door, basic("ada", PASSWORD), 1, peer=None) == ["too many logins failed; try again in 5 s"]
    assert door.admit(basic("ada", PASSWORD), peer=PEER).principal == ADA


def test_an_expired_token_is_nobodys_attempt_to_get_in() -> None:
    door = gate(failures_free=1, **JWT)
    expired = jwt_bearer(exp=int(time.time()) - 3600)
    ended = "Bearer k2s_" + "A" * 43
    with log_lines() as lines:
        assert all("expired" in message for message in failures(door, expired, 50))
        assert all("session has ended" in message for message in failures(door, ended, 50))
    assert not lines
    assert door.admit(basic("ada", PASSWORD), peer=PEER).principal == ADA


def test_failed_logins_are_logged_without_a_secret_and_not_while_locked() -> None:
    door = gate(failures_free=2, **JWT)
    with log_lines() as lines:
        failures(door, basic("ada", "hunter2"), 20)
    assert len(lines) == 3
    assert {line["log_level"] for line in lines} == {"warning"}
    assert lines[0] | {"event": ""} == {
        "event": "", "log_level": "warning", "room": "flight_server.access", "method": "password", "name": "ada",
        "peer": PEER, "reason": "wrong name or password",
    }  # fmt: skip
    door = gate(**JWT)
    with log_lines() as lines:
        failures(door, basic("hunter2", "typed into the wrong field"), 1)
        failures(door, "Bearer hunter2", 1)
        failures(door, jwt_bearer(aud="hunter2"), 1)
        door.admit(basic("ada", PASSWORD), peer=PEER)
    assert [line["log_level"] for line in lines] == ["warning", "warning", "warning", "info"]
    for secret in ("hunter2", "wrong field", PASSWORD, "eyJ"):
        assert secret not in str(lines)


# -- at once


def test_passwords_are_checked_two_at_a_time_and_each_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, calls = 0, 0, 0
    lock, go_on = threading.Lock(), threading.Event()

    def slow(_stored: PasswordHash, password: str) -> bool:
        nonlocal running, most, calls
        with lock:
            running, calls = running + 1, calls + 1
            most = max(most, running)
        go_on.wait(5.0)
        with lock:
            running -= 1
        return password == PASSWORD

    monkeypatch.setattr(PasswordHash, "matches", slow)
    door = gate()
    names: list[str] = []
    threads = [
        threading.Thread(target=lambda: names.append(door.admit(basic("ada", PASSWORD), peer=PEER).principal.name))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert names == ["ada"] * 16
    assert most <= 2
    assert calls <= 2


def test_who_does_not_get_a_turn_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flight_server.access.gate._CHECK_WAIT_S", 0.0)
    door = gate()
    for _ in range(2):
        assert door._checks.acquire(blocking=False)
    with pytest.raises(Unavailable, match="try again"):
        door.admit(basic("ada", PASSWORD), peer=PEER)


def test_a_principal_says_nothing_secret() -> None:
    assert set(dataclasses.asdict(ADA)) == {"name", "is_admin", "method"}
