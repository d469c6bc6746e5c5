"""How many requests a client may make: windows, addresses that count as one, bounded memory."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from harmony.gateway.rate_limit import RateLimit

ONE, OTHER = ip_address("192.0.2.1"), ip_address("192.0.2.2")


def test_a_window_begins_with_the_first_request_and_is_not_extended() -> None:
    limit = RateLimit(2, 10.0)
    assert limit.request(ONE, now=100.0) is None
    assert limit.request(ONE, now=109.0) is None
    assert limit.request(ONE, now=109.5) == 0.5
    assert limit.request(OTHER, now=109.5) is None
    assert limit.request(ONE, now=110.0) is None  # a new one
    assert limit.request(ONE, now=119.0) is None
    assert limit.request(ONE, now=119.9) is not None


def test_ipv6_clients_are_counted_by_the_network_that_they_have() -> None:
    limit = RateLimit(1, 10.0)
    assert limit.request(ip_address("2001:db8::1"), now=0.0) is None
    assert limit.request(ip_address("2001:db8::ffff:2"), now=0.0) is not None
    assert limit.request(ip_address("2001:db8:0:1::1"), now=0.0) is None


def test_clients_that_nobody_knows_are_counted_together() -> None:
    limit = RateLimit(1, 10.0)
    assert [limit.request(None, now=0.0) is None for _ in range(2)] == [True, False]


def test_what_is_over_is_forgotten_and_the_rest_is_bounded() -> None:
    limit = RateLimit(1, 10.0, maximum_clients=3)
    clients = [ip_address(f"192.0.2.{number}") for number in range(6)]
    for client in clients:
        limit.request(client, now=0.0)
    assert len(limit) == 3
    assert limit.request(clients[-1], now=5.0) == 5.0  # the youngest are remembered
    limit.request(ONE, now=10.0)
    assert len(limit) == 1


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 4)), max_size=60),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_no_window_holds_more_than_it_may(
    requests: list[tuple[int, float]], maximum: int, window_s: int
) -> None:
    limit, now = RateLimit(maximum, window_s), 0.0
    began: dict[int, tuple[float, int]] = {}
    for client, elapsed_s in requests:
        now += elapsed_s
        start, count = began.get(client, (now, 0))
        if now - start >= window_s:
            start, count = now, 0
        passes = limit.request(ip_address(client), now=now) is None
        assert passes is (count < maximum)
        began[client] = (start, count + passes)
