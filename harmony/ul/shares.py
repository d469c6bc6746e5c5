"""How much of a server each peer has: counts by peer, and how fast somebody connects.

Data structures without a clock or a socket; `acceptor` and the HTTP server ask them before they let somebody in. A key
is a calling AE title or an address. Nothing is remembered of a peer that has nothing, and of those that come and go no
more than `MAXIMUM_REMEMBERED`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

__all__ = ["ConnectionRate", "OnceAWhile", "Shares", "host_of"]

Holder = TypeVar("Holder", bound=Hashable)

MAXIMUM_REMEMBERED: Final = 4096
"""Peers whose rate is known: about 1 MiB, and more than a hospital network has that connect within ten seconds."""
BURST_S: Final = 10.0
"""What may come at once is what may come in this time: a modality that opens an association for each image of a series
is no flood."""
TELL_AGAIN_S: Final = 60.0
"""Between two lines of the log about the same."""


class Shares(Generic[Holder]):
    """Who holds what is counted, by key. Each holder counts once, until it is released."""

    def __init__(self) -> None:
        self._keys: dict[Holder, Hashable] = {}
        self._counts: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Holder]:
        return iter(list(self._keys))

    def count(self, key: Hashable) -> int:
        return self._counts[key]

    def take(self, holder: Holder, key: Hashable) -> None:
        """Count a holder under a key, instead of what it was counted under before."""
        self.release(holder)
        self._keys[holder] = key
        self._counts[key] += 1

    def release(self, holder: Holder) -> None:
        """Count a holder no more; one that is not counted does not matter."""
        if holder not in self._keys:
            return
        key = self._keys.pop(holder)
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]

    def has_room(self, key: Hashable, maximum: int) -> bool:
        """Whether one more may be counted under a key. maximum: 0 is no limit."""
        return not maximum or self._counts[key] < maximum


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class ConnectionRate:
    """Connections from each address, per second on average; BURST_S worth of them may come at once."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def admit(self, host: str, per_second: float, *, now: float) -> bool:
        """Whether one more connection of an address, at `now`, is within the rate; it counts if so. 0 is no limit."""
        if not per_second:
            return True
        capacity = max(1.0, per_second * BURST_S)
        bucket = self._buckets.get(host)
        if bucket is None:
            if len(self._buckets) >= MAXIMUM_REMEMBERED:
                self._forget(per_second, capacity, now)
            bucket = self._buckets[host] = _Bucket(capacity, now)
        bucket.tokens = min(capacity, bucket.tokens + (now - bucket.filled_at) * per_second)
        bucket.filled_at = now
        if bucket.tokens < 1.0:
            return False
        bucket.tokens -= 1.0
        return True

    def _forget(self, per_second: float, capacity: float, now: float) -> None:
        """Forget everybody whose burst is whole again, or else who came first."""
        whole = [
            host
            for host, bucket in self._buckets.items()
            if bucket.tokens + (now - bucket.filled_at) * per_second >= capacity
        ]
        for host in whole or [next(iter(self._buckets))]:
            del self._buckets[host]


class OnceAWhile:
    """Keeps a log readable while somebody is refused again and again."""

    def __init__(self) -> None:
        self._told: dict[Hashable, float] = {}

    def __call__(self, what: Hashable, *, now: float) -> bool:
        """Whether to say it: not within TELL_AGAIN_S of the last time."""
        told_at = self._told.get(what)
        if told_at is not None and now < told_at + TELL_AGAIN_S:
            return False
        if len(self._told) >= MAXIMUM_REMEMBERED:
            self._told.clear()
        self._told[what] = now
        return True


def host_of(address: str) -> str:
    """Of an address as logs show it: 192.0.2.1:104 or [2001:db8::1]:104."""
    return address.rpartition(":")[0].strip("[]")
