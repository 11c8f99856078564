"""Tokens and proved credentials: they end by idle time, by age, by number and by being revoked; and hold no secret."""

from __future__ import annotations

from common.clock import ManualClock
from flight_server.access.principal import Principal
from flight_server.access.remembered import Admission, Remembered, SessionTokens

ADA = Principal("ada", method="password")


def tokens(clock: ManualClock, *, count_max: int = 3) -> SessionTokens:
    return SessionTokens(clock, count_max=count_max, idle_s_max=60.0, life_s_max=150.0)


def test_a_token_stands_for_who_logged_in() -> None:
    sessions = tokens(ManualClock())
    token = sessions.issue(ADA)
    found = sessions.get(token)
    assert found is not None
    assert found.principal == ADA
    assert found.session_token is not None
    assert token not in found.session_token
    assert sessions.get(token + "x") is None
    assert SessionTokens.looks_like_one(token)
    assert len(token) >= 43


def test_each_login_has_its_own() -> None:
    sessions = tokens(ManualClock())
    first, second = (sessions.get(sessions.issue(ADA)) for _ in range(2))
    assert first is not None and second is not None
    assert first.session_token != second.session_token


def test_a_token_lives_while_it_is_used_and_not_for_ever() -> None:
    clock = ManualClock()
    sessions = tokens(clock)
    used, unused = sessions.issue(ADA), sessions.issue(ADA)
    for _ in range(2):
        clock.advance(59.0)
        assert sessions.get(used) is not None
    assert sessions.get(unused) is None
    clock.advance(31.0)
    assert sessions.get(used) is not None
    clock.advance(1.0)
    assert sessions.get(used) is None
    assert len(sessions) == 0


def test_beyond_the_bound_the_one_used_longest_ago_goes() -> None:
    sessions = tokens(ManualClock())
    first, second, third = (sessions.issue(ADA) for _ in range(3))
    sessions.get(first)
    sessions.issue(ADA)
    assert len(sessions) == 3
    assert sessions.get(second) is None
    assert sessions.get(first) is not None
    assert sessions.get(third) is not None


def test_dead_ones_make_room_first() -> None:
    clock = ManualClock()
    sessions = tokens(clock)
    for _ in range(3):
        sessions.issue(ADA)
    clock.advance(60.0)
    sessions.issue(ADA)
    assert len(sessions) == 1


def test_a_revoked_token_is_worth_nothing() -> None:
    sessions = tokens(ManualClock())
    token, other = sessions.issue(ADA), sessions.issue(ADA)
    found = sessions.get(token)
    assert found is not None and found.session_token is not None
    sessions.revoke(found.session_token)
    sessions.revoke(found.session_token)
    assert sessions.get(token) is None
    assert sessions.get(other) is not None


def test_what_was_proved_is_kept_without_the_secret_and_in_no_two_processes_alike() -> None:
    clock = ManualClock()
    first, second = (Remembered(clock, count_max=10) for _ in range(2))
    first.put("Basic c2VjcmV0", Admission(ADA), life_s_max=10.0, idle_s_max=10.0)
    assert first.get("Basic c2VjcmV0") == Admission(ADA)
    assert first.digest("Basic c2VjcmV0") != second.digest("Basic c2VjcmV0")
    assert "c2VjcmV0" not in repr(vars(first))
    clock.advance(10.0)
    assert first.get("Basic c2VjcmV0") is None
