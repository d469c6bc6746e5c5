"""How many bytes this process holds for its peers, in one account, and how many it may.

Counted, when a buffer is made or grows, is what grows with what peers do and has no bound on the whole: identifiers and
data sets that are collected, chunks that wait for a consumer, what a connection has received and nobody has taken, what
was written and a peer does not take, HTTP bodies that are collected. Objects that go to a file are not held, so that
receiving them counts nothing.

At the limit nobody who is here is dropped: new associations and connections are refused for the time being, what is
being collected is refused when it grows, and reading is held as long as something waits. Each of these callers goes on
with what it has, so that there is room again. It is no limit to the byte: what one read brings is taken.

The account is the process's, as its memory is. Without a limit, as in programs that embed the library, it counts only.
"""

from __future__ import annotations

__all__ = ["HELD", "HeldBytes"]


class HeldBytes:
    """An account. Not for use by several threads at a time."""

    __slots__ = ("held_bytes", "limit_bytes")

    def __init__(self, limit_bytes: int | None = None) -> None:
        """limit_bytes: None is no limit."""
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def __repr__(self) -> str:
        return f"<HeldBytes {self.held_bytes} of {self.limit_bytes or 'any number'}>"

    def take(self, size_bytes: int) -> None:
        """So many more are held. Never refused: who can refuse asks `is_full` or `has_room` before."""
        self.held_bytes += size_bytes

    def give(self, size_bytes: int) -> None:
        """So many fewer."""
        self.held_bytes -= size_bytes

    @property
    def is_full(self) -> bool:
        return self.limit_bytes is not None and self.held_bytes >= self.limit_bytes

    def has_room(self, size_bytes: int) -> bool:
        """Whether so many more are within the limit."""
        return self.limit_bytes is None or self.held_bytes + size_bytes <= self.limit_bytes


HELD = HeldBytes()
