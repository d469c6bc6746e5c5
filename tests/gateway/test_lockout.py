"""Who is locked out: after how many failures, for how long, and how much is remembered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.gateway.lockout import Lockout

ALICE = ("192.0.2.1", "alice")


def lockout(max_failures: int = 3, *, tracked: int = 100) -> Lockout:
    return Lockout(max_failures=max_failures, window_s=300.0, lockout_s=60.0, tracked=tracked)


def test_the_last_failure_locks_out_for_a_while() -> None:
    locks = lockout()
    assert [locks.failed(ALICE, 0.0), locks.failed(ALICE, 1.0)] == [False, False]
    assert locks.locked_s(ALICE, 1.0) == 0.0
    assert locks.failed(ALICE, 2.0)
    assert locks.locked_s(ALICE, 2.0) == 60.0
    assert locks.locked_s(ALICE, 61.0) == 1.0
    assert locks.locked_s(ALICE, 62.0) == 0.0
    assert not locks.failed(ALICE, 63.0)  # counted anew
    assert locks.locked_s(ALICE, 63.0) == 0.0


def test_a_success_forgets() -> None:
    locks = lockout()
    for _ in range(2):
        locks.failed(ALICE, 0.0)
        locks.failed(ALICE, 0.0)
        locks.succeeded(ALICE)
    assert locks.locked_s(ALICE, 0.0) == 0.0
    assert len(locks) == 0


def test_failures_that_are_far_apart_do_not_count_together() -> None:
    locks = lockout()
    assert not any(locks.failed(ALICE, 200.0 * number) for number in range(10))


@pytest.mark.parametrize("other", [("192.0.2.2", "alice"), ("192.0.2.1", "bob"), ("192.0.2.1", "")])
def test_others_are_not_locked_out(other: tuple[str, str]) -> None:
    locks = lockout(1)
    assert locks.failed(ALICE, 0.0)
    assert locks.locked_s(other, 0.0) == 0.0


def test_none_at_all() -> None:
    locks = lockout(0)
    assert not any(locks.failed(ALICE, 0.0) for _ in range(100))
    assert len(locks) == 0


def test_names_without_end_are_one_name() -> None:
    locks = lockout(2)
    locks.failed(("a", "x" * 1000 + "1"), 0.0)
    assert locks.failed(("a", "x" * 1000 + "2"), 0.0)


def test_the_oldest_make_room() -> None:
    locks = lockout(2, tracked=3)
    for name in ("a", "b", "c", "a", "d"):
        locks.failed(("", name), 0.0)
    assert len(locks) == 3
    assert locks.locked_s(("", "a"), 0.0) == 60.0
    assert not locks.failed(("", "b"), 0.0)  # forgotten


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.floats(0, 100), st.booleans())))
def test_memory_is_bounded(events: list[tuple[str, float, bool]]) -> None:
    locks, now = lockout(2, tracked=4), 0.0
    for name, elapsed_s, good in events:
        now += elapsed_s
        if good:
            locks.succeeded(("", name))
        else:
            locks.failed(("", name), now)
        assert len(locks) <= 4
        assert 0.0 <= locks.locked_s(("", name), now) <= 60.001
