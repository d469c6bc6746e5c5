"""Files that end before what they hold does: what a power cut leaves under a final name with durability "os".

A name may be on the disk before its data are. After such a stop the files of the last minutes before it are looked at,
and those that are cut off are moved to `<root>/.torn`, so that nobody is served half an object and the sender's
repetition is stored. A file that has the size that was written down for it is whole, however its data set ends: then
that is how it was sent. What no size tells is a file of the right length whose last blocks are zeros: only durability
"fsync" keeps that from happening.

Elements are walked by their lengths, values are not looked at (PS3.5 §7.1, §7.5). Blocking: a file of some hundred
elements takes a fraction of a millisecond, whatever its size. Called by `harmony.archive.indexing` when it opens, and
for a duplicate by `harmony.archive.files`.
"""

from __future__ import annotations

import logging
import mmap
import os
import zlib
from collections.abc import Iterable, Mapping
from struct import Struct
from typing import Final

from harmony.dimse.part10 import Part10Error, read_file_meta_from

__all__ = ["TORN_FOLDER", "ends_early", "set_aside"]

logger = logging.getLogger("harmony.archive")

TORN_FOLDER: Final = ".torn"
RECENT_NS: Final = 600 * 10**9
"""Before the newest file. Systems write within half a minute; a busy disk, or one over a network, takes longer."""
MAXIMUM_INFLATED_BYTES: Final = 64 * 1024 * 1024
"""Of a deflated data set, which are reports and the like; longer ones are taken for whole."""

_PREFIX = bytes(128) + b"DICM"
_DEFLATED_EXPLICIT_VR, _IMPLICIT_VR = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2"
_EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_LONG_VRS = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
_TAG = {False: Struct("<HH").unpack_from, True: Struct(">HH").unpack_from}
_SHORT = {False: Struct("<H").unpack_from, True: Struct(">H").unpack_from}
_LONG = {False: Struct("<I").unpack_from, True: Struct(">I").unpack_from}
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_DELIMITER, _SEQUENCE_DELIMITER = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_CHUNK_BYTES = 256 * 1024

Buffer = mmap.mmap | bytes


def set_aside(
    root: str,
    files: Iterable[tuple[str, int, int]],
    *,
    written: Mapping[str, int],
    indexed: Mapping[int, int],
) -> list[str]:
    """Move away what was torn when the machine stopped; return its paths.

    files: path relative to root, size and time in ns of each file there is. written: the size that a path was to have,
    by the log of the last minutes; indexed: the size in the index, by the hash of the path.
    """
    torn = []
    for path, size in _candidates(files, written, indexed):
        if size in (written.get(path), indexed.get(hash(path))):
            continue
        try:
            if size < written.get(path, 0) or ends_early(f"{root}/{path}"):
                _move(root, path)
                torn.append(path)
        except OSError as error:
            logger.warning("%s: cannot be looked at: %s", path, error.strerror)
    return torn


def _candidates(
    files: Iterable[tuple[str, int, int]], written: Mapping[str, int], indexed: Mapping[int, int]
) -> Iterable[tuple[str, int]]:
    """Those of the last minutes, and those that have become shorter."""
    recent: list[tuple[str, int, int]] = []
    newest, prune_at = 0, 10_000
    for path, size, time_ns in files:
        if size < max(written.get(path, 0), indexed.get(hash(path), 0)):
            yield path, size
        elif time_ns >= newest - RECENT_NS:
            newest = max(newest, time_ns)
            recent.append((path, size, time_ns))
            if len(recent) >= prune_at:
                recent = [each for each in recent if each[2] >= newest - RECENT_NS]
                prune_at = max(prune_at, 2 * len(recent))
    for path, size, time_ns in recent:
        if time_ns >= newest - RECENT_NS:
            yield path, size


def _move(root: str, path: str) -> None:
    target = f"{root}/{TORN_FOLDER}/{path}"
    os.makedirs(os.path.dirname(target), 0o750, exist_ok=True)
    number = 1
    while os.path.lexists(target):
        number += 1
        target = f"{root}/{TORN_FOLDER}/{path}.{number}"
    os.rename(f"{root}/{path}", target)
    logger.warning("%s ends early, as after a power cut: moved to %s", path, target)


def ends_early(path: str) -> bool:
    """Tell whether a Part 10 file is cut off: in its file meta, or where an element or a sequence says that it goes on.

    False also for what is no Part 10 file, or cannot be understood. Raises OSError.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return True
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                meta = read_file_meta_from(path)
            except Part10Error:
                head = data[: len(_PREFIX)]
                return not any(head) or _PREFIX.startswith(head)
            syntax, at = meta.transfer_syntax_uid, meta.data_set_offset
            if syntax == _DEFLATED_EXPLICIT_VR:
                return _deflated_ends_early(data, at)
            explicit, big = syntax != _IMPLICIT_VR, syntax == _EXPLICIT_VR_BIG_ENDIAN
            return at >= size or _walk(data, at, explicit=explicit, big=big)


def _deflated_ends_early(data: mmap.mmap, at: int) -> bool:
    inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        while at < len(data) and not inflate.eof:
            piece = data[at : at + _CHUNK_BYTES]
            at += len(piece)
            while piece and not inflate.eof:
                size += len(inflate.decompress(piece, _CHUNK_BYTES))
                piece = inflate.unconsumed_tail
                if size > MAXIMUM_INFLATED_BYTES:
                    return False
    except zlib.error:
        return False
    return not inflate.eof


def _walk(data: Buffer, at: int, *, explicit: bool, big: bool) -> bool:
    """Go from element to element; into sequences and items of undefined length, over those of a defined one."""
    size = len(data)
    outside: list[bool] = []  # whether VRs are explicit around each sequence and item that is open
    while at < size:
        if size - at < 8:
            return bool(data[at:].strip(b"\0"))  # a blank or two behind the last element
        tag = _TAG[big](data, at)
        if tag in (_ITEM_DELIMITER, _SEQUENCE_DELIMITER):
            if outside:
                explicit = outside.pop()
            at += 8
            continue
        if tag[0] == 0:
            return not any(data[at : at + 8])  # zeros, where data were to come
        long = explicit and data[at + 4 : at + 6] in _LONG_VRS and tag != _ITEM
        if long and size - at < 12:
            return True
        if tag == _ITEM or not explicit:
            at, length = at + 8, _LONG[big](data, at + 4)[0]
        elif long:
            at, length = at + 12, _LONG[big](data, at + 8)[0]
        elif data[at + 4 : at + 6].isalpha():
            at, length = at + 8, _SHORT[big](data, at + 6)[0]
        else:
            return False
        if length == _UNDEFINED:
            outside.append(explicit)
            # PS3.5 §6.2.2, Note 4: UN of undefined length holds Implicit VR Little Endian.
            explicit = explicit and not (long and data[at - 8 : at - 6] == b"UN")
        else:
            at += length
    return at > size or bool(outside)
