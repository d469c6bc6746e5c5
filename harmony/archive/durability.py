"""Put received objects on the disk before their senders hear of it, many objects per turn (durability
"fsync").

One batch runs at a time; what arrives meanwhile, from any association, is the next one. A batch of one costs
the sender a few milliseconds, a batch of fifty the same. The steps, in the order of docs/DESIGN.md:

    worker  fsync and close each file; see whether its name is taken, and by what
    loop    journal line of each object
    worker  sync each journal; link each object to its final name; fsync each folder
    loop    answer each sender

Whatever step an object fails at, the failure is its answer and the others go on. Called by
`harmony.archive.files`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from harmony.archive.stored import Disposition, Journal, refusal
from harmony.dimse.status import DimseError, Outcome

__all__ = ["GroupCommit", "PendingObject", "sync_directory"]

logger = logging.getLogger("harmony.archive")


class PendingObject(Protocol):
    """A complete object in its temporary file, waiting for its name. `judge` and `place` may run in a thread."""

    journal: Journal | None
    path: str
    """The final name it is going to have."""

    def close_file(self, *, sync: bool) -> None: ...

    def judge(self) -> Disposition:
        """See whether the final name is taken and what that means. Raises DimseError when it is to be refused."""

    def record(self, disposition: Disposition) -> None:
        """Append to the journal."""

    def place(self, disposition: Disposition) -> bool:
        """Give it its final name; False when that was taken since `judge`."""

    def tell(self) -> None:
        """Call back who wanted to know, now that it is done."""

    def discard(self) -> None:
        """Remove what there is of it."""


class _Entry:
    """One object on its way through a batch."""

    __slots__ = ("disposition", "error", "future", "pending", "retry")

    def __init__(self, pending: PendingObject, future: asyncio.Future[Outcome]) -> None:
        self.pending = pending
        self.future = future
        self.disposition = Disposition.STORED
        self.error: Exception | None = None
        self.retry = False

    def attempt(self, step: Callable[[], None]) -> None:
        """Take a step unless an earlier one failed; keep what it raises."""
        if self.error is None:
            try:
                step()
            except Exception as error:
                self.error = error

    def write_out(self) -> None:
        self.pending.close_file(sync=True)
        self.disposition = self.pending.judge()
        if self.disposition is Disposition.IDENTICAL:
            _sync(self.pending.path, os.O_RDONLY)  # it may have been written without

    def record(self) -> None:
        self.pending.record(self.disposition)

    def place(self) -> None:
        self.retry = not self.pending.place(self.disposition)


class GroupCommit:
    """Takes complete objects from all associations of one event loop and commits them in batches."""

    def __init__(self) -> None:
        self._queue: deque[_Entry] = deque()
        self._task: asyncio.Task[None] | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False
        self._new_directories: set[str] = set()

    def submit(self, pending: PendingObject) -> asyncio.Future[Outcome]:
        """Commit an object. The future's result is the answer to its sender; cancelling it changes nothing else."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        self._queue.append(_Entry(pending, future))
        if self._task is None:
            self._task = loop.create_task(self._run())
        return future

    def directories_made(self, directories: Iterable[str]) -> None:
        """Have folders that may have new entries synced with the next batch."""
        self._new_directories.update(directories)

    def close(self) -> None:
        """Stop the thread once what was submitted is done."""
        self._closed = True
        if self._task is None:
            self._stop_executor()

    def _stop_executor(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None

    async def _run(self) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="harmony-archive")
        batch: list[_Entry] = []
        try:
            while self._queue:
                batch = self._take()
                await self._commit(batch, self._executor)
                batch = []
        finally:
            # Only a cancelled task, at the end of the loop, leaves anything here.
            for entry in (*batch, *self._queue):
                if not entry.future.done():
                    entry.pending.discard()
                    entry.future.cancel()
            self._queue.clear()
            self._task = None
            if self._closed:
                self._stop_executor()

    def _take(self) -> list[_Entry]:
        """Take what is waiting; of several objects for one name only the first, the others must find it there."""
        batch: dict[str, _Entry] = {}
        later: list[_Entry] = []
        for entry in self._queue:
            if batch.setdefault(entry.pending.path, entry) is not entry:
                later.append(entry)
        self._queue = deque(later)
        return list(batch.values())

    async def _commit(self, batch: list[_Entry], executor: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(executor, _write_out, batch)
        for entry in batch:
            entry.attempt(entry.record)
        directories, self._new_directories = self._new_directories, set()
        try:
            await loop.run_in_executor(executor, _place, batch, directories)
        except OSError as error:
            self._new_directories |= directories
            for entry in batch:
                entry.error = entry.error or error
        for entry in batch:
            self._answer(entry)

    def _answer(self, entry: _Entry) -> None:
        if entry.error is None and entry.retry:
            entry.retry = False
            self._queue.appendleft(entry)
            return
        entry.attempt(entry.pending.tell)
        error = entry.error
        if error is not None:
            # Anything but the two that are foreseen is a defect of the journal or the callback: say where.
            unforeseen = None if isinstance(error, (OSError, DimseError)) else error
            logger.warning("refused %r: %s", entry.pending, refusal(error), exc_info=unforeseen)
            entry.pending.discard()
        if entry.future.done():
            return  # nobody waits any more
        if error is None:
            entry.future.set_result(entry.disposition.outcome)
        else:
            entry.future.set_result(refusal(error).outcome)


def _write_out(batch: list[_Entry]) -> None:
    for entry in batch:
        entry.attempt(entry.write_out)


def _place(batch: list[_Entry], directories: set[str]) -> None:
    """Sync journals, name objects, sync folders. Raises OSError when a folder that is new cannot be synced."""
    journals = {id(journal): journal for entry in batch if (journal := entry.pending.journal) is not None}
    for journal in journals.values():
        try:
            journal.sync()
        except Exception as error:
            for entry in batch:
                if entry.pending.journal is journal:
                    entry.error = entry.error or error
    for entry in batch:
        entry.attempt(entry.place)
    by_directory: dict[str, list[_Entry]] = {}
    for entry in batch:
        if entry.error is None and not entry.retry:
            by_directory.setdefault(os.path.dirname(entry.pending.path), []).append(entry)
    for directory, entries in by_directory.items():
        try:
            sync_directory(directory)
        except OSError as error:
            for entry in entries:
                entry.error = error
    for directory in directories - by_directory.keys():
        sync_directory(directory)


def sync_directory(path: str) -> None:
    """Make the entries of a folder durable."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: str, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
