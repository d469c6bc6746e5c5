"""Counting what happens, cheaply: plain numbers that `metrics` reads when somebody asks.

Tallies are written and read in the event loop's thread only. Nothing here knows Prometheus. Whatever peers send, what
is counted by has a limited number of values: operations, statuses, methods, and names from the configuration.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from time import perf_counter

from harmony.dimse.command import Message
from harmony.http.connection import Exchanged
from harmony.ul.association import Association
from harmony.ul.errors import (
    AssociationAborted,
    AssociationError,
    AssociationRejected,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
)

__all__ = ["AssociationTally", "Durations", "HTTPTally", "LoopLag", "OperationTally", "ending_of"]

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
"""Upper bounds: a small object takes a millisecond, a large one seconds, a C-MOVE minutes."""

LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

LAG_INTERVAL_S = 0.25
"""Four callbacks in a second cost nothing, and a stall of 25 ms is met by one of ten."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Durations:
    """A histogram. counts: one more than bounds, not cumulative; the last is for what is longer than all."""

    __slots__ = ("bounds", "counts", "sum_s")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum_s = 0.0

    def add(self, elapsed_s: float) -> None:
        self.counts[bisect_left(self.bounds, elapsed_s)] += 1
        self.sum_s += elapsed_s


class OperationTally:
    """Operations of one kind: how often they ended in which status, and how long they took."""

    __slots__ = ("durations", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int | None, int] = {}
        """None: the association ended before the answer."""
        self.durations = Durations()

    def add(self, status: int | None, elapsed_s: float) -> None:
        statuses = self.statuses
        statuses[status] = statuses.get(status, 0) + 1
        durations = self.durations  # written out: this runs for every object that is received
        durations.counts[bisect_left(SECONDS, elapsed_s)] += 1
        durations.sum_s += elapsed_s

    def add_all(self, statuses: Mapping[int, int], counts: Sequence[int], sum_s: float) -> None:
        """What another process has counted."""
        for status, count in statuses.items():
            self.statuses[status] = self.statuses.get(status, 0) + count
        self.durations.counts = [a + b for a, b in zip(self.durations.counts, counts, strict=True)]
        self.durations.sum_s += sum_s


class AssociationTally:
    """The associations of one endpoint or backend, and what was done on them: a `harmony.dimse.Observer`."""

    def __init__(self) -> None:
        self.open: set[Association] = set()
        self.established_count = 0
        self.ends: Counter[str] = Counter()
        """By what ended them: see `ending_of`."""
        self.failures: Counter[str] = Counter()
        """Associations that we requested in vain, by why."""
        self.as_scp: dict[type[Message], OperationTally] = {}
        self.as_scu: dict[type[Message], OperationTally] = {}
        self._received_bytes = 0  # of associations that are over
        self._sent_bytes = 0

    def established(self, association: Association) -> None:
        self.open.add(association)
        self.established_count += 1

    def ended(self, association: Association, error: AssociationError | None) -> None:
        self.ended_by(association, ending_of(error))

    def ended_by(self, association: Association, ending: str) -> None:
        """The same, with the reason as `ending_of` names it."""
        self._received_bytes += association.received_bytes
        self._sent_bytes += association.sent_bytes
        self.open.discard(association)
        self.ends[ending] += 1

    def not_established(self, error: AssociationError) -> None:
        self.failures[ending_of(error)] += 1

    def performed(self, request_type: type[Message], status: int, elapsed_s: float) -> None:
        tally = self.as_scp.get(request_type)
        if tally is None:
            tally = self.as_scp[request_type] = OperationTally()
        tally.add(status, elapsed_s)

    def invoked(self, request_type: type[Message], status: int | None, elapsed_s: float) -> None:
        tally = self.as_scu.get(request_type)
        if tally is None:
            tally = self.as_scu[request_type] = OperationTally()
        tally.add(status, elapsed_s)

    def add_bytes(self, *, received: int, sent: int) -> None:
        """Of associations that another process has."""
        self._received_bytes += received
        self._sent_bytes += sent

    @property
    def received_bytes(self) -> int:
        return self._received_bytes + sum(each.received_bytes for each in self.open)

    @property
    def sent_bytes(self) -> int:
        return self._sent_bytes + sum(each.sent_bytes for each in self.open)


def ending_of(error: AssociationError | None) -> str:
    """What ended an association, in one word."""
    match error:
        case None:
            return "released"
        case AssociationRejected():
            return "rejected_by_peer"
        case AssociationAborted(by_peer=True):
            return "aborted_by_peer"
        case AssociationAborted():
            return "aborted_by_us"
        case DeadlineExceeded():
            return "timeout"
        case ConnectionLost():
            return "connection_lost"
        case ConnectFailed():
            return "no_connection"
        case _:
            return "other"


class HTTPTally:
    """Requests that were answered, by endpoint."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        """By endpoint ("" where none answers), method and class of the status."""
        self.durations: dict[str, Durations] = {}
        self.received_bytes: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()

    def answered(self, exchanged: Exchanged) -> None:
        request = exchanged.request
        endpoint = request.endpoint if request is not None else ""
        method = exchanged.method if exchanged.method in METHODS else "other"
        status_class = f"{exchanged.status // 100}xx" if exchanged.status else "none"
        self.requests[endpoint, method, status_class] += 1
        self.durations.setdefault(endpoint, Durations()).add(exchanged.elapsed_s)
        self.sent_bytes[endpoint] += exchanged.sent_bytes
        if request is not None:
            self.received_bytes[endpoint] += request.body.received_bytes


class LoopLag:
    """How late the event loop calls what is due: everything waits so long for its turn."""

    def __init__(self) -> None:
        self.durations = Durations(LAG_SECONDS)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        due = perf_counter() + LAG_INTERVAL_S  # uvloop's own clock counts milliseconds
        self._timer = asyncio.get_running_loop().call_later(LAG_INTERVAL_S, self._measure, due)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _measure(self, due: float) -> None:
        self.durations.add(max(0.0, perf_counter() - due))
        self.start()
