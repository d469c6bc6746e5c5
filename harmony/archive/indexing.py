"""Keep an index of the files in step with them: while objects arrive, after a crash, and from nothing.

    before the name   journal line        `append`, `sync`: what is not in the index yet, written down (`pending`)
    after the name    `stored`            queued, and no more: 2 us in the event loop
    in a thread       read, decode, add   in batches, one transaction each

A query waits until all is in that was queued before it, so an object that was acknowledged is found. While objects
keep arriving and nobody asks, the thread takes only a thirtieth of the time, because decoding competes with receiving
for the interpreter. It catches up, at 5 000 to 10 000 small objects/s, as soon as there is a pause, a query, or too
long a queue: a query right after a flood waits for what the flood left, 0.1 ms per object.

After a crash of the program the log says what to index; after one of the machine, or when the log cannot say, every
file is compared with the index by size and time, and files that were cut off are set aside (`torn`); an index that is
missing, damaged or of another version is made again from the files. All of this happens in `open`, before the first
answer.

Everything but `append`, `stored`, `at_once` and `stream` blocks. Called by the gateway, and by `harmony index rebuild`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from harmony.archive import comparison
from harmony.archive.at_once import AtOnce
from harmony.archive.comparison import Progress, Report, compare, index_paths, stored_files
from harmony.archive.index import (
    ArchiveIndexError,
    Counts,
    Entity,
    Index,
    IndexState,
    Level,
    StoredInstance,
    TookTooLong,
    UniqueKeys,
)
from harmony.archive.matching import Matcher
from harmony.archive.pending import PendingLog
from harmony.archive.sqlite_index import SQLiteIndex
from harmony.archive.stored import Disposition, StoredObject
from harmony.archive.streaming import stream
from harmony.archive.torn import set_aside
from harmony.archive.worker_log import Line, WorkerFeed, left_by_workers, remove_left
from harmony.dicom.json_model import vr_of

__all__ = ["ArchiveIndex", "Progress", "Report", "rebuild", "stream"]

logger = logging.getLogger("harmony.archive")

T = TypeVar("T")

BATCH = 128
"""Objects per transaction: committing costs about as much as indexing three."""
BUSY_BATCH = 32
"""The same while objects arrive and nobody waits: receiving stands nearly still for the 3 ms that it takes."""
GATHER_S = 0.01
"""Wait for more to arrive before a batch is begun that nobody waits for."""
BUSY_SHARE = 0.03
"""Of the time, while objects arrive: some 400 objects/s are indexed at once, more wait until there is time."""
MAXIMUM_BACKLOG = 50_000
"""Objects waiting; more, and the thread takes all the time it can get. As many are indexed in some five seconds,
which is what a query may then have to wait, and take 25 MB of memory."""
RETRY_S = 1.0
"""After the index could not be written, as on a full disk."""


class _Arrival(NamedTuple):  # one per received object: made three times as fast as a frozen dataclass
    """One file to look at."""

    path: str
    only_when_missing: bool = False
    mark: int = 0
    line: tuple[WorkerFeed, Line] | None = None
    """Where a worker has written it down."""


class ArchiveIndex:
    """The index of one FileStore: a Journal, an on_stored callback, and the answers. Other processes may store into the
    same folder, see `follow`.

    root: the FileStore's. directory: of the index and its log, made when missing; default `<root>/.index`.
    durable: for durability "fsync": what is committed is on the disk.
    verify_files: look whether the file of an answer is still there; off for an index without files.
    """

    def __init__(
        self,
        root: Path,
        *,
        directory: Path | None = None,
        durable: bool = False,
        verify_files: bool = True,
        maximum_backlog: int = MAXIMUM_BACKLOG,
    ) -> None:
        self.root = os.path.abspath(root)
        self.directory = directory or Path(self.root) / ".index"
        self._durable = durable
        self._verify_files = verify_files
        self._maximum_backlog = maximum_backlog
        self._prefix = len(self.root) + 1
        self._index: Index | None = None
        self._log: PendingLog | None = None
        self._feeds: list[WorkerFeed] = []
        self._queue: deque[_Arrival] = deque()
        self._changed = threading.Condition()
        self._stored = 0  # counted by the event loop alone, without the lock
        self._followed = 0  # lines of workers
        self._done = 0
        self._waiting = 0  # callers of flush()
        self._sleeping = False  # the thread waits for an arrival
        self._is_busy = True  # objects arrived during the last batch
        self._closing = False
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._stale_mark = 0
        self._at_once = AtOnce()
        self.torn_count = 0
        """Files that were set aside when it was opened, because they were cut off."""

    def __repr__(self) -> str:
        return f"<ArchiveIndex {self.directory} {self._queued - self._done} waiting>"

    def open(self, report: Report | None = None) -> None:
        """Open the index and bring it into agreement with the files, which may take a millisecond per file.

        Raises IndexInUse, ArchiveIndexError, OSError.
        """
        vr_of(0)  # loads the data dictionary, which takes a tenth of a second, before an object waits for it
        self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        index = SQLiteIndex(
            self.directory, root=self.root, durable=self._durable, verify_files=self._verify_files
        )
        try:
            left = left_by_workers(self.directory)
            log = PendingLog(self.directory)
            if index.may_have_lost_power:
                indexed = {hash(path): size_bytes for path, size_bytes, _ in index.files()}
                files = stored_files(self.root, Progress())
                written = log.sizes
                for each in left.values():
                    written |= {path: size_bytes for path, size_bytes in each.items() if size_bytes}
                self.torn_count = len(set_aside(self.root, files, written=written, indexed=indexed))
            if index.state is not IndexState.CURRENT:
                progress = compare(index, self.root, report)
                if progress.files or progress.removed:
                    logger.info(
                        "%s: %s; compared with %d files: %d indexed, %d removed",
                        self.directory,
                        index.state.value,
                        progress.files,
                        progress.indexed,
                        progress.removed,
                    )
            else:
                found = list(dict.fromkeys([*log.found, *(path for each in left.values() for path in each)]))
                for start in range(0, len(found), comparison.BATCH):
                    index_paths(index, self.root, found[start : start + comparison.BATCH], Progress())
            index.set_current()
            log.rotate(durable=self._durable)
            remove_left([*left])
        except BaseException:
            index.close()
            raise
        self._index, self._log = index, log
        self._closing, self._error = False, None
        self._thread = threading.Thread(target=self._run, name="harmony-index", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Index what is queued and close. Nothing may be stored any more; open() opens it again."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._index is not None:
            self._index.close()
            self._index = None

    @property
    def _queued(self) -> int:
        """Objects ever queued."""
        return self._stored + self._followed

    # While objects arrive: called in the event loop

    def append(self, stored: StoredObject) -> None:
        """Write an object down, before it has its name (`Journal`). Raises OSError."""
        if self._log is not None and not _is_unchanged(stored):
            self._log.append(stored.path[self._prefix :], stored.size_bytes)

    def sync(self) -> None:
        """Make what was written down durable (`Journal`); in a worker thread."""
        if self._log is not None:
            self._log.sync()

    def stored(self, stored: StoredObject) -> None:
        """Have an object indexed, now that it has its name (`on_stored`)."""
        mark = self._log.mark() if self._log is not None else 0
        self._stored += 1
        self._queue.append(_Arrival(stored.path[self._prefix :], _is_unchanged(stored), mark))
        # No lock, which the thread may hold: it says that it sleeps before it looks whether there is anything.
        if self._sleeping:
            with self._changed:
                self._changed.notify_all()

    # What other processes store

    def follow(self, name: str) -> WorkerFeed:
        """Index what a worker stores, which may begin when this returns: it writes to `WorkerLog` in the folder
        `worker_directory(name)`. name: never used before. Raises OSError."""
        feed = WorkerFeed(self.worker_directory(name), root=self.root)
        self._feeds = [*self._feeds, feed]
        return feed

    def worker_directory(self, name: str) -> Path:
        return self.directory / f"worker-{name}"

    def poll(self) -> None:
        """Have indexed what workers have written down until now. A few microseconds when there is nothing."""
        for feed in self._feeds:
            with feed.lock:
                self._queue_lines(feed, feed.read())

    def unfollow(self, feed: WorkerFeed) -> None:
        """Its worker is dead: index what is left."""
        with feed.lock:
            self._queue_lines(feed, feed.end())
        self._feeds = [each for each in self._feeds if each is not feed]

    def _queue_lines(self, feed: WorkerFeed, lines: list[Line]) -> None:
        if not lines:
            return
        with self._changed:
            self._queue.extend(
                _Arrival(line.path, line.only_when_missing, line=(feed, line)) for line in lines
            )
            self._followed += len(lines)
            if self._sleeping:
                self._changed.notify_all()

    # Answers

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything is in the index that was queued before. Raises ArchiveIndexError, TimeoutError."""
        self.poll()  # first: what workers have acknowledged is written down
        with self._changed:
            if self._index is None:
                raise ArchiveIndexError("the index is closed")
            target = self._queued
            if self._done >= target:
                return
            self._waiting += 1
            self._changed.notify_all()
            try:
                in_time = self._changed.wait_for(
                    lambda: self._done >= target or self._error is not None or self._thread is None, timeout_s
                )
                if self._done >= target:
                    return
                if not in_time:
                    raise TimeoutError(f"{target - self._done} objects were not indexed within {timeout_s} s")
                raise ArchiveIndexError("objects cannot be indexed") from self._error
            finally:
                self._waiting -= 1

    def _current(self, within_s: float | None = None) -> Index:
        if within_s is None:
            self.flush()
        else:
            self.poll()
            if self._done < self._queued:
                raise TookTooLong(f"{self._queued - self._done} objects are not indexed yet")
        index = self._index
        if index is None:
            raise ArchiveIndexError("the index is closed")
        return index

    def at_once(self, ask: Callable[[float], Iterator[T]]) -> list[T] | None:
        """In the event loop: all that `ask(within_s)` yields, None when that is not to be had in a moment."""
        return self._at_once.answers(ask)

    def query(
        self,
        level: Level,
        matcher: Matcher,
        *,
        limit: int | None = None,
        offset: int = 0,
        within_s: float | None = None,
    ) -> Iterator[Entity]:
        """Yield what matches, see `Index.query`; all that was acknowledged before is found."""
        index = self._current(within_s)
        return index.query(level, matcher, limit=limit, offset=offset, within_s=within_s)

    def instances(self, keys: UniqueKeys, *, within_s: float | None = None) -> Iterator[StoredInstance]:
        return self._current(within_s).instances(keys, within_s=within_s)

    def version(self, keys: UniqueKeys, *, within_s: float | None = None) -> str:
        return self._current(within_s).version(keys, within_s=within_s)

    def headers(
        self, keys: UniqueKeys, *, within_s: float | None = None
    ) -> Iterator[tuple[StoredInstance, Entity]]:
        return self._current(within_s).headers(keys, within_s=within_s)

    def encoded_headers(self, keys: UniqueKeys) -> Iterator[tuple[StoredInstance, bytes]]:
        return self._current().encoded_headers(keys)

    def count(self, keys: UniqueKeys) -> int:
        return self._current().count(keys)

    def counts(self) -> Counts:
        return self._current().counts()

    def progress(self) -> tuple[Counts, int] | None:
        """What is in the index, and how many objects wait to be put into it; None while it is closed. Waits for
        nobody."""
        index = self._index
        return None if index is None else (index.counts(), self._queued - self._done)

    def problem(self) -> str | None:
        """Why queries are not answered now."""
        if self._index is None:
            return "the index is closed"
        return "objects cannot be indexed" if self._error is not None else None

    def remove(self, paths: Iterable[str]) -> None:
        """Take files out of the index that were, or are about to be, deleted. paths: absolute."""
        self._current().remove(path[self._prefix :] for path in paths)

    # The thread

    def _run(self) -> None:
        index, log = self._index, self._log
        assert index is not None
        assert log is not None
        while True:
            batch = self._next_batch()
            if not batch:
                return
            started, queued = time.thread_time(), self._queued
            try:
                self._index_batch(index, log, batch)
                error = None
            except Exception as raised:
                error = raised
            with self._changed:
                self._error = error
                if error is None:
                    self._done += len(batch)
                else:
                    self._queue.extendleft(reversed(batch))
                self._changed.notify_all()
                if error is not None:
                    logger.error("objects cannot be indexed, trying again: %s", error, exc_info=error)
                    if self._closing:
                        return
                    self._changed.wait_for(lambda: self._closing, RETRY_S)
                    continue
                self._is_busy = self._queued > queued
                if self._queue and self._is_busy:
                    rest_s = (time.thread_time() - started) * (1 / BUSY_SHARE - 1)
                    self._changed.wait_for(self._in_a_hurry, rest_s)

    def _in_a_hurry(self) -> bool:
        return bool(self._waiting or self._closing or len(self._queue) > self._maximum_backlog)

    def _next_batch(self) -> list[_Arrival]:
        """Wait for arrivals and take some; none when closing."""
        with self._changed:
            self._sleeping = True
            self._changed.wait_for(lambda: self._queue or self._closing)
            self._sleeping = False
            if len(self._queue) < BATCH:
                self._changed.wait_for(self._in_a_hurry, GATHER_S)
            size = BATCH if self._in_a_hurry() or not self._is_busy else BUSY_BATCH
            return [self._queue.popleft() for _ in range(min(size, len(self._queue)))]

    def _index_batch(self, index: Index, log: PendingLog, batch: list[_Arrival]) -> None:
        # Of several arrivals of one path the last has the file as it is now.
        latest = {arrival.path: arrival for arrival in batch}
        paths = [
            arrival.path
            for arrival in latest.values()
            if not (arrival.only_when_missing and index.has(arrival.path))
        ]
        index_paths(index, self.root, paths, Progress())
        ours = [arrival for arrival in batch if arrival.line is None]
        if ours:
            log.settle([arrival.path for arrival in ours], max(arrival.mark for arrival in ours))
        _settle_lines(batch)
        if log.is_due:
            # What was written down long ago and is not queued was refused after that, or is another process' file.
            queued = {arrival.path for arrival in tuple(self._queue)}  # which may grow meanwhile
            refused = [path for path in log.pending(self._stale_mark) if path not in queued]
            index_paths(index, self.root, refused, Progress())
            log.settle(refused, self._stale_mark)
            self._stale_mark = log.mark()
            log.rotate(durable=self._durable)


def _settle_lines(batch: list[_Arrival]) -> None:
    for arrival in batch:
        if arrival.line is not None:
            feed, line = arrival.line
            with feed.lock:
                feed.settle(line)


def _is_unchanged(stored: StoredObject) -> bool:
    """What is at its path was there before."""
    # By identity, for each object: hashing a member of an Enum takes a call.
    return stored.disposition is Disposition.IDENTICAL or stored.disposition is Disposition.KEPT_FIRST


# From the files


def rebuild(root: Path, *, directory: Path | None = None, report: Report | None = None) -> Progress:
    """Make the index of an archive again from its files; nobody may have it open. Blocks, a millisecond per file.

    report: called every comparison.BATCH files, and at the end. Raises IndexInUse, ArchiveIndexError, OSError.
    """
    absolute = os.path.abspath(root)
    directory = directory or Path(absolute) / ".index"
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    index = SQLiteIndex(directory, root=absolute, verify_files=True)
    try:
        index.clear()
        log = PendingLog(directory)
        progress = compare(index, absolute, report)
        index.set_current()
        log.close()
    finally:
        index.close()
    return progress
