"""How long a peer may keep a connection waiting."""

import pytest

from harmony.http.pace import Pace


def test_a_pause_may_last_as_long_as_the_limit() -> None:
    pace = Pace(60.0, bytes_per_s=500.0)
    assert pace.left_s == 60.0
    assert pace.waited(59.0, 0)
    assert pace.left_s == 1.0
    assert not pace.waited(1.0, 0)


def test_a_byte_a_second_is_not_for_ever() -> None:
    pace = Pace(60.0, bytes_per_s=500.0)
    seconds = 1
    while pace.waited(1.0, 1):
        seconds += 1
    assert seconds == 61  # each byte gave two milliseconds back


@pytest.mark.parametrize("seconds", [1.0, 59.0])
def test_the_least_rate_is_borne_for_ever(seconds: float) -> None:
    pace = Pace(60.0, bytes_per_s=500.0)
    assert all(pace.waited(seconds, int(500 * seconds)) for _ in range(10_000))


def test_many_bytes_are_no_credit_for_a_longer_pause() -> None:
    pace = Pace(60.0, bytes_per_s=500.0)
    pace.waited(0.0, 10_000_000)
    assert pace.left_s == 60.0


def test_without_a_rate_only_silence_counts() -> None:
    pace = Pace(60.0)
    assert all(pace.waited(59.0, 1) for _ in range(1000))
    assert not pace.waited(60.0, 0)


def test_without_a_limit_it_is_waited_for_ever() -> None:
    pace = Pace(None, bytes_per_s=500.0)
    assert pace.waited(1e9, 0)
    assert pace.left_s is None
