"""DICOM files in folders, told by their content and not by their names (PS3.10 §7.1).

Of each file the file meta information is read, and the beginning of the data set where the former lacks the UIDs of the
instance. Nothing is kept, so that millions of files take no more memory than one. Folders are read as the system lists
them, without sorting, and links to folders are not followed.

Blocking: `supply` calls it from a thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from harmony.dicom.scanner import HeaderScanner
from harmony.dimse.part10 import FileMeta, Part10Error, read_beginning
from harmony.dimse.sop_class import MEDIA_STORAGE_DIRECTORY_STORAGE

__all__ = ["Found", "Pair", "PassedOver", "Unreadable", "count", "find_files"]

Pair = tuple[str, str]
"""SOP class and transfer syntax."""

_SOP_CLASS_UID, _SOP_INSTANCE_UID = 0x00080016, 0x00080018
_SEARCHED_BYTES = 64 * 1024
"""Of a data set, for these two, which are among its first elements."""


@dataclass(frozen=True, slots=True)
class Found:
    """A DICOM file that can be sent."""

    path: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set_offset: int
    data_set: bytes | None = field(default=None, repr=False, compare=False)
    """Of a file of a few kilobytes, which was read whole."""

    @property
    def pair(self) -> Pair:
        return self.sop_class_uid, self.transfer_syntax_uid


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A file that is not meant to be sent: no DICOM file, or the DICOMDIR of a medium."""

    path: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file, or a folder, of which the content cannot be told; or a DICOM file that does not say what it is."""

    path: str
    error: OSError | Part10Error


Item = Found | PassedOver | Unreadable


def find_files(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Item]:
    """Every file in these folders, below them, or named itself."""
    for path in paths:
        for item in _files(os.fspath(path)):
            yield _look_at(item) if isinstance(item, str) else item


def count(paths: Iterable[str | os.PathLike[str]], *, stopped: Callable[[], bool]) -> int | None:
    """How many items `find_files` has, without opening any; None when it was stopped before it knew."""
    number = 0
    for path in paths:
        for _ in _files(os.fspath(path)):
            number += 1
            if stopped():
                return None
    return number


def _files(path: str) -> Iterator[str | PassedOver | Unreadable]:
    if os.path.isdir(path):
        yield from _below(path)
    elif os.path.isfile(path):
        yield path
    else:
        yield Unreadable(path, FileNotFoundError("no such file or folder"))


def _below(folder: str) -> Iterator[str | PassedOver | Unreadable]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _below(entry.path)
                elif entry.is_file():
                    yield entry.path
                else:
                    yield PassedOver(entry.path)  # a pipe, a device, a link to a folder or to nowhere
    except OSError as error:
        yield Unreadable(folder, error)


def _look_at(path: str) -> Item:
    try:
        meta, data_set = read_beginning(path)
    except Part10Error as error:
        return Unreadable(path, error) if _says_dicom(path) else PassedOver(path)
    except OSError as error:
        return Unreadable(path, error)
    if meta.media_storage_sop_class_uid == MEDIA_STORAGE_DIRECTORY_STORAGE:
        return PassedOver(path)
    uids = meta.media_storage_sop_class_uid, meta.media_storage_sop_instance_uid
    try:
        sop_class_uid, sop_instance_uid = uids if all(uids) else _uids_in_data_set(path, meta)
    except (OSError, Part10Error) as error:
        return Unreadable(path, error)
    return Found(
        path, sop_class_uid, sop_instance_uid, meta.transfer_syntax_uid, meta.data_set_offset, data_set
    )


def _uids_in_data_set(path: str, meta: FileMeta) -> tuple[str, str]:
    """For file meta information that does not say which instance this is (Type 1, PS3.10 Table 7.1-1)."""
    scanner = HeaderScanner(meta.transfer_syntax_uid, frozenset((_SOP_CLASS_UID, _SOP_INSTANCE_UID)))
    with open(path, "rb", buffering=0) as file:
        file.seek(meta.data_set_offset)
        if not scanner.feed(memoryview(file.read(_SEARCHED_BYTES))):
            scanner.finish()
    found = scanner.text(_SOP_CLASS_UID), scanner.text(_SOP_INSTANCE_UID)
    if not all(found):
        raise Part10Error(
            "neither file meta information (0002,0002), (0002,0003) nor data set (0008,0016), (0008,0018) "
            "say which instance this is"
        )
    return found


def _says_dicom(path: str) -> bool:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
