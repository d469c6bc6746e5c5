"""What another process stores, told to the process that has the index: by a log that both of them see.

A worker writes a line with the file's path before the file gets its name, as `pending` does, so that no crash forgets a
file. The same line tells the index what to look at: it is in the log before the object is acknowledged, so whoever
reads the log to its end knows of everything that was acknowledged until then. There is no message for each object, and
nobody is woken up.

    +PATH   is going to be there in a moment, or (again, after a replacement or with durability "fsync") is there
    ?PATH   was there already: to be indexed only when the index does not have it

A tab and the size of the file in bytes follow, for what is looked at after a power cut (`torn`).

    <directory>/pending-0.log, pending-1.log, ...      one after the other; the latest is written to

The writer never goes back to an earlier log; the reader removes one when all of it is in the index. A path that is not
there yet is looked at again: the worker stores in one go, so that it has been stored or refused when the worker answers
something that was asked after the line was read (`WorkerFeed.asked`, `answered`).

The writer holds a lock on the folder, for whoever opens the index after a crash to wait for a worker that still lives.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harmony.archive.index import ArchiveIndexError
from harmony.archive.stored import Disposition, StoredObject

__all__ = ["WorkerFeed", "WorkerLog", "left_by_workers", "remove_left"]

FOLDER: Final = re.compile(r"worker-[0-9a-z-]{1,40}")
ROTATE_LINES: Final = 4096
"""As of the index's own log: some 800 KB."""
READ_BYTES: Final = 1 << 20
LEAVING_S: Final = 30.0
"""For workers of a process that was killed, which have until their objects are received and no longer than
`harmony.gateway.worker` says."""

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_UNCHANGED: Final = frozenset((Disposition.IDENTICAL, Disposition.KEPT_FIRST))


def _log(directory: Path, number: int) -> Path:
    return directory / f"pending-{number}.log"


def _number(log: Path) -> int:
    return int(log.stem.partition("-")[2])


def _parsed(line: bytes) -> tuple[str, str, int]:
    """Kind, path and size of a line; without a path when it is torn."""
    path, _, size = line.decode("utf-8", "surrogateescape").partition("\t")
    return path[:1], path[1:] if size.isdecimal() else "", int(size) if size.isdecimal() else 0


class WorkerLog:
    """The worker's side: a `Journal` and an on_stored callback. directory: made by `WorkerFeed`. Raises OSError."""

    def __init__(self, directory: Path, *, root: str, durable: bool) -> None:
        """root: the archive's. durable: what is appended is on the disk after `sync`."""
        self._directory = directory
        self._prefix = len(root) + 1
        self._durable = durable
        self._number = 0
        self._lines = 0
        self._lock = threading.Lock()  # of the descriptor, against a sync in a thread
        self._folder_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._folder_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._fd = os.open(_log(directory, 0), _FLAGS, 0o640)
        except BaseException:
            os.close(self._folder_fd)
            raise

    def append(self, stored: StoredObject) -> None:
        """Write an object down before it has its name (`Journal`)."""
        if stored.disposition not in _UNCHANGED:
            self._write("+", stored)

    def sync(self) -> None:
        """`Journal`; in a thread."""
        with self._lock:
            fd = os.dup(self._fd)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def stored(self, stored: StoredObject) -> None:
        """It has its name (`on_stored`). The line that was written before will do, where it leads to this object only
        and nothing comes in between."""
        if stored.disposition in _UNCHANGED:
            self._write("?", stored)
        elif self._durable or stored.disposition is Disposition.REPLACED:
            self._write("+", stored)

    def _write(self, kind: str, stored: StoredObject) -> None:
        line = f"{kind}{stored.path[self._prefix :]}\t{stored.size_bytes}\n".encode(
            "utf-8", "surrogateescape"
        )
        if self._lines >= ROTATE_LINES:
            self._rotate()
        written = os.write(self._fd, line)
        if written < len(line):  # the disk is full: end the torn line, so that it spoils no other
            os.write(self._fd, b"\n")
            raise OSError("the index's log could not be written completely")
        self._lines += 1

    def _rotate(self) -> None:
        fd = os.open(_log(self._directory, self._number + 1), _FLAGS, 0o640)
        with self._lock:
            old, self._fd = self._fd, fd
        self._number += 1
        self._lines = 0
        if self._durable:
            os.fdatasync(old)  # `sync` comes for the new one only
        os.close(old)

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._folder_fd)


@dataclass(slots=True, eq=False)
class _File:
    path: Path
    lines: int = 0
    settled: int = 0
    is_complete: bool = False
    """Nothing more is written to it."""


@dataclass(slots=True, eq=False)
class _Missing:
    """A path that is not there yet. asked: how often the worker had been asked when its line was read."""

    path: str
    file: _File
    asked: int


@dataclass(frozen=True, slots=True)
class Line:
    path: str
    """Relative to the archive's root."""
    only_when_missing: bool
    file: _File


class WorkerFeed:
    """The other side, of one worker. Its methods may be called in any thread that holds `lock`."""

    def __init__(self, directory: Path, *, root: str) -> None:
        """Makes the folder. Raises OSError."""
        self.lock = threading.RLock()
        self._root = root
        self.directory = directory
        directory.mkdir(mode=0o750)
        self._number = 0
        self._file = _File(_log(directory, 0))
        self._fd: int | None = None
        self._rest = b""
        self._missing: list[_Missing] = []
        self._asked = self._answered = 0
        self._open: list[_File] = [self._file]
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """The worker is gone and everything it has stored is in the index."""
        return self._is_over and not self._open

    def read(self) -> list[Line]:
        """What is new, and is there."""
        if self._is_over:
            return []
        found = [*self._appeared()]
        while True:
            # In this order: when there is a next log, nothing more comes into this one.
            is_complete = _log(self.directory, self._number + 1).exists()
            found += self._rest_of_file()
            if not is_complete:
                return found
            self._next()

    def _rest_of_file(self) -> Iterator[Line]:
        if self._fd is None:
            try:
                self._fd = os.open(self._file.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # the worker has not begun
                return
        while data := os.read(self._fd, READ_BYTES):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for encoded in lines:
                kind, path, _ = _parsed(encoded)
                if not path:
                    continue
                self._file.lines += 1
                if kind == "?" or self._is_there(path):
                    yield Line(path, kind == "?", self._file)
                else:
                    self._missing.append(_Missing(path, self._file, self._asked))

    def _is_there(self, path: str) -> bool:
        return os.access(f"{self._root}/{path}", os.F_OK)

    def _appeared(self) -> Iterator[Line]:
        missing, self._missing = self._missing, []
        for each in missing:
            is_decided = each.asked < self._answered
            if self._is_there(each.path):
                yield Line(each.path, False, each.file)
            elif is_decided:
                self._settle(each.file)  # it was refused
            else:
                self._missing.append(each)

    def _next(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._rest = b""
        self._complete(self._file)
        self._number += 1
        self._file = _File(_log(self.directory, self._number))
        self._open.append(self._file)

    def asked(self, number: int) -> None:
        """The worker is about to be asked something. number: higher than any before."""
        self._asked = number

    def answered(self, number: int) -> None:
        """It has answered."""
        self._answered = max(self._answered, number)

    def settle(self, line: Line) -> None:
        """It is in the index."""
        self._settle(line.file)

    def _settle(self, file: _File) -> None:
        file.settled += 1
        self._remove_when_done(file)

    def _complete(self, file: _File) -> None:
        file.is_complete = True
        self._remove_when_done(file)

    def _remove_when_done(self, file: _File) -> None:
        if file.is_complete and file.settled >= file.lines and file in self._open:
            self._open.remove(file)
            file.path.unlink(missing_ok=True)
            if self._is_over and not self._open:
                _remove_folder(self.directory)

    def end(self) -> list[Line]:
        """The worker is dead: what is still to be indexed."""
        self._answered = self._asked + 1
        found = self.read()
        found += self._appeared()
        self._is_over = True
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._complete(self._file)
        return found


# What a process that was killed has left


def left_by_workers(directory: Path) -> dict[Path, dict[str, int]]:
    """The folders of workers in that of an index, with the paths and sizes that each has written down.

    Blocks until those workers that still live are gone. Raises ArchiveIndexError when they stay.
    """
    found: dict[Path, dict[str, int]] = {}
    for folder in sorted(directory.iterdir()):
        if FOLDER.fullmatch(folder.name) and folder.is_dir():
            _wait_for(folder)
            lines = [
                _parsed(line)
                for log in sorted(folder.glob("pending-*.log"), key=_number)
                for line in log.read_bytes().split(b"\n")[:-1]
            ]
            found[folder] = {path: size_bytes for _, path, size_bytes in lines if path}
    return found


def _wait_for(folder: Path) -> None:
    deadline = time.monotonic() + LEAVING_S
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise ArchiveIndexError(f"a worker of another process still stores: {folder}") from None
                time.sleep(0.05)  # flock(2) itself has no timeout
    finally:
        os.close(fd)


def remove_left(folders: Iterable[Path]) -> None:
    """All of it is in the index."""
    for folder in folders:
        for log in folder.glob("pending-*.log"):
            log.unlink(missing_ok=True)
        _remove_folder(folder)


def _remove_folder(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass  # something else is in it: it is met again at the next start
