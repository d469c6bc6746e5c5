"""How long a peer may keep a connection waiting: for so long at a time, and on the whole at no less than a rate.

A byte a minute is progress, so a peer who is to make progress within a minute could hold what it was given for years.
A `Pace` has time left, which waiting takes away and bytes give back: as much as they take at the least rate. So a peer
may pause for the whole time once, but not again and again for a byte. Only waiting counts: what a slow handler, disk or
upstream takes does not.

A data structure without a clock or a socket; `channel` and `connection` ask it.
"""

from __future__ import annotations

__all__ = ["Pace"]


class Pace:
    """Of one message in one direction. limit_s: None waits for ever. bytes_per_s: 0 lets each byte give back all."""

    __slots__ = ("_bytes_per_s", "_left_s", "_limit_s")

    def __init__(self, limit_s: float | None, *, bytes_per_s: float = 0.0) -> None:
        self._limit_s = limit_s
        self._bytes_per_s = bytes_per_s
        self._left_s = limit_s

    @property
    def left_s(self) -> float | None:
        """How long it may be waited for the next byte."""
        return self._left_s

    def waited(self, seconds: float, size_bytes: int) -> bool:
        """Count that so many bytes came, or went, after so long; tell whether there is time left."""
        if self._limit_s is None or self._left_s is None:
            return True
        earned_s = self._limit_s if not self._bytes_per_s and size_bytes else 0.0
        if self._bytes_per_s:
            earned_s = size_bytes / self._bytes_per_s
        self._left_s = min(self._limit_s, self._left_s - seconds + earned_s)
        return self._left_s > 0.0
