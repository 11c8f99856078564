"""Who comes in, through real clients: each kind of credential over ADBC and pyarrow.flight, in the clear and by TLS.

Every refusal is UNAUTHENTICATED, one sentence, and neither it nor the log holds a secret or a trace.
"""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adbc_driver_flightsql.dbapi as dbapi
import grpc
import jwt
import pyarrow as pa
import pytest
import structlog
from adbc_driver_flightsql import DatabaseOptions
from prometheus_client import CollectorRegistry
from pyarrow import flight

from common.clock import ManualClock
from common.errors import SettingsError
from common.settings import AccessSettings, FlightSettings
from flight_server.access.credentials import api_key_digest, new_api_key
from flight_server.access.gate import Gate
from flight_server.access.passwords import PasswordHash
from flight_server.access.remembered import Admission
from flight_server.protocol import FlightSql_pb2 as sql
from flight_server.protocol.commands import wrap
from flight_server.service.service import FlightService
from tests.support.certificates import Authority
from tests.support.fake_lake import FakeLake
from tests.support.key_server import AUDIENCE, ISSUER, SECRET, KeyServer, SigningKey, claims

PASSWORD, WRONG = "open sesame", "hunter2-wrong"
KEY = new_api_key()
_METHODS = "/arrow.flight.protocol.FlightService/"


@dataclass
class Door:
    """A running server and what it has logged."""

    service: FlightService
    clock: ManualClock
    log: io.StringIO

    @property
    def uri(self) -> str:
        return self.service.uri.replace("127.0.0.1", "localhost")

    def adbc(self, **options: str) -> dbapi.Connection:
        return dbapi.connect(self.uri, db_kwargs=options, autocommit=True)

    def one(self, **options: str) -> object:
        """What SELECT 41 + 1 gives to a client with these options."""
        with self.adbc(**options) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 41 + 1")
            row = cursor.fetchone()
            assert row is not None
            return row[0]

    def bearer(self, token: str) -> object:
        return self.one(**{DatabaseOptions.AUTHORIZATION_HEADER.value: f"Bearer {token}"})


@contextlib.contextmanager
def opened(access: AccessSettings, settings: FlightSettings | None = None) -> Iterator[Door]:
    """A server with this access. Its log is kept, of every level."""
    settings = settings or FlightSettings(port=0)
    clock = ManualClock(time_us=time.time_ns() // 1000)
    lake = FakeLake(10, settings)
    log = io.StringIO()
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.PrintLoggerFactory(file=log),
    )
    gate = Gate.from_settings(access, certificates=settings.tls_client_ca_file is not None, clock=clock)
    service = FlightService(lake, settings, CollectorRegistry(), gate=gate)
    service.start()
    try:
        yield Door(service, clock, log)
    finally:
        service.stop()
        lake.close()
        structlog.configure(**before)


def access_file(folder: Path) -> Path:
    path = folder / "access.toml"
    hashed = PasswordHash.of(PASSWORD, log_n=4).to_text()
    path.write_text(
        f'[[users]]\nname = "ada"\npassword = "{hashed}"\nadmin = true\n'
        f'[[api_keys]]\nname = "dashboards"\nsha256 = "{api_key_digest(KEY).hex()}"\n'
    )
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder)


@pytest.fixture(scope="module")
def keys() -> dict[str, SigningKey]:
    return {algorithm: SigningKey(algorithm) for algorithm in ("RS256", "ES256", "EdDSA")}


@pytest.fixture(scope="module")
def door(folder: Path, keys: dict[str, SigningKey]) -> Iterator[Door]:
    """Users, an API key, a shared secret and a key server, in the clear on loopback."""
    with KeyServer(*(key.jwk() for key in keys.values())) as server:
        access = AccessSettings.load(
            file=access_file(folder),
            jwt_secret=SECRET,
            jwt_jwks_url=server.url,
            jwt_audience=AUDIENCE,
            jwt_issuer=ISSUER,
            failures_free=1000,
        )
        with opened(access) as door:
            yield door


def refused(call: Callable[[], object], *words: str) -> str:
    """The message of a refusal, which must be UNAUTHENTICATED and clean."""
    with pytest.raises((dbapi.Error, flight.FlightUnauthenticatedError)) as caught:
        call()
    message = str(caught.value)
    if isinstance(caught.value, dbapi.Error):
        assert caught.value.status_code.name == "UNAUTHENTICATED", message
    assert_clean(message)
    for word in words:
        assert word in message
    return message


def assert_clean(text: str) -> None:
    for secret in (PASSWORD, WRONG, KEY, SECRET, "Traceback", ".py", base64.b64encode(PASSWORD.encode()).decode()):
        assert secret not in text


# -- ADBC


def test_a_password_over_adbc(door: Door) -> None:
    assert door.one(username="ada", password=PASSWORD) == 42
    wrong = refused(lambda: door.one(username="ada", password=WRONG), "the name or the password is wrong")
    unknown = refused(lambda: door.one(username="eve", password=WRONG))
    assert wrong == unknown


def test_a_password_on_each_call_instead_of_a_handshake(door: Door) -> None:
    for name, password in (("ada", PASSWORD), ("ada", WRONG)):
        header = "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
        options = {DatabaseOptions.AUTHORIZATION_HEADER.value: header}
        if password == PASSWORD:
            assert door.one(**options) == 42
        else:
            refused(lambda options=options: door.one(**options), "the name or the password is wrong")


def test_an_api_key_over_adbc(door: Door) -> None:
    assert door.bearer(KEY) == 42
    refused(lambda: door.bearer(new_api_key()), "not known here")


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_web_token_of_the_key_server_over_adbc(door: Door, keys: dict[str, SigningKey], algorithm: str) -> None:
    assert door.bearer(keys[algorithm].token()) == 42
    refused(lambda: door.bearer(SigningKey(algorithm).token()), "signature")


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_web_token_of_the_shared_secret_over_adbc(door: Door, algorithm: str) -> None:
    assert door.bearer(jwt.encode(claims(), SECRET, algorithm=algorithm)) == 42


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exp": int(time.time()) - 3600}, "expired"),
        ({"aud": "another"}, "another audience"),
        ({"iss": "another"}, "another issuer"),
        ({"exp": None}, "lacks the claim 'exp'"),
    ],
)
def test_a_wrong_web_token_over_adbc(door: Door, changes: dict[str, Any], words: str) -> None:
    refused(lambda: door.bearer(jwt.encode(claims(**changes), SECRET, algorithm="HS256")), words)


def test_tokens_that_lie_about_their_algorithm(door: Door, keys: dict[str, SigningKey]) -> None:
    unsigned = jwt.encode(claims(), None, algorithm="none")
    refused(lambda: door.bearer(unsigned), "does not take")
    # PyJWT itself will not sign with a public key; so by hand, as an attacker would.
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT","kid":"key-RS256"}').rstrip(b"=")
    body = unsigned.split(".")[1].encode()
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    signature = base64.urlsafe_b64encode(algorithm.sign(head + b"." + body, keys["RS256"].pem)).rstrip(b"=")
    refused(lambda: door.bearer(b".".join([head, body, signature]).decode()), "signature")


def test_each_credential_is_the_name_of_a_session(door: Door, keys: dict[str, SigningKey]) -> None:
    key, token = (
        {DatabaseOptions.AUTHORIZATION_HEADER.value: f"Bearer {value}"}
        for value in (KEY, keys["ES256"].token(sub="grace@example.com"))
    )
    for options, name in (
        ({"username": "ada", "password": PASSWORD}, "ada"),
        (key, "dashboards"),
        (token, "grace@example.com"),
    ):
        with door.adbc(**options) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE TEMP TABLE mark_of_{name[0]} (a INTEGER)")
            cursor.execute(
                f"SELECT principal FROM ops.sessions WHERE array_to_string(scratch, ' ') LIKE '%mark_of_{name[0]}%'"
            )
            assert cursor.fetchall() == [(name,)]


def test_nobody_comes_in_without_credentials(door: Door) -> None:
    refused(door.one, "asks for credentials")


# -- pyarrow.flight


def test_a_password_over_pyarrow(door: Door) -> None:
    with flight.connect(door.uri) as client:
        header = client.authenticate_basic_token("ada", PASSWORD)
        assert header[0] == b"authorization"
        assert header[1].startswith(b"Bearer k2s_")
        options = flight.FlightCallOptions(headers=[header])
        assert len(list(client.list_actions(options))) > 0
        refused(lambda: client.authenticate_basic_token("ada", WRONG), "the name or the password is wrong")
        # A failed Handshake leaves the connection as it was.
        assert len(list(client.list_actions(options))) > 0


def test_a_handshake_with_a_bearer_proves_it_and_gives_no_other(door: Door) -> None:
    """What the JDBC driver does with its `token`."""
    with grpc.insecure_channel(door.uri.removeprefix("grpc://")) as channel:
        handshake = channel.stream_stream(_METHODS + "Handshake")
        call = handshake(iter([b""]), metadata=[("authorization", f"Bearer {KEY}")], timeout=10)
        assert list(call) == [b""]
        assert "authorization" not in dict(call.initial_metadata())
        with pytest.raises(grpc.RpcError) as caught:
            list(handshake(iter([b""]), metadata=[("authorization", "Bearer wrong")], timeout=10))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert_clean(str(caught.value.details()))


def test_a_closed_session_takes_its_token_with_it(door: Door) -> None:
    with flight.connect(door.uri) as client:
        first, second = (
            flight.FlightCallOptions(headers=[client.authenticate_basic_token("ada", PASSWORD)]) for _ in range(2)
        )
        assert list(client.do_action(flight.Action("CloseSession", b""), first))
        refused(lambda: list(client.list_actions(first)), "session has ended")
        assert len(list(client.list_actions(second))) > 0


# -- every call asks


def rpcs(channel: grpc.Channel, metadata: list[tuple[str, str]]) -> dict[str, grpc.StatusCode]:
    """Each method of the service with the least that it takes: its status."""
    descriptor = b"\x08\x02\x12\x01x"  # a command of one byte
    found = {}
    for name, kind, message in (
        ("ListFlights", "unary_stream", b""),
        ("GetFlightInfo", "unary_unary", descriptor),
        ("PollFlightInfo", "unary_unary", descriptor),
        ("GetSchema", "unary_unary", descriptor),
        ("DoGet", "unary_stream", b""),
        ("DoPut", "stream_stream", b""),
        ("DoExchange", "stream_stream", b""),
        ("DoAction", "unary_stream", b""),
        ("ListActions", "unary_stream", b""),
    ):
        call = getattr(channel, kind)(_METHODS + name)
        try:
            answer = call(iter([message]) if kind == "stream_stream" else message, metadata=metadata, timeout=10)
            if kind != "unary_unary":
                list(answer)
            found[name] = grpc.StatusCode.OK
        except grpc.RpcError as error:
            found[name] = error.code()
            assert_clean(str(error.details()))
    return found


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("authorization", "Bearer wrong")],
        [("authorization", "Basic d3Jvbmc6d3Jvbmc=")],
        [("authorization", "")],
        [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer wrong")],
        [("authorization", "Bearer k2s_" + "A" * 43)],
        [("auth-token-bin", KEY)],
    ],
)
def test_no_method_answers_without_good_credentials(door: Door, metadata: list[tuple[str, str]]) -> None:
    with grpc.insecure_channel(door.uri.removeprefix("grpc://")) as channel:
        raw = [(name, value.encode() if name.endswith("-bin") else value) for name, value in metadata]
        found = rpcs(channel, raw)  # type: ignore[arg-type]
    unimplemented = found.pop("PollFlightInfo")
    assert unimplemented in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED)
    # DoPut and DoExchange fail on their empty message before any handler of ours; nothing was answered.
    for name in ("DoPut", "DoExchange"):
        assert found.pop(name) not in (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL)
    assert set(found.values()) == {grpc.StatusCode.UNAUTHENTICATED}, found


@pytest.mark.parametrize("method", ["DoPut", "DoExchange"])
def test_nor_do_those_that_a_client_streams_to(door: Door, method: str) -> None:
    command = wrap(sql.CommandStatementUpdate(query="CREATE TEMP TABLE t (a INT)"))
    with flight.connect(door.uri) as client:

        def call() -> None:
            descriptor = flight.FlightDescriptor.for_command(command)
            if method == "DoPut":
                writer, reader = client.do_put(descriptor, pa.schema([]))
            else:
                writer, reader = client.do_exchange(descriptor)
                writer.begin(pa.schema([]))
            with writer:
                writer.done_writing()
                reader.read() if method == "DoPut" else reader.read_all()

        refused(call, "asks for credentials")


# -- limits and the log


def test_a_name_that_failed_too_often_must_wait(folder: Path) -> None:
    with (
        opened(AccessSettings.load(file=access_file(folder), failures_free=2)) as door,
        flight.connect(door.uri) as client,
    ):
        for _ in range(3):
            refused(lambda: client.authenticate_basic_token("ada", WRONG), "the name or the password is wrong")
        for _ in range(2):
            refused(
                lambda: client.authenticate_basic_token("ada", PASSWORD), "too many logins failed; try again in 1 s"
            )
        refused(lambda: door.one(username="ada", password=PASSWORD), "try again in 1 s")
        assert door.bearer(KEY) == 42
        door.clock.advance(1.0)
        assert door.one(username="ada", password=PASSWORD) == 42
        lines = [line for line in door.log.getvalue().splitlines() if "a login failed" in line]
        assert len(lines) == 3
        assert_clean(door.log.getvalue())


def test_the_log_of_all_the_above_is_clean(door: Door) -> None:
    refused(lambda: door.bearer(f"{WRONG}"))
    log = door.log.getvalue()
    assert "a login failed" in log
    assert_clean(log.replace("Traceback (most recent call last)", "Traceback"))
    assert "eyJ" not in log
    assert "k2s_" not in log


def test_a_token_ends_when_it_is_not_used(folder: Path) -> None:
    access = AccessSettings.load(file=access_file(folder), token_idle_s_max=60)
    with opened(access) as door, flight.connect(door.uri) as client:
        options = flight.FlightCallOptions(headers=[client.authenticate_basic_token("ada", PASSWORD)])
        for _ in range(3):
            door.clock.advance(59.0)
            list(client.list_actions(options))
        door.clock.advance(60.0)
        refused(lambda: list(client.list_actions(options)), "session has ended")


# -- TLS


def tls_settings(authority: Authority, *, client_certificates: bool = False) -> FlightSettings:
    pair = authority.server()
    return FlightSettings(
        port=0,
        tls_cert_file=pair.certificate_file,
        tls_key_file=pair.key_file,
        tls_client_ca_file=authority.file if client_certificates else None,
    )


def test_tls(authority: Authority, folder: Path, tmp_path: Path) -> None:
    trust = {DatabaseOptions.TLS_ROOT_CERTS.value: authority.pem.decode()}
    with opened(AccessSettings.load(file=access_file(folder)), tls_settings(authority)) as door:
        assert door.uri.startswith("grpc+tls://localhost:")
        assert door.one(username="ada", password=PASSWORD, **trust) == 42
        with flight.FlightClient(door.uri, tls_root_certs=authority.pem) as client:
            assert client.authenticate_basic_token("ada", PASSWORD)
        stranger = Authority(tmp_path, "another authority")
        with pytest.raises(dbapi.Error) as caught:
            door.one(username="ada", password=PASSWORD, **{DatabaseOptions.TLS_ROOT_CERTS.value: stranger.pem.decode()})
        assert "certificate" in str(caught.value)
        with (
            flight.connect(door.uri.replace("grpc+tls", "grpc")) as client,
            pytest.raises(flight.FlightUnavailableError),
        ):
            list(client.list_actions())


def test_certificates_on_both_sides(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    admit = Gate.admit

    def watched(gate: Gate, header: str | None, *, peer: str | None, certificate: str | None = None) -> Admission:
        seen.append(certificate)
        return admit(gate, header, peer=peer, certificate=certificate)

    monkeypatch.setattr(Gate, "admit", watched)
    alice, nameless = (
        authority.client("alice", also=["alice@example.com", "al@example.com"]),
        authority.client("anonymous"),
    )
    ops = authority.client("ops")
    eve = Authority(tmp_path, "another authority").client("eve")

    def options(pair: Any) -> dict[str, str]:
        return {
            DatabaseOptions.TLS_ROOT_CERTS.value: authority.pem.decode(),
            DatabaseOptions.MTLS_CERT_CHAIN.value: pair.certificate.decode(),
            DatabaseOptions.MTLS_PRIVATE_KEY.value: pair.key.decode(),
        }

    access = AccessSettings.load(file=access_file(tmp_path))
    with opened(access, tls_settings(authority, client_certificates=True)) as door:
        # Its first alternative name is the principal; without any, its common name.
        for pair, name in ((alice, "alice@example.com"), (ops, "ops")):
            seen.clear()
            assert door.one(**options(pair)) == 42
            assert set(seen) == {name}
        refused(lambda: door.one(**options(nameless)), "certificate holds no name")
        for outsider in (options(eve), {DatabaseOptions.TLS_ROOT_CERTS.value: authority.pem.decode()}):
            with pytest.raises(dbapi.Error) as caught:
                door.one(**outsider)
            assert caught.value.status_code.name != "OK"
        with flight.FlightClient(
            door.uri, tls_root_certs=authority.pem, cert_chain=alice.certificate, private_key=alice.key
        ) as client:
            assert len(list(client.list_actions())) > 0
            # Its name is proved, but a header that is sent has to be good as well.
            wrong = flight.FlightCallOptions(headers=[(b"authorization", b"Bearer wrong")])
            refused(lambda: list(client.list_actions(wrong)))
            right = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {KEY}".encode())])
            assert len(list(client.list_actions(right))) > 0
            # pyarrow shows certificates only to a server without Handshake.
            with pytest.raises(pa.ArrowNotImplementedError):
                client.authenticate_basic_token("ada", PASSWORD)


@pytest.mark.parametrize(
    ("cert", "key", "ca", "words"),
    [
        ("server", None, None, "both"),
        (None, None, "ca", "both"),
        ("server", "other", None, "is not that of the certificate"),
        ("server", "junk", None, "no PEM private key"),
        ("junk", "server", None, "no PEM certificate"),
        ("server", "server", "junk", "no PEM certificate"),
        ("missing", "server", None, "cannot be read"),
    ],
)
def test_wrong_certificates_are_said_at_start(
    authority: Authority, tmp_path: Path, cert: str | None, key: str | None, ca: str | None, words: str
) -> None:
    server, other = authority.server(), authority.client("other")
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    missing = tmp_path / "missing.pem"
    files = {"junk": (junk, junk), "missing": (missing, missing), "ca": (authority.file, authority.file)}
    for name, pair in (("server", server), ("other", other)):
        files[name] = (pair.certificate_file, pair.key_file)
    settings = FlightSettings(
        port=0,
        tls_cert_file=cert and files[cert][0],
        tls_key_file=key and files[key][1],
        tls_client_ca_file=ca and files[ca][0],
    )
    lake = FakeLake(0, settings)
    try:
        with pytest.raises(SettingsError, match=words) as caught:
            FlightService(lake, settings)
    finally:
        lake.close()
    assert "\n" not in caught.value.message


# -- open


def test_an_open_server_takes_any_credentials_for_nobodys() -> None:
    with opened(AccessSettings.load()) as door:
        assert door.one() == 42
        assert door.one(username="whoever", password="whatever") == 42
        assert door.bearer("whatever") == 42


@pytest.mark.parametrize("anonymous", ["auto", "on"])
def test_an_open_server_does_not_listen_to_other_machines(anonymous: str) -> None:
    settings = FlightSettings(host="0.0.0.0", port=0)
    lake = FakeLake(0, settings)
    try:
        gate = Gate.from_settings(AccessSettings.load(anonymous=anonymous))
        for given in (gate, None):
            with pytest.raises(SettingsError, match="other machines") as caught:
                FlightService(lake, settings, gate=given)
            assert "\n" not in caught.value.message
    finally:
        lake.close()


def test_with_users_it_does(folder: Path) -> None:
    settings = FlightSettings(host="0.0.0.0", port=0)
    with opened(AccessSettings.load(file=access_file(folder)), settings) as door:
        assert door.one(username="ada", password=PASSWORD) == 42
        refused(door.one, "asks for credentials")
