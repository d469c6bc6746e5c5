"""Counting without Prometheus: histograms, reasons, and bytes that only grow."""

from __future__ import annotations

import asyncio

import pytest

from harmony.dimse.command import CEchoRQ, CStoreRQ
from harmony.gateway.tallies import SECONDS, AssociationTally, Durations, HTTPTally, LoopLag
from harmony.http import Exchanged, Request, RequestBody
from harmony.ul.errors import (
    AssociationAborted,
    AssociationRejected,
    AssociationReleased,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
)


class Carried:
    """What a tally looks at of an association."""

    def __init__(self, received_bytes: int, sent_bytes: int) -> None:
        self.received_bytes = received_bytes
        self.sent_bytes = sent_bytes


def test_buckets_are_upper_bounds():
    durations = Durations((1.0, 2.0))
    for elapsed_s in (0.5, 1.0, 1.5, 2.0, 3.0):
        durations.add(elapsed_s)
    assert (durations.counts, durations.sum_s) == ([2, 2, 1], 8.0)


def test_operations_by_kind_status_and_time():
    tally = AssociationTally()
    for status, elapsed_s in ((0, 0.0004), (0, 0.0005), (0xA700, 1000.0)):
        tally.performed(CStoreRQ, status, elapsed_s)
    tally.performed(CEchoRQ, 0, 0.0)
    tally.invoked(CEchoRQ, None, 0.0)
    stores = tally.as_scp[CStoreRQ]
    assert stores.statuses == {0: 2, 0xA700: 1}
    assert stores.durations.counts == [2, *[0] * (len(SECONDS) - 1), 1]
    assert tally.as_scp[CEchoRQ].statuses == {0: 1}
    assert tally.as_scu[CEchoRQ].statuses == {None: 1}


def test_bytes_of_open_and_ended_associations_add_up():
    tally, first, second = AssociationTally(), Carried(10, 1), Carried(20, 2)
    tally.established(first)
    tally.established(second)
    assert (tally.received_bytes, tally.sent_bytes) == (30, 3)
    first.received_bytes += 5
    tally.ended(first, None)
    first.received_bytes += 1000  # over
    assert (tally.received_bytes, tally.sent_bytes) == (35, 3)
    assert (len(tally.open), tally.established_count) == (1, 2)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "released"),
        (AssociationAborted("x"), "aborted_by_peer"),
        (AssociationAborted("x", by_peer=False), "aborted_by_us"),
        (DeadlineExceeded("reading a PDU", 1.0), "timeout"),
        (ConnectionLost("x"), "connection_lost"),
        (ConnectFailed("x"), "no_connection"),
        (AssociationRejected(1, 1, 7), "rejected_by_peer"),
        (AssociationReleased("x"), "other"),
    ],
)
def test_reasons(error, reason):
    tally, association = AssociationTally(), Carried(0, 0)
    tally.established(association)
    tally.ended(association, error)
    assert tally.ends == {reason: 1}
    if error is not None:
        tally.not_established(error)
        assert tally.failures == {reason: 1}


def test_requests_with_few_labels():
    tally = HTTPTally()
    request = Request("GET", "/a", body=RequestBody.of(b"12"))
    request.endpoint = "jmix"
    request.body.received_bytes = 2
    for method, status in (("GET", 200), ("GET", 0), ("PROPFIND", 404), ("X" * 100, 404)):
        tally.answered(Exchanged(request, method, status, 0.001, 7))
    tally.answered(Exchanged(None, "GET", 400, 0.0, 0))
    assert tally.requests == {
        ("jmix", "GET", "2xx"): 1,
        ("jmix", "GET", "none"): 1,
        ("jmix", "other", "4xx"): 2,
        ("", "GET", "4xx"): 1,
    }
    assert (tally.received_bytes["jmix"], tally.sent_bytes["jmix"]) == (8, 28)
    assert sum(tally.durations["jmix"].counts) == 4


async def test_lag_is_measured_until_it_is_stopped():
    lag = LoopLag()
    lag.start()
    async with asyncio.timeout(20):
        while sum(lag.durations.counts) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    lag.stop()
    assert lag._timer is None
    lag.stop()
