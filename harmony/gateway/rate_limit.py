"""How many requests each client may make in a window of time, in bounded memory.

A window begins with a client's first request and lasts its whole length, whatever comes in it; what comes when it is
over begins the next one. IPv6 clients are counted by /64, the least that one of them is given (RFC 6177). Only time
that the caller names counts, so a clock that is set changes nothing.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

__all__ = ["MAXIMUM_CLIENTS", "RateLimit"]

MAXIMUM_CLIENTS = 65536
"""Counted at one time, about 10 MB; when there are more, the window that began first is forgotten."""


class RateLimit:
    def __init__(self, max_requests: int, window_s: float, *, maximum_clients: int = MAXIMUM_CLIENTS) -> None:
        self._max_requests = max_requests
        self._window_s = window_s
        self._maximum_clients = maximum_clients
        self._windows: OrderedDict[object, tuple[float, int]] = OrderedDict()
        # When a client's window began, and how many requests came in it. All windows are as long, so the order in
        # which they began is the one in which they end.

    def __len__(self) -> int:
        return len(self._windows)

    def request(
        self, client: ipaddress.IPv4Address | ipaddress.IPv6Address | None, *, now: float
    ) -> float | None:
        """Count one request; None when it is within the limit, else how many seconds the window still lasts.

        client: None for those whose address nobody knows, who are counted together. now: monotonic seconds.
        """
        while self._windows:
            oldest, (began, _) = next(iter(self._windows.items()))
            if now - began < self._window_s:
                break
            del self._windows[oldest]
        key: object = client
        if isinstance(client, ipaddress.IPv6Address):
            key = int(client) >> 64
        began, requests = self._windows.get(key, (now, 0))
        if requests >= self._max_requests:
            return began + self._window_s - now
        if not requests and len(self._windows) >= self._maximum_clients:
            self._windows.popitem(last=False)
        self._windows[key] = (began, requests + 1)
        return None
