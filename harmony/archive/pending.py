"""Which files are not in the index yet, written down before they are there: a crash forgets none of them.

A line with the file's path and size is appended to a log before the file gets its name, so a file of which neither the
index nor the log knows cannot come to be. Lines whose files are in the index are dropped by starting the next log with
the others; a log is removed when the one after it is complete. What a start finds in the logs is indexed again, which
changes nothing where it was indexed already.

`append` and `sync` are those of `harmony.archive.stored.Journal`: one write(2) per object in the event loop, 3 us.
The other methods are for the indexing thread.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

__all__ = ["PendingLog"]

ROTATE_LINES = 4096
"""Some 800 KB of log; a start after a crash looks at this many files more than it had to, which takes a second."""
_LOG = re.compile(r"pending-([0-9]{1,12})\.log")
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


class PendingLog:
    """The logs in one folder, which belongs to this object alone. Raises OSError."""

    def __init__(self, directory: Path) -> None:
        """Open a new log; what earlier ones hold is in `found` and stays until the first `rotate`."""
        self._directory = directory
        logs = sorted(
            (int(match[1]), path) for path in directory.iterdir() if (match := _LOG.fullmatch(path.name))
        )
        found: dict[str, int] = {}
        for _, path in logs:
            found.update(_read(path))
        self.found: list[str] = list(found)
        """Paths that earlier logs name, in their order, each once."""
        self.sizes = {path: size for path, size in found.items() if size}
        """What each was to have, in bytes, where the log says it."""
        self._old = [path for _, path in logs]
        self._number = logs[-1][0] + 1 if logs else 0
        self._lock = threading.Lock()
        self._pending: dict[str, tuple[int, int]] = {}  # path: the number of its latest line, the file's size
        self._lines = 0
        self._lines_in_log = 0
        self._fd = os.open(self._path(), _FLAGS, 0o640)

    def _path(self) -> Path:
        return self._directory / f"pending-{self._number}.log"

    def append(self, path: str, size_bytes: int = 0) -> None:
        """Write down a path, relative to the archive's root, and how large the file is; 0: that is not known."""
        line = _line(path, size_bytes)
        with self._lock:
            written = os.write(self._fd, line)
            if written < len(line):  # the disk is full: end the torn line, so that it spoils no other
                os.write(self._fd, b"\n")
                raise OSError("the index's log could not be written completely")
            self._lines += 1
            self._lines_in_log += 1
            self._pending[path] = self._lines, size_bytes

    def sync(self) -> None:
        """Put what was appended on the disk. May run in any thread."""
        with self._lock:
            fd = os.dup(self._fd)
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def mark(self) -> int:
        """Return a number that no line appended later has."""
        return self._lines

    def settle(self, paths: list[str], mark: int) -> None:
        """Drop paths that are in the index, unless a line was appended for them after `mark`."""
        with self._lock:
            for path in paths:
                if path in self._pending and self._pending[path][0] <= mark:
                    del self._pending[path]

    def pending(self, before: int) -> list[str]:
        """Return the paths not settled whose latest line is at or before a mark."""
        with self._lock:
            return [path for path, (number, _) in self._pending.items() if number <= before]

    @property
    def is_due(self) -> bool:
        """It is time to rotate: most of what is in the log is settled."""
        return self._lines_in_log >= max(ROTATE_LINES, 2 * len(self._pending))

    def rotate(self, *, durable: bool) -> None:
        """Go on in a new log that has only what is not settled; remove the others."""
        with self._lock:
            old_fd, old_path = self._fd, self._path()
            self._number += 1
            self._fd = os.open(self._path(), _FLAGS, 0o640)
            self._lines_in_log = 0
            pending = [_line(path, size_bytes) for path, (_, size_bytes) in self._pending.items()]
        # From here on append() writes into the new log, so the old one holds nothing that is not in `pending`.
        os.close(old_fd)
        with self._path().open("ab", buffering=0) as file:
            file.write(b"".join(pending))
            if durable:
                os.fdatasync(file.fileno())
        for path in (*self._old, old_path):
            path.unlink(missing_ok=True)
        self._old = []

    def close(self) -> None:
        """Close the log; it is removed when nothing is pending."""
        with self._lock:
            os.close(self._fd)
            if not self._pending:
                for path in (*self._old, self._path()):
                    path.unlink(missing_ok=True)


def _line(path: str, size_bytes: int) -> bytes:
    return f"{path}\t{size_bytes}\n".encode("utf-8", "surrogateescape")


def _read(path: Path) -> dict[str, int]:
    """Return what the complete lines say; what comes after the last belongs to a file that did not get its name."""
    found: dict[str, int] = {}
    for line in path.read_bytes().split(b"\n")[:-1]:
        name, _, size = line.decode("utf-8", "surrogateescape").partition("\t")
        if name:
            found[name] = int(size) if size.isdecimal() else 0
    return found
