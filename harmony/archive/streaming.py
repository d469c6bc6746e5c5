"""Blocking iterators in an event loop: what a thread reads, as fast as it is taken and no faster.

The answers of an index come from a disk; whoever sends them waits for a peer. Between the two there is never more than
one chunk. Called by the gateway for queries and retrieval.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor
from itertools import islice
from typing import Generic, TypeVar

__all__ = ["stream"]

T = TypeVar("T")


async def stream(
    answers: Callable[[], Iterator[T]],
    *,
    executor: Executor | None = None,
    chunks: Iterable[int] = (1, 15, 64, 256),
) -> AsyncGenerator[T, None]:
    """Bring what a blocking iterator yields into the event loop, as fast as it is taken and no faster.

    answers: makes the iterator, called in the executor as well. chunks: how many to get at a time, the last from then
    on: a first answer soon, and few switches of threads for many. Closing the generator closes the iterator.
    """
    loop = asyncio.get_running_loop()
    source = _Chunks(answers)
    size = 1
    sizes = iter(chunks)
    try:
        while True:
            size = next(sizes, size)
            chunk = await loop.run_in_executor(executor, source.next, size)
            for answer in chunk:
                yield answer
            if len(chunk) < size:
                return
    finally:
        await asyncio.shield(loop.run_in_executor(executor, source.close))


class _Chunks(Generic[T]):
    """An iterator in another thread; closing waits for the chunk that a cancelled task left behind."""

    def __init__(self, make: Callable[[], Iterator[T]]) -> None:
        self._make = make
        self._iterator: Iterator[T] | None = None
        self._lock = threading.Lock()

    def next(self, size: int) -> list[T]:
        with self._lock:
            if self._iterator is None:
                self._iterator = self._make()
            return list(islice(self._iterator, size))

    def close(self) -> None:
        with self._lock:
            if isinstance(self._iterator, Generator):
                self._iterator.close()
