"""Folders of retrieved instances, for callers that pick files up themselves, and their removal.

    <root>/<uuid>/<SOPInstanceUID>.dcm

A folder gets its name when the retrieve is complete; until then it is hidden, so nobody sees half of it, and a retrieve
that fails leaves nothing. After its time to live it is removed. That is decided by the time of the folder, so it also
holds for what an earlier process left; only folders with the marker that is put into each are ever touched.

Retrieved instances are no archive: the root is a folder of its own, and where it is that of an archive all the same,
the index passes these folders over, because no study is called like a UUID.

Called by `harmony.gateway.dimse_bridge`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from io import RawIOBase
from pathlib import Path
from typing import Final

from harmony.archive.free_space import FreeSpace
from harmony.archive.levels import Entity
from harmony.archive.stored_header import NotOurs, read_header
from harmony.dicom.uid import path_component
from harmony.dimse.part10 import encode_file_meta
from harmony.dimse.scu import Instance
from harmony.dimse.source import pieces
from harmony.gateway.options import DEFAULT_MIN_FREE_BYTES

__all__ = ["NotWritten", "RetrievedFolder", "RetrievedFolders"]

logger = logging.getLogger("harmony.gateway")

MARKER: Final = ".harmony-retrieved"
ABANDONED_S: Final = 3600.0
"""A folder of an unfinished retrieve into which nothing was put for so long belongs to no living process: a PACS that
is silent for much less counts as gone."""
LONGEST_SWEEP_INTERVAL_S: Final = 60.0

_FILE_MODE, _DIRECTORY_MODE = 0o640, 0o750  # patient data: nothing for others, whatever the umask


class NotWritten(Exception):
    """The disk does not take what was retrieved; __cause__ says why. No OSError, as what is retrieved may raise one,
    too."""


class RetrievedFolders:
    """All the folders below one root. ttl_s: how long each is kept after its retrieve; 0: for ever."""

    def __init__(self, root: Path, *, ttl_s: float, minimum_free_bytes: int = DEFAULT_MIN_FREE_BYTES) -> None:
        self.root = Path(os.path.abspath(root))
        self.ttl_s = ttl_s
        self.space = FreeSpace(self.root, minimum_free_bytes=minimum_free_bytes)
        self._in_use: set[str] = set()
        self._sweeping: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"the folder of retrieved instances {self.root}"

    async def start(self) -> None:
        """Make the root, remove what is due, and go on doing that. Raises OSError."""
        await asyncio.to_thread(os.makedirs, self.root, _DIRECTORY_MODE, exist_ok=True)
        await asyncio.to_thread(self.sweep, time.time())
        self._sweeping = asyncio.create_task(self._sweep_again(), name=f"sweep {self.root}")

    async def stop(self, grace_s: float) -> None:
        sweeping, self._sweeping = self._sweeping, None
        if sweeping is not None:
            sweeping.cancel()
            await asyncio.wait([sweeping])

    async def _sweep_again(self) -> None:
        interval_s = min(LONGEST_SWEEP_INTERVAL_S, max(1.0, self.ttl_s / 10 or LONGEST_SWEEP_INTERVAL_S))
        while True:
            await asyncio.sleep(interval_s)
            try:
                await asyncio.to_thread(self.sweep, time.time())
            except OSError as error:
                logger.error("%s cannot be looked through: %s", self.root, error.strerror)

    def sweep(self, now: float) -> None:
        """Blocking: remove the folders whose time is over at `now`, in seconds since the epoch."""
        with os.scandir(self.root) as entries:
            candidates = [
                (entry.name, entry.path) for entry in entries if _is_uuid(entry.name.removeprefix("."))
            ]
        for name, path in candidates:
            keep_s = ABANDONED_S if name.startswith(".") else self.ttl_s
            if not keep_s or name.removeprefix(".") in self._in_use:
                continue
            with suppress(FileNotFoundError, NotADirectoryError):
                if os.stat(path, follow_symlinks=False).st_mtime + keep_s <= now:
                    _remove(Path(path))

    async def new(self) -> RetrievedFolder:
        """A hidden folder to put instances into. Raises NotWritten."""
        folder = RetrievedFolder(self, str(uuid.uuid4()))
        self._in_use.add(folder.id)
        try:
            with _writing():
                await asyncio.to_thread(folder.make)
        except BaseException:
            self._in_use.discard(folder.id)
            raise
        return folder

    def released(self, folder_id: str) -> None:
        """Nobody here uses a folder any more."""
        self._in_use.discard(folder_id)


class RetrievedFolder:
    """One of them. `complete` or `remove` it, and `release` it when it need no longer be protected from the sweep."""

    def __init__(self, folders: RetrievedFolders, folder_id: str) -> None:
        self.id = folder_id
        self.path = folders.root / folder_id
        """Once it is complete."""
        self._folders = folders
        self._hidden = folders.root / f".{folder_id}"
        self._files: dict[str, None] = {}

    @property
    def file_count(self) -> int:
        return len(self._files)

    def make(self) -> None:
        """Blocking. Raises OSError."""
        os.makedirs(self._hidden, _DIRECTORY_MODE)
        os.close(_create(self._hidden / MARKER))

    async def add(self, instance: Instance) -> None:
        """Write one instance as its data come. Raises NotWritten, and what its data raise; a part may be left then."""
        name = f"{path_component(instance.sop_instance_uid)}.dcm"
        meta = encode_file_meta(
            transfer_syntax_uid=instance.transfer_syntax_uid,
            media_storage_sop_class_uid=instance.sop_class_uid,
            media_storage_sop_instance_uid=instance.sop_instance_uid,
        )
        with _writing():
            self._folders.space.require_now()
            file = open(_create(self._hidden / name), "wb", buffering=0)  # noqa: ASYNC230, SIM115 - to the page cache
        with file:
            self._write(file, meta)
            async with aclosing(pieces(instance.data)) as fragments:
                async for fragment in fragments:
                    self._write(file, fragment)
        self._files[name] = None

    def _write(self, file: RawIOBase, data: bytes | memoryview) -> None:
        view = memoryview(data)
        with _writing():
            self._folders.space.require(len(view))
            while view:
                view = view[file.write(view) or 0 :]

    async def complete(self) -> None:
        """Give it its name. Raises NotWritten."""
        with _writing():
            os.utime(self._hidden)  # its time to live begins
            await asyncio.to_thread(os.rename, self._hidden, self.path)

    async def remove(self) -> None:
        """Remove it, complete or not, and release it; also when the caller is cancelled meanwhile, as by a client that
        leaves."""
        removing = asyncio.create_task(asyncio.to_thread(self._remove))
        removing.add_done_callback(lambda _: self.release())
        await asyncio.shield(removing)

    def _remove(self) -> None:
        for path in (self._hidden, self.path):
            _remove(path)

    def release(self) -> None:
        self._folders.released(self.id)

    def headers(self, first: int, count: int) -> Iterator[Entity]:
        """Blocking: the headers of some of the files, in the order in which they came. Raises OSError."""
        for name in list(self._files)[first : first + count]:
            try:
                yield read_header(self.path / name)
            except NotOurs as error:  # which we have written ourselves
                raise OSError(errno.EIO, str(error), name) from error


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotWritten(str(error)) from error


def _is_uuid(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


def _remove(folder: Path) -> None:
    """Remove a folder that has our marker, the marker last: what could not be removed is tried again another time."""
    marker = folder / MARKER
    try:
        if not marker.exists():
            return
        with os.scandir(folder) as entries:
            names = [entry.path for entry in entries if entry.name != MARKER]
        for name in names:
            os.unlink(name)
        os.unlink(marker)
        os.rmdir(folder)
    except FileNotFoundError:
        pass  # somebody else was faster
    except OSError as error:
        logger.warning("cannot remove the retrieved instances in %s: %s", folder, error.strerror)
