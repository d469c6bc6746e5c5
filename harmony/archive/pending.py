"""Which files are not in the index yet, written down before they are there: a crash forgets none of them.

A line with the file's path is appended to a log before the file gets its name, so a file of which neither the index
nor the log knows cannot come to be. Lines whose files are in the index are dropped by starting the next log with the
others; a log is removed when the one after it is complete. What a start finds in the logs is indexed again, which
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
        self.found: list[str] = list(dict.fromkeys(line for _, path in logs for line in _read(path)))
        """Paths that earlier logs name, in their order, each once."""
        self._old = [path for _, path in logs]
        self._number = logs[-1][0] + 1 if logs else 0
        self._lock = threading.Lock()
        self._pending: dict[str, int] = {}  # path: the number of its latest line
        self._lines = 0
        self._lines_in_log = 0
        self._fd = os.open(self._path(), _FLAGS, 0o640)

    def _path(self) -> Path:
        return self._directory / f"pending-{self._number}.log"

    def append(self, path: str) -> None:
        """Write down a path, relative to the archive's root."""
        line = f"{path}\n".encode("utf-8", "surrogateescape")
        with self._lock:
            written = os.write(self._fd, line)
            if written < len(line):  # the disk is full: end the torn line, so that it spoils no other
                os.write(self._fd, b"\n")
                raise OSError("the index's log could not be written completely")
            self._lines += 1
            self._lines_in_log += 1
            self._pending[path] = self._lines

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
                if self._pending.get(path, mark + 1) <= mark:
                    del self._pending[path]

    def pending(self, before: int) -> list[str]:
        """Return the paths not settled whose latest line is at or before a mark."""
        with self._lock:
            return [path for path, number in self._pending.items() if number <= before]

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
            pending = list(self._pending)
        # From here on append() writes into the new log, so the old one holds nothing that is not in `pending`.
        os.close(old_fd)
        with self._path().open("ab", buffering=0) as file:
            file.write("".join(f"{path}\n" for path in pending).encode("utf-8", "surrogateescape"))
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


def _read(path: Path) -> list[str]:
    """Return the complete lines; what comes after the last one belongs to a file that did not get its name."""
    lines = path.read_bytes().split(b"\n")[:-1]
    return [line.decode("utf-8", "surrogateescape") for line in lines if line]
