"""A folder that received objects are stored in: temporary files, series folders, final names, free space.

Names are the whole point: a file is written under a temporary name in `.incoming` and gets its final one
with link(2), which never replaces; where the file system has no hard links, with a check and rename(2).
Folders that someone removes meanwhile are made again. Left-over temporary files of processes that no longer
live are removed when a folder is
opened: one folder belongs to the processes of one host, that see each other's process ids.

What the files are and what happens to duplicates is `harmony.archive.files`.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import re
from collections.abc import Callable

from harmony.archive.durability import sync_directory
from harmony.archive.free_space import FreeSpace
from harmony.dicom.uid import path_component
from harmony.dimse.status import DimseError, Status

__all__ = ["Folder", "remove"]

logger = logging.getLogger("harmony.archive")

DIRECTORY_CACHE_SIZE = 4096
"""Series folders known to exist: about 1 MiB of memory, and more series than arrive at a time."""

_NO_UID = "x-none"  # cannot be a UID, nor the hash of one
_INCOMING = ".incoming"
_TEMPORARY = re.compile(r"([0-9]{1,10})-([0-9a-f]{8})-[0-9]+")
_OPEN_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
# Patient data: nothing for others, whatever the umask.
_FILE_MODE, _DIRECTORY_MODE = 0o640, 0o750
# Tells this process from an earlier one with the same id: in a container it is the same after every start.
_PROCESS_TOKEN = os.urandom(4).hex()
_temporary_numbers = itertools.count()
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})


class Folder:
    """The file system side of a FileStore. All methods block; `name` and `replace` may run in a thread.

    directories_made: None, or called with the folders that have new entries, which are then to be synced.
    """

    def __init__(
        self,
        root: str,
        *,
        minimum_free_bytes: int,
        directories_made: Callable[[tuple[str, ...]], None] | None,
    ) -> None:
        self.root = root
        self._space = FreeSpace(root, minimum_free_bytes=minimum_free_bytes)
        self._directories_made = directories_made
        self._incoming = os.path.join(root, _INCOMING)
        self._temporary_prefix = ""
        self._directories: dict[tuple[str, str], str] = {}
        self._hard_links = True

    @property
    def has_hard_links(self) -> bool:
        """Nothing has shown otherwise yet."""
        return self._hard_links

    def open(self) -> None:
        """Make the folder, and remove what a process that no longer lives left unfinished. Raises OSError."""
        self._make_directories(self._incoming)
        for name in os.listdir(self._incoming):
            match = _TEMPORARY.fullmatch(name)
            if match is not None and not _is_alive(int(match[1]), match[2]):
                logger.info("removing %s, left unfinished by an earlier process", name)
                remove(os.path.join(self._incoming, name))
        if self._directories_made is not None:
            sync_directory(os.path.dirname(self.root))
            sync_directory(self.root)
        self._temporary_prefix = f"{self._incoming}/{os.getpid()}-{_PROCESS_TOKEN}-"

    def temporary(self) -> str:
        """Return a new name for a temporary file; it is not made yet."""
        return self._temporary_prefix + str(next(_temporary_numbers))

    def create(self, temporary: str) -> int:
        """Make a temporary file; return its descriptor."""
        try:
            return os.open(temporary, _OPEN_FLAGS, _FILE_MODE)
        except FileNotFoundError:
            self._make_directories(self._incoming)
            return os.open(temporary, _OPEN_FLAGS, _FILE_MODE)

    def require_space(self, size_bytes: int) -> None:
        """Refuse when writing so much more would leave less than the minimum. Asks the system only now and then."""
        if short := self._space.shortage(size_bytes):
            raise DimseError(Status.OUT_OF_RESOURCES, short)

    def require_space_now(self) -> None:
        """Refuse when less than the minimum is free in this moment. Raises DimseError, OSError."""
        if short := self._space.shortage_now():
            raise DimseError(Status.OUT_OF_RESOURCES, short)

    def free_space(self) -> tuple[int, int]:
        """Bytes that may still be written, and the size of the file system. Raises OSError."""
        status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize

    def directory(self, study_instance_uid: str, series_instance_uid: str) -> str:
        """Return the folder of a series, and make it when it is met for the first time."""
        key = (study_instance_uid, series_instance_uid)
        path = self._directories.get(key)
        if path is None:
            study = path_component(study_instance_uid) if study_instance_uid else _NO_UID
            series = path_component(series_instance_uid) if series_instance_uid else _NO_UID
            study_path = f"{self.root}/{study}"
            path = f"{study_path}/{series}"
            self._make_directories(study_path, path)
            if self._directories_made is not None:
                self._directories_made((study_path, self.root))
            if len(self._directories) >= DIRECTORY_CACHE_SIZE:
                del self._directories[next(iter(self._directories))]
            self._directories[key] = path
        return path

    def name(self, temporary: str, path: str) -> bool:
        """Give a complete file its final name unless that is taken; tell whether it got it."""
        try:
            return self._link(temporary, path)
        except FileNotFoundError:  # someone removed the series folder since it was made
            self._remake_directory(path)
            return self._link(temporary, path)

    def replace(self, temporary: str, path: str) -> None:
        """Give a complete file its final name, whatever had it before."""
        try:
            os.rename(temporary, path)
        except FileNotFoundError:
            self._remake_directory(path)
            os.rename(temporary, path)

    def _link(self, temporary: str, path: str) -> bool:
        if self._hard_links:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                self._hard_links = False
                logger.warning(
                    "%s: no hard links here (%s); files are renamed instead", self.root, error.strerror
                )
            else:
                remove(temporary)
                return True
        if os.path.lexists(path):
            return False
        os.rename(temporary, path)
        return True

    def _remake_directory(self, path: str) -> None:
        series_path = os.path.dirname(path)
        study_path = os.path.dirname(series_path)
        self._make_directories(study_path, series_path)
        if self._directories_made is not None:  # too late to have them synced with the others
            sync_directory(study_path)
            sync_directory(self.root)

    def _make_directories(self, *paths: str) -> None:
        """Make the root and folders below it, outermost first; each may exist."""
        os.makedirs(self.root, _DIRECTORY_MODE, exist_ok=True)
        for path in paths:
            try:
                os.mkdir(path, _DIRECTORY_MODE)
            except FileExistsError:
                pass


def remove(path: str) -> None:
    """Remove a file. One that cannot be removed stays, with a warning: what was to be done is done."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("cannot remove %s: %s", path, error.strerror)


def _is_alive(process_id: int, token: str) -> bool:
    if process_id == os.getpid():
        return token == _PROCESS_TOKEN
    try:
        os.kill(process_id, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it lives, under another user
    return True
