"""The records of a ZIP archive (PKWARE APPNOTE 6.3.10 §4.3, §4.4, §4.5.3), as far as envelopes need them.

`zipstream` writes them, `zipread` reads them; this module holds the fixed parts, the ZIP64 rule in both directions,
and the one rule about member names that both sides obey. It opens nothing and computes nothing.

Not here, because envelopes have none of it: encryption, archives in several parts, comments, extended timestamps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

__all__ = ["Compression", "Member", "ZipFormatError", "check_member_name"]


class ZipFormatError(Exception):
    """An archive that cannot be written as asked, or that is not what it says."""


class Compression(IntEnum):
    """APPNOTE §4.4.5; the values are the numbers in the file."""

    STORED = 0
    DEFLATE = 8
    ZSTANDARD = 93


@dataclass(frozen=True, slots=True)
class Member:
    """One file in an archive, once it is written."""

    name: str
    size_bytes: int
    compressed_size_bytes: int
    crc32: int
    sha256: str | None
    """Lower-case hexadecimal digest of the uncompressed bytes; None when hashing is off."""
    compression: Compression
    offset_bytes: int
    """Where its local header begins."""


LOCAL_SIGNATURE = 0x04034B50
CENTRAL_SIGNATURE = 0x02014B50
END_SIGNATURE = 0x06054B50
END64_SIGNATURE = 0x06064B50
LOCATOR64_SIGNATURE = 0x07064B50
DESCRIPTOR_SIGNATURE = 0x08074B50

# signature, version needed, flags, method, time, date, crc, compressed, uncompressed, name length, extra length
LOCAL = Struct("<IHHHHHIIIHH")
# signature, version made by, version needed, flags, method, time, date, crc, compressed, uncompressed,
# name length, extra length, comment length, disk, internal attributes, external attributes, offset
CENTRAL = Struct("<IHHHHHHIIIHHHHHII")
# signature, disk, disk with directory, entries here, entries, directory size, directory offset, comment length
END = Struct("<IHHHHIIH")
# signature, size of the rest, version made by, version needed, disk, disk with directory, entries here, entries,
# directory size, directory offset
END64 = Struct("<IQHHIIQQQQ")
LOCATOR64 = Struct("<IIQI")  # signature, disk with END64, offset of END64, number of disks
DESCRIPTOR = Struct("<IIII")  # signature, crc, compressed, uncompressed
DESCRIPTOR64 = Struct("<IIQQ")

FLAG_ENCRYPTED = 0x0001
FLAG_DESCRIPTOR = 0x0008
FLAG_UTF8 = 0x0800

ZIP64_EXTRA_ID = 0x0001
GROWTH_HINT_EXTRA_ID = 0xA220
GROWTH_HINT_SIGNATURE = 0xA028
# id, size of the rest, signature, initial padding; then zeros (APPNOTE §4.6.10). Readers pass over it.
GROWTH_HINT = Struct("<HHHH")
MAXIMUM_16 = 0xFFFF
MAXIMUM_32 = 0xFFFFFFFF
"""A size, offset or count that does not fit below its field's maximum stands in ZIP64 fields; the maximum itself is
the mark that says so, and cannot be a value (APPNOTE §4.4.8)."""

VERSION_DEFAULT = 20  # folders, deflate
VERSION_ZIP64 = 45
VERSION_ZSTANDARD = 63
MADE_BY_UNIX = 3 << 8

MAXIMUM_NAME_BYTES = 512
MAXIMUM_COMPONENTS = 16
"""Far above any path of an envelope (payload/dicom/ and a UID make 82 bytes), far below what a 16-bit length allows."""

_UNSAFE_CHARACTER = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]").search
_DRIVE_LETTER = re.compile(r"[A-Za-z]:").match


def check_member_name(name: str) -> str | None:
    """Say what makes `name` unfit as the path of a file inside an archive, or None when nothing does.

    Fit is a relative path of plain components separated by `/`, which means the same on every system: not absolute,
    no drive letter, no backslash, no control character, no empty, `.` or `..` component (APPNOTE §4.4.17).
    """
    if not name:
        return "is empty"
    if _UNSAFE_CHARACTER(name) is not None:
        return "contains a backslash or a control character"
    if len(name.encode()) > MAXIMUM_NAME_BYTES:
        return f"is longer than {MAXIMUM_NAME_BYTES} bytes"
    if name.startswith("/"):
        return "is absolute"
    if _DRIVE_LETTER(name) is not None:
        return "begins with a drive letter"
    components = name.split("/")
    if len(components) > MAXIMUM_COMPONENTS:
        return f"has more than {MAXIMUM_COMPONENTS} components"
    if ".." in components:
        return "contains a component '..'"
    if "." in components or "" in components:
        return "contains an empty or '.' component"
    return None
