"""Short answers in the event loop: most questions to an index take less than handing them to a thread does.

A thread costs two switches and a fight for the interpreter, some 0.3 ms together; a study by its UID is looked up in
0.05 ms. So what is asked is tried here first, for `QUICK_S` at most, and by a thread from the beginning when that was
not enough. A disk that has to be waited for holds up everything else meanwhile, so who was held up by one asks threads
only for a while: it never is more than a fiftieth of the time.

Not here: what a thread does (`streaming`), and stopping in time, which is the index's part (`Index.query`, within_s).
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from time import perf_counter, thread_time
from typing import TypeVar

from harmony.archive.index import TookTooLong

__all__ = ["AtOnce"]

T = TypeVar("T")


QUICK_S = 0.001
"""Of computing: some ten studies. Who needs longer loses this, and does not notice."""
HELD_UP_S = 0.005
"""By the clock: another process had the processor, or a disk was waited for."""
PAUSE = 50
"""Times as long as the loop was held up, nothing is tried."""


def _blocks_read() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock


class AtOnce:
    """Of one index; called in the event loop's thread only."""

    def __init__(
        self, *, clock: Callable[[], float] = perf_counter, blocks_read: Callable[[], int] = _blocks_read
    ) -> None:
        """blocks_read: by this thread, from disks; what others keep from it is not its fault."""
        self._clock = clock
        self._blocks_read = blocks_read
        self._not_before = 0.0

    def answers(self, ask: Callable[[float], Iterator[T]]) -> list[T] | None:
        """All that `ask(QUICK_S)` yields, or None when it took too long or raised TookTooLong."""
        started = self._clock()
        if started < self._not_before:
            return None
        read_before = self._blocks_read()
        until = thread_time() + QUICK_S
        try:
            taken: list[T] = []
            for answer in ask(QUICK_S):
                if thread_time() > until:
                    return None
                taken.append(answer)
            return taken
        except TookTooLong:
            return None
        finally:
            now = self._clock()
            if now - started > HELD_UP_S and self._blocks_read() > read_before:
                self._not_before = now + PAUSE * (now - started)
