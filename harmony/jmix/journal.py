"""The list of objects that will be one envelope, on disk before any of their senders hears of success.

One file per open envelope, `<folder>/<envelope id>.journal`: a header line (a JSON object with the envelope's id,
fixed before its first object, and where it comes from), then a JSON array per object. A line is one write(2), nothing
is buffered, so a crash of the program loses no line; `sync` makes them survive a loss of power. Closing renames the
file to `<envelope id>.closed`: from then on it is a work order for the envelope builder, which removes it when done.

Reading believes only what can be: a line that is torn or not of this form is passed over, and so is an object whose
file does not exist, because the line is written before the file gets its name (docs/DESIGN.md): nobody was ever told
that such an object is safe. Recovery strikes such lines out: the sender will repeat the object, and then a file of this
name belongs to another envelope. The last line about a path holds; one that says "kept first" takes it out again.

The folder belongs to one process. Blocking; `append` and `close` belong to one thread, `sync` may run in another.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

import msgspec

from harmony.jmix.limits import canonical_envelope_id

__all__ = [
    "Closed",
    "EnvelopeJournal",
    "JournalEntry",
    "JournalHeader",
    "PlannedObject",
    "Recovered",
    "Stored",
    "read",
    "recover",
]

logger = logging.getLogger("harmony.jmix")

OPEN_SUFFIX = ".journal"
CLOSED_SUFFIX = ".closed"
REMOVED = "kept first"
"""Disposition of a line that takes an object out again, in the archive's words."""

_FILE_MODE = 0o640
_encode = msgspec.json.Encoder().encode


class PlannedObject(Protocol):
    """One file that goes into an envelope; a `JournalEntry` is one."""

    @property
    def path(self) -> str: ...
    @property
    def study_instance_uid(self) -> str: ...
    @property
    def series_instance_uid(self) -> str: ...
    @property
    def sop_class_uid(self) -> str: ...
    @property
    def sop_instance_uid(self) -> str: ...
    @property
    def transfer_syntax_uid(self) -> str: ...


class Stored(PlannedObject, Protocol):
    """What an object's line says; `harmony.archive.StoredObject` is one."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def disposition(self) -> Enum: ...


class JournalHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The first line."""

    envelope_id: str
    study_instance_uid: str
    pipeline: str
    origin: str
    """Who sent the objects, for example a calling AE title."""
    created: str
    """RFC 3339, UTC."""


class JournalEntry(msgspec.Struct, frozen=True, array_like=True):
    """One object's line."""

    path: str
    """Absolute once read; relative to the storage root in the file, so that the root may be moved."""
    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    size_bytes: int
    disposition: str


_decode_header = msgspec.json.Decoder(JournalHeader).decode
_decode_entry = msgspec.json.Decoder(JournalEntry).decode


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed journal: what to build."""

    path: Path
    header: JournalHeader
    entries: tuple[JournalEntry, ...]
    """Objects whose files exist, in the order of arrival."""

    def remove(self) -> None:
        """The envelope is built and safe: the journal has served. Idempotent."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Recovered:
    """A journal left by an earlier process."""

    journal: Closed
    interrupted: bool
    """It was still open: its last object's sender may not have heard that it is safe."""
    in_doubt: tuple[JournalEntry, ...]
    """Those last objects, as far as they exist; empty unless interrupted."""


class EnvelopeJournal:
    """One open journal.

    folder: exists. storage_root: what the paths of objects begin with, the archive's root as an absolute path.
    Raises OSError, FileExistsError when there is a journal of this id, ValueError when the id is no UUID.
    """

    __slots__ = ("_fd", "_last", "_lock", "_prefix", "_size_bytes", "_synced_folder", "header", "path")

    def __init__(self, folder: Path, header: JournalHeader, *, storage_root: str) -> None:
        if canonical_envelope_id(header.envelope_id) != header.envelope_id:
            raise ValueError(f"{header.envelope_id!r} is not a canonical UUID")
        self.header = header
        self.path = folder / (header.envelope_id + OPEN_SUFFIX)
        self._prefix = os.path.abspath(storage_root) + "/"
        self._lock = threading.Lock()  # between sync and close, never held by append
        self._synced_folder = False
        self._size_bytes = 0
        self._last = ("", 0)  # the path of the last line, and where that line begins
        self._fd = os.open(
            self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, _FILE_MODE
        )
        try:
            self._write(_encode(header) + b"\n")
        except BaseException:
            os.close(self._fd)
            self.path.unlink()
            raise

    def __repr__(self) -> str:
        return f"<EnvelopeJournal {self.header.envelope_id} {'open' if self._fd >= 0 else 'closed'}>"

    def append(self, stored: Stored) -> None:
        """Write one object's line. OSError when the disk will not take it; the journal is as before then."""
        path = stored.path
        if not path.startswith(self._prefix):
            raise ValueError("the object is not below the storage root")
        start = self._size_bytes
        self._write(
            _encode(
                (
                    path[len(self._prefix) :],
                    stored.study_instance_uid,
                    stored.series_instance_uid,
                    stored.sop_class_uid,
                    stored.sop_instance_uid,
                    stored.transfer_syntax_uid,
                    stored.size_bytes,
                    stored.disposition.value,
                )
            )
            + b"\n"
        )
        self._last = (path, start)

    def take_back(self, path: str) -> bool:
        """Cut off the last line if it is about the object at `path`; tell whether it was. Needs no room on the disk."""
        last, start = self._last
        if last != path:
            return False
        os.ftruncate(self._fd, start)
        self._size_bytes = start
        self._last = ("", 0)
        return True

    def remove(self, path: str) -> None:
        """Write that the object at `path` is not part of the envelope after all."""
        relative = path.removeprefix(self._prefix)
        self._write(_removal(relative))
        self._last = ("", 0)

    def sync(self) -> None:
        """Make everything appended so far durable, the file's name included the first time. Nothing when closed."""
        with self._lock:
            if self._fd < 0:
                return
            os.fsync(self._fd)
            if not self._synced_folder:
                _sync_folder(self.path.parent)
                self._synced_folder = True

    def close(self) -> Path:
        """Make the journal a work order; return its new path. Waits for a running `sync`. Idempotent."""
        with self._lock:
            if self._fd >= 0:
                closed = self.path.with_suffix(CLOSED_SUFFIX)
                os.rename(self.path, closed)
                self.path = closed
                os.close(self._fd)
                self._fd = -1
        return self.path

    def _write(self, line: bytes) -> None:
        written = os.write(self._fd, line)
        if written != len(
            line
        ):  # the disk is full: take back what went out, or the next line would be lost too
            os.ftruncate(self._fd, self._size_bytes)
            raise OSError(errno.ENOSPC, "the journal line did not fit")
        self._size_bytes += written


def read(path: Path, *, storage_root: str) -> Closed:
    """Read a journal, open or closed. ValueError when it has no header; OSError when it cannot be read."""
    header, lines = _parse(path)
    return Closed(path, header, _existing(lines, storage_root))


def recover(
    folder: Path,
    *,
    storage_root: str,
    window: int = 1,
    skip: Collection[Path] = (),
    remember: Callable[[Recovered], None] | None = None,
) -> list[Recovered]:
    """Close every journal an earlier process left open, and return them all, oldest first.

    window: how many objects of an association may have been without an answer at a time (PS3.7 Annex D.3.3.3). Of
        an interrupted journal so many last objects are in doubt.
    skip: journals of this process.
    remember: called for each interrupted journal before it is closed. Once that has happened nothing tells any more
        which of its objects are in doubt, so they must be on the disk by then.
    A file without a header never had an object: it is removed. Also removes nothing and returns nothing twice: what
    is not removed by its builder is returned again by the next process. Lines about objects without a file are struck
    out for good. OSError when the disk will not take that.
    """
    found = []
    for path in sorted(folder.glob("*" + OPEN_SUFFIX)) + sorted(folder.glob("*" + CLOSED_SUFFIX)):
        if path in skip:
            continue
        try:
            header, lines = _parse(path)
        except ValueError:
            logger.warning("removing %s: a crash left it without its first line", path.name)
            path.unlink()
            continue
        interrupted = path.suffix == OPEN_SUFFIX
        entries = _existing(lines, storage_root)
        in_doubt = _existing(_last_mentioned(lines, window), storage_root) if interrupted else ()
        prefix = os.path.abspath(storage_root) + "/"
        there = {entry.path.removeprefix(prefix) for entry in entries}
        _strike_out(path, [missing for missing in _by_path(lines) if missing not in there])
        closed = path.with_suffix(CLOSED_SUFFIX)
        recovered = Recovered(Closed(closed, header, entries), interrupted, in_doubt)
        if interrupted:
            if remember is not None:
                remember(recovered)
            path.rename(closed)
        found.append(recovered)
    return sorted(found, key=lambda recovered: recovered.journal.header.created)


def _strike_out(path: Path, missing: Iterable[str]) -> None:
    """Append to a journal that these relative paths are not part of it."""
    removals = b"".join(map(_removal, missing))
    if not removals:
        return
    with open(path, "r+b", buffering=0) as file:
        size = file.seek(-1, os.SEEK_END) + 1
        if file.read(1) != b"\n":
            removals = b"\n" + removals  # ends the torn line, which says nothing
        try:
            if file.write(removals) != len(removals):
                raise OSError(errno.ENOSPC, "the journal line did not fit")
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def _removal(relative: str) -> bytes:
    return _encode((relative, "", "", "", "", "", 0, REMOVED)) + b"\n"


def _parse(path: Path) -> tuple[JournalHeader, list[JournalEntry | None]]:
    """Return the header and what each further line says, None for one that says nothing."""
    first, *rest = path.read_bytes().split(b"\n")
    try:
        header = _decode_header(first)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ValueError(f"{path.name} has no header line") from None
    if header.envelope_id != path.stem or not rest:
        raise ValueError(f"{path.name} has no header line of its own")
    *lines, torn = rest
    entries = [_entry(line) for line in lines]
    return header, [*entries, None] if torn else entries


def _entry(line: bytes) -> JournalEntry | None:
    try:
        entry = _decode_entry(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return None if entry.path.startswith("/") or ".." in entry.path.split("/") else entry


def _by_path(lines: Iterable[JournalEntry | None]) -> dict[str, JournalEntry]:
    """What the lines say, by relative path, in the order of arrival."""
    by_path: dict[str, JournalEntry] = {}
    for entry in lines:
        if entry is None:
            continue
        if entry.disposition == REMOVED:
            by_path.pop(entry.path, None)
        else:
            by_path[entry.path] = entry
    return by_path


def _last_mentioned(lines: list[JournalEntry | None], window: int) -> list[JournalEntry]:
    """The last objects, a line that says nothing counted as one."""
    by_path = _by_path(lines)
    last: list[JournalEntry] = []
    for entry in reversed(lines):
        if window == 0:
            break
        if entry is None:
            window -= 1
        elif entry.disposition != REMOVED and by_path.pop(entry.path, None) is not None:
            last.append(entry)
            window -= 1
    return last[::-1]


def _existing(lines: Iterable[JournalEntry | None], storage_root: str) -> tuple[JournalEntry, ...]:
    """Apply the rules of this module's docstring to lines."""
    root = os.path.abspath(storage_root)
    entries = (
        msgspec.structs.replace(entry, path=f"{root}/{path}") for path, entry in _by_path(lines).items()
    )
    return tuple(entry for entry in entries if os.path.isfile(entry.path))


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
