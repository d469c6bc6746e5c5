"""Compare data sets in files. Two files of one object differ in their file meta when two peers sent it.

Blocking and without limits on size: the archive calls this in the event loop for small files, else in a
thread.
"""

from __future__ import annotations

import hashlib
import os
from io import FileIO

from harmony.archive.torn import ends_early
from harmony.dimse.part10 import Part10Error, read_file_meta_from

__all__ = ["data_set_sha256", "is_torn_copy", "same_data_set"]

_CHUNK_BYTES = 256 * 1024  # large enough for the disk, small enough for the cache


def same_data_set(existing: str, arrived: str, data_set_offset: int) -> bool:
    """Tell whether the file `existing` holds the same data set as `arrived` has from `data_set_offset` on.

    A file that is not a Part 10 file holds a different one. Raises OSError when either cannot be read.
    """
    try:
        existing_offset = read_file_meta_from(existing).data_set_offset
    except Part10Error:
        return False
    with open(existing, "rb", buffering=0) as first, open(arrived, "rb", buffering=0) as second:
        size = os.fstat(first.fileno()).st_size - existing_offset
        if size != os.fstat(second.fileno()).st_size - data_set_offset:
            return False
        return _begins_with(first, existing_offset, second, data_set_offset)


def is_torn_copy(existing: str, arrived: str, data_set_offset: int) -> bool:
    """Tell whether `existing` is what a power cut left of the data set in `arrived`: the same, and it ends early.

    Raises OSError.
    """
    try:
        existing_offset = read_file_meta_from(existing).data_set_offset
    except Part10Error:
        return ends_early(existing)
    with open(existing, "rb", buffering=0) as first, open(arrived, "rb", buffering=0) as second:
        begins = _begins_with(first, existing_offset, second, data_set_offset)
    return begins and ends_early(existing)


def _begins_with(first: FileIO, first_offset: int, second: FileIO, second_offset: int) -> bool:
    """Whether all of `first` is in `second`, each from its offset on."""
    first.seek(first_offset)
    second.seek(second_offset)
    while chunk := first.read(_CHUNK_BYTES):
        other = b""
        while len(other) < len(chunk):
            more = second.read(len(chunk) - len(other))
            if not more:
                return False
            other += more
        if chunk != other:
            return False
    return True


def data_set_sha256(path: str, data_set_offset: int) -> str:
    """Return the SHA-256 of a data set, as 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        file.seek(data_set_offset)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
