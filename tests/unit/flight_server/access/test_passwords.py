"""Passwords at rest: only the right one matches, and the text form keeps everything that is needed to check it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import SettingsError
from flight_server.access.passwords import LOG_N, P, PasswordHash, R

#: Cheap parameters: what is tested here does not depend on them.
FAST = {"log_n": 1, "r": 1, "p": 1}


@settings(max_examples=200)
@given(st.text(max_size=40), st.text(max_size=40))
def test_only_the_same_password_matches_also_after_a_round_trip(password: str, other: str) -> None:
    stored = PasswordHash.from_text(PasswordHash.of(password, **FAST).to_text())
    assert stored.matches(password)
    assert stored.matches(other) == (other == password)


def test_the_same_password_is_never_stored_alike() -> None:
    assert PasswordHash.of("open sesame", **FAST).to_text() != PasswordHash.of("open sesame", **FAST).to_text()


def test_new_hashes_have_the_parameters_that_are_recommended() -> None:
    text = PasswordHash.of("open sesame").to_text()
    assert text.startswith(f"$scrypt$ln={LOG_N},r={R},p={P}$")
    assert (LOG_N, R, P) >= (15, 8, 3)
    assert PasswordHash.from_text(text).matches("open sesame")


def test_a_hash_of_another_program_is_understood() -> None:
    # RFC 7914, section 12, the second vector: its first 32 bytes.
    text = "$scrypt$ln=10,r=8,p=16$TmFDbA$/bq+HJ00cgB4VucZDQHp/nxq18vII3gw53N2Y0s3MWI"
    assert PasswordHash.from_text(text).matches("password")
    assert not PasswordHash.from_text(text).matches("Password")


@pytest.mark.parametrize(
    "text",
    [
        "open sesame",
        "",
        "$scrypt$ln=15,r=8,p=3$c2FsdA",
        "$scrypt$ln=99,r=8,p=3$c2FsdA$" + "A" * 43,
        "$scrypt$ln=15,r=99,p=3$c2FsdA$" + "A" * 43,
        "$scrypt$ln=0,r=8,p=3$c2FsdA$" + "A" * 43,
        "$scrypt$ln=15,r=8,p=3$c2FsdA$AAAA",
        "$2b$12$abcdefghijklmnopqrstuuJ9yyVqoM1p7zNDfDcQAlLjkBvZVj0Wi",
        "$scrypt$ln=15,r=8,p=3$c$" + "A" * 43,
    ],
)
def test_what_is_no_hash_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(SettingsError, match="k2 access hash-password") as caught:
        PasswordHash.from_text(text)
    assert not text or text not in caught.value.message


def test_a_decoy_costs_the_same_and_matches_nothing() -> None:
    real = PasswordHash.of("open sesame", log_n=3, r=2, p=2)
    decoy = real.decoy()
    assert (decoy.log_n, decoy.r, decoy.p, len(decoy.salt), len(decoy.digest)) == (3, 2, 2, 16, 32)
    assert not decoy.matches("open sesame")


def test_no_repr_tells_the_password() -> None:
    assert "open sesame" not in repr(PasswordHash.of("open sesame", **FAST))
