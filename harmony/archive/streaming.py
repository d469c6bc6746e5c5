"""Blocking iterators in an event loop: what a thread reads, as fast as it is taken and no faster.

The answers of an index come from a disk; whoever sends them waits for a peer. Between the two there is never more than
one chunk. Called by the gateway for queries and retrieval.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import Executor
from typing import Generic, TypeVar

__all__ = ["stream"]

T = TypeVar("T")


CHUNK = 256
CHUNK_S = 0.0005
"""The answers that a thread finds in so long are taken together, so that most queries need one switch to the thread
and back, and a search that takes its time is not waited for."""


async def stream(
    answers: Callable[[], Iterator[T]],
    *,
    executor: Executor | None = None,
    chunk: int = CHUNK,
    chunk_s: float = CHUNK_S,
) -> AsyncGenerator[T, None]:
    """Bring what a blocking iterator yields into the event loop, as fast as it is taken and no faster.

    answers: makes the iterator, called in the executor as well. chunk, chunk_s: how many to get at a time, and for how
    long to wait for more than one. Closing the generator closes the iterator.
    """
    loop = asyncio.get_running_loop()
    source = _Chunks(answers, chunk, chunk_s)
    try:
        while not source.exhausted:
            for answer in await loop.run_in_executor(executor, source.next):
                yield answer
    finally:
        if not source.exhausted:
            await asyncio.shield(loop.run_in_executor(executor, source.close))


class _Chunks(Generic[T]):
    """An iterator in another thread; closing waits for the chunk that a cancelled task left behind."""

    def __init__(self, make: Callable[[], Iterator[T]], chunk: int, chunk_s: float) -> None:
        self._make = make
        self._chunk = chunk
        self._chunk_s = chunk_s
        self._iterator: Iterator[T] | None = None
        self._lock = threading.Lock()
        self.exhausted = False
        """It has ended, by itself or with an error, so there is nothing to close."""

    def next(self) -> list[T]:
        with self._lock:
            if self._iterator is None:
                self._iterator = self._make()
            taken: list[T] = []
            deadline = time.monotonic() + self._chunk_s
            self.exhausted = True
            for answer in self._iterator:
                taken.append(answer)
                if len(taken) >= self._chunk or time.monotonic() >= deadline:
                    self.exhausted = False
                    break
            return taken

    def close(self) -> None:
        with self._lock:
            if isinstance(self._iterator, Generator):
                self._iterator.close()
