"""Shares of peers: counts that return to zero, and how fast one may connect, with time as an argument."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.ul.shares import (
    MAXIMUM_REMEMBERED,
    TELL_AGAIN_S,
    ConnectionRate,
    OnceAWhile,
    Shares,
    host_of,
)

HOLDERS = st.integers(0, 5)
KEYS = st.sampled_from(["MODALITY", "PACS", "192.0.2.1"])


@given(st.lists(st.tuples(st.booleans(), HOLDERS, KEYS)), st.permutations(range(6)))
def test_whatever_comes_and_goes_nothing_is_left(steps, order):
    shares, model = Shares(), {}
    for takes, holder, key in steps:
        if takes:
            shares.take(holder, key)
            model[holder] = key
        else:
            shares.release(holder)
            model.pop(holder, None)
        assert len(shares) == len(model)
        for each in ("MODALITY", "PACS", "192.0.2.1"):
            assert shares.count(each) == list(model.values()).count(each)
    for holder in order:
        shares.release(holder)
    assert len(shares) == 0
    assert not shares._counts


def test_room_for_each_key_by_itself():
    shares = Shares()
    shares.take("first", "MODALITY")
    shares.take("second", "MODALITY")
    assert not shares.has_room("MODALITY", 2)
    assert shares.has_room("MODALITY", 3)
    assert shares.has_room("PACS", 2)
    assert shares.has_room("MODALITY", 0)  # no limit
    shares.release("first")
    assert shares.has_room("MODALITY", 2)


def test_a_burst_then_the_rate():
    rate = ConnectionRate()
    admitted = [rate.admit("192.0.2.1", 2.0, now=100.0) for _ in range(25)]
    assert admitted == [True] * 20 + [False] * 5  # ten seconds' worth
    assert rate.admit("192.0.2.2", 2.0, now=100.0)
    assert not rate.admit("192.0.2.1", 2.0, now=100.25)
    assert rate.admit("192.0.2.1", 2.0, now=100.5)
    assert not rate.admit("192.0.2.1", 2.0, now=100.5)
    assert all(rate.admit("192.0.2.1", 2.0, now=200.0) for _ in range(20))


def test_less_than_one_in_ten_seconds_is_one_at_a_time():
    rate = ConnectionRate()
    assert rate.admit("192.0.2.1", 0.05, now=0.0)
    assert not rate.admit("192.0.2.1", 0.05, now=19.0)
    assert rate.admit("192.0.2.1", 0.05, now=39.0)


def test_without_a_rate_nobody_is_remembered():
    rate = ConnectionRate()
    assert all(rate.admit("192.0.2.1", 0.0, now=0.0) for _ in range(1000))
    assert len(rate) == 0


def test_very_many_peers_take_no_more_memory():
    rate = ConnectionRate()
    assert not all(rate.admit("192.0.2.1", 1.0, now=0.0) for _ in range(11))
    for number in range(2 * MAXIMUM_REMEMBERED):
        assert rate.admit(f"2001:db8::{number:x}", 1.0, now=5.0)
        assert len(rate) <= MAXIMUM_REMEMBERED
    later = 60.0  # everybody may connect as often as before
    assert rate.admit("198.51.100.7", 1.0, now=later)
    assert len(rate) == 1


@given(st.lists(st.floats(0.0, 5.0), max_size=60), st.floats(0.1, 20.0))
def test_never_more_than_a_burst_and_the_rate(pauses, per_second):
    rate = ConnectionRate()
    times = list(itertools.accumulate(pauses))
    admitted = [now for now in times if rate.admit("192.0.2.1", per_second, now=now)]
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            most = max(1.0, 10 * per_second) + per_second * (admitted[last] - admitted[first])
            assert last - first + 1 <= most + 1e-6


def test_the_same_is_told_once_in_a_while():
    tell = OnceAWhile()
    assert tell("full", now=0.0)
    assert not tell("full", now=TELL_AGAIN_S - 1)
    assert tell("other", now=1.0)
    assert tell("full", now=TELL_AGAIN_S)


@pytest.mark.parametrize(
    ("address", "host"),
    [("192.0.2.1:104", "192.0.2.1"), ("[2001:db8::1]:104", "2001:db8::1"), ("?", "")],
)
def test_host_of(address, host):
    assert host_of(address) == host
