"""Room on a file system: writes are refused while there still is some, so that what must be written can be.

Journals, the outbox, indexes and logs need the rest. Nothing is remembered of having been full: as soon as there is
room again, writing goes on. Used for received objects (`folder`), and by the gateway for uploads and what is retrieved.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Final

__all__ = ["FreeSpace"]

CHECK_S: Final = 1.0
CHECK_BYTES: Final = 16 * 1024 * 1024
"""How long, and how much may be written, until the free space is asked for again: it is one more system call."""
MINIMUM_FREE_FILES: Final = 1000
"""Files that can still be made where the file system has a fixed number of them: those that are on their way, with
their folders, journals and temporary files."""


class FreeSpace:
    """Of the file system that a folder is on. minimum_free_bytes: 0 leaves it to the disk to be full."""

    def __init__(self, root: str | os.PathLike[str], *, minimum_free_bytes: int) -> None:
        self.minimum_free_bytes = minimum_free_bytes
        self._root = os.fspath(root)
        self._next_check = 0.0
        self._free_bytes = 0
        self._free_files: int | None = None
        self._written_since_check = 0

    def shortage(self, size_bytes: int) -> str | None:
        """Why so much more must not be written, which counts as written otherwise. Asks the system only now and then.

        Raises OSError.
        """
        if not self.minimum_free_bytes:
            return None
        self._written_since_check += size_bytes
        now = time.monotonic()
        if now >= self._next_check or self._written_since_check >= CHECK_BYTES:
            self._ask()
            self._written_since_check = size_bytes
            self._next_check = now + CHECK_S
        if self._free_bytes - self._written_since_check < self.minimum_free_bytes:
            return f"less than {self.minimum_free_bytes} bytes would be free"
        return self._shortage_of_files()

    def shortage_now(self, size_bytes: int = 0) -> str | None:
        """The same, of this moment, and without counting. Raises OSError."""
        self._ask()
        if not self.minimum_free_bytes:
            return None
        if self._free_bytes - size_bytes < self.minimum_free_bytes:
            return f"less than {self.minimum_free_bytes} bytes {'would be' if size_bytes else 'are'} free"
        return self._shortage_of_files()

    def require(self, size_bytes: int) -> None:
        """Raises OSError, ENOSPC, when so much more must not be written."""
        if short := self.shortage(size_bytes):
            raise OSError(errno.ENOSPC, short, self._root)

    def require_now(self, size_bytes: int = 0) -> None:
        """The same, of this moment."""
        if short := self.shortage_now(size_bytes):
            raise OSError(errno.ENOSPC, short, self._root)

    def _ask(self) -> None:
        status = os.statvfs(self._root)
        self._free_bytes = status.f_bavail * status.f_frsize
        # 0 of 0: made as they are needed (Btrfs, network file systems).
        self._free_files = status.f_favail if status.f_files else None

    def _shortage_of_files(self) -> str | None:
        if self._free_files is not None and self._free_files < MINIMUM_FREE_FILES:
            return f"fewer than {MINIMUM_FREE_FILES} files can be made"
        return None
