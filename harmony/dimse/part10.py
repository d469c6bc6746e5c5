"""File Meta Information of DICOM files (PS3.10 §7.1), read and written without a data set parser.

A DICOM file is 128 bytes of preamble, "DICM", group 0002 in Explicit VR Little Endian, and the data set in the
Transfer Syntax that group 0002 names. Sending a file needs that name, two UIDs and the offset of the data set;
receiving one needs the same group written in front of the bytes that came. Neither looks into the data set.

Read tolerantly: the preamble may be missing, the group length may be missing or wrong (the group ends where another
group begins), the group may be in Implicit VR, UIDs of the instance may be missing. Never guessed: a file without
group 0002 or without a Transfer Syntax UID is refused with a Part10Error.

Called by the sources that send files and by the archive that stores what arrived.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import Final

from harmony import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from harmony.dimse.sop_class import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN

__all__ = [
    "MAXIMUM_FILE_META_SIZE",
    "FileMeta",
    "FileMetaIncomplete",
    "Part10Error",
    "around_instance_uid",
    "encode_file_meta",
    "read_beginning",
    "read_file_meta",
    "read_file_meta_from",
]

MAXIMUM_FILE_META_SIZE: Final = 1 << 20
"""Bytes up to the data set. Real ones are under 1 KiB; private information (0002,0102) may take some more."""

_FIRST_READ: Final = 4096
"""Bytes; holds the file meta of nearly every file, and is what a disk reads anyway."""

READ_ONLY: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_PREAMBLE: Final = bytes(128) + b"DICM"
_GROUP_0002: Final = b"\x02\x00"
_LONG_VRS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Two reserved bytes and a 32-bit length (PS3.5 Table 7.1-1); all others have a 16-bit length."""

_MAXIMUM_SHORT_VALUE_SIZE: Final = 0xFFFE
"""Bytes: the largest even number in a 16-bit length."""

_EXPLICIT = Struct("<HH2sH")
_IMPLICIT = Struct("<HHL")
_LENGTH = Struct("<L")
_GROUP_LENGTH = Struct("<HH2sHL")


class Part10Error(ValueError):
    """No file meta information that could be used; the message says what is wrong and at which byte."""


class FileMetaIncomplete(Part10Error):
    """The bytes given end inside group 0002, or with it: more of the file may help."""


@dataclass(frozen=True, slots=True)
class FileMeta:
    """Group 0002 of one file. Text is as it came, without padding; what is not there is empty."""

    transfer_syntax_uid: str
    media_storage_sop_class_uid: str
    media_storage_sop_instance_uid: str
    data_set_offset: int
    """Bytes from the start of the file to the data set."""
    source_application_entity_title: str = ""
    sending_application_entity_title: str = ""
    receiving_application_entity_title: str = ""
    implementation_class_uid: str = ""
    implementation_version_name: str = ""


def read_file_meta_from(path: str | os.PathLike[str]) -> FileMeta:
    """Read the file meta information of a file, and of the file no more than that takes.

    Raises Part10Error as `read_file_meta` does, OSError when the file cannot be read.
    """
    return read_beginning(path)[0]


def read_beginning(path: str | os.PathLike[str]) -> tuple[FileMeta, bytes | None]:
    """The same, and the data set of a file so small that it was read with it."""
    descriptor = os.open(path, READ_ONLY)  # a file object would take twice as long
    try:
        data = os.read(descriptor, _FIRST_READ)
        try:
            meta = read_file_meta(data)
        except FileMetaIncomplete:
            meta = None
        # Two bytes behind the group show that it ends there; at the end of the file there are none to see.
        if len(data) == _FIRST_READ and (meta is None or meta.data_set_offset > len(data) - 2):
            data += os.read(descriptor, MAXIMUM_FILE_META_SIZE + 2 - len(data))
            meta = None
    finally:
        os.close(descriptor)
    if meta is None:
        meta = read_file_meta(data)
    return meta, data[meta.data_set_offset :] if len(data) < _FIRST_READ else None


def read_file_meta(data: bytes | bytearray | memoryview) -> FileMeta:
    """Read the file meta information from the first bytes of a file, which hold all of it. Keeps no reference.

    Raises Part10Error: no group 0002, no Transfer Syntax UID, an element that runs past the end of `data`, or a
    group that goes on past MAXIMUM_FILE_META_SIZE.
    """
    layout = _layouts.get(bytes(data[128:144]))
    if layout is not None and (meta := layout.read(data)) is not None:
        return meta
    start = len(_PREAMBLE) if data[128:132] == b"DICM" else 0
    if data[start : start + 2] != _GROUP_0002:
        where = "at byte 132" if start else "at the start, nor DICM at byte 128"
        raise Part10Error(f"not a DICOM file: no group 0002 {where}")
    elements, end = _read_group(data, start)

    def text(number: int) -> str:
        return elements.get(number, b"").strip(b"\0 ").decode("latin-1")

    transfer_syntax_uid = text(0x0010)
    if not transfer_syntax_uid:
        message = "file meta information without Transfer Syntax UID (0002,0010)"
        raise FileMetaIncomplete(message) if end >= len(data) - 1 else Part10Error(message)
    meta = FileMeta(
        transfer_syntax_uid=transfer_syntax_uid,
        media_storage_sop_class_uid=text(0x0002),
        media_storage_sop_instance_uid=text(0x0003),
        data_set_offset=end,
        source_application_entity_title=text(0x0016),
        sending_application_entity_title=text(0x0017),
        receiving_application_entity_title=text(0x0018),
        implementation_class_uid=text(0x0012),
        implementation_version_name=text(0x0013),
    )
    if start and 0x0003 in elements:
        _remember(data, meta, elements[0x0003])
    return meta


@dataclass(frozen=True, slots=True)
class _Layout:
    """The bytes of a group 0002 but for the value of (0002,0003), and what they mean."""

    before: bytes  # from the prefix DICM to that value
    value_offset: int
    value_end: int
    after: bytes  # the rest of the group, and the two bytes behind it, which are not another element's of it
    meta: FileMeta

    def read(self, data: bytes | bytearray | memoryview) -> FileMeta | None:
        """None when it is another one."""
        start, end, after = self.value_offset, self.value_end, self.after
        if data[128:start] != self.before or data[end : end + len(after)] != after:
            return None
        meta = self.meta
        return FileMeta(
            meta.transfer_syntax_uid,
            meta.media_storage_sop_class_uid,
            bytes(data[start:end]).strip(b"\0 ").decode("latin-1"),
            meta.data_set_offset,
            meta.source_application_entity_title,
            meta.sending_application_entity_title,
            meta.receiving_application_entity_title,
            meta.implementation_class_uid,
            meta.implementation_version_name,
        )


_layouts: dict[bytes, _Layout] = {}
"""Met last, by prefix and group length. The files of a series differ in one UID: comparing the rest takes 2 us, looking
at each element 11."""

_LAYOUTS_LIMIT: Final = 64


def _remember(data: bytes | bytearray | memoryview, meta: FileMeta, instance_uid: bytes) -> None:
    """Keep the layout of a group that says its length, is followed by something, and has (0002,0003) once."""
    group = bytes(data[128 : meta.data_set_offset + 2])
    header = _EXPLICIT.pack(0x0002, 0x0003, b"UI", len(instance_uid))
    before, found, after = group.partition(header + instance_uid)
    if not found or group.count(header[:4]) != 1 or len(group) < meta.data_set_offset - 126:
        return
    if group[4:12] != _GROUP_LENGTH.pack(0x0002, 0x0000, b"UL", 4, 0)[:8]:
        return
    if len(_layouts) >= _LAYOUTS_LIMIT:
        _layouts.clear()
    before += header
    offset = 128 + len(before)
    _layouts[group[:16]] = _Layout(before, offset, offset + len(instance_uid), after, meta)


def _read_group(data: bytes | bytearray | memoryview, offset: int) -> tuple[dict[int, bytes], int]:
    """Value fields of group 0002 by element number, and the offset of the first byte behind the group."""
    elements: dict[int, bytes] = {}
    size = len(data)
    # Implicit VR has a length here, and a first element of 16 705 bytes or more is no file meta information.
    vr = bytes(data[offset + 4 : offset + 6])
    explicit = vr.isalpha() and vr.isupper()
    declared_end = -1
    while data[offset : offset + 2] == _GROUP_0002:
        if offset == declared_end and _is_deflated(elements):
            break  # the next two bytes are compressed, and could be anything
        value_offset, number, length = _read_header(data, offset, explicit=explicit)
        end = value_offset + length
        if end > MAXIMUM_FILE_META_SIZE:
            raise Part10Error(
                f"(0002,{number:04X}) at byte {offset}: length {length} takes the file meta information past "
                f"{MAXIMUM_FILE_META_SIZE} bytes"
            )
        if end > size:
            raise FileMetaIncomplete(
                f"(0002,{number:04X}) at byte {offset}: length {length} exceeds remaining {size - value_offset}"
            )
        elements[number] = bytes(data[value_offset:end])
        offset = end
        if number == 0x0000 and length == 4:
            declared_end = end + _LENGTH.unpack(elements[number])[0]
    return elements, offset


def _read_header(
    data: bytes | bytearray | memoryview, offset: int, *, explicit: bool
) -> tuple[int, int, int]:
    """Where the value of the element at `offset` begins, the element number, and the length of the value."""
    remaining = len(data) - offset
    if remaining < 8:
        raise FileMetaIncomplete(f"element at byte {offset}: {remaining} bytes left, a header has 8")
    if not explicit:
        _, number, length = _IMPLICIT.unpack_from(data, offset)
        return offset + 8, number, length
    _, number, vr, length = _EXPLICIT.unpack_from(data, offset)
    if vr not in _LONG_VRS:
        return offset + 8, number, length
    if remaining < 12:
        raise FileMetaIncomplete(f"element at byte {offset}: {remaining} bytes left, a header has 12")
    return offset + 12, number, _LENGTH.unpack_from(data, offset + 8)[0]


def _is_deflated(elements: dict[int, bytes]) -> bool:
    return elements.get(0x0010, b"").strip(b"\0 ") == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN.encode()


def encode_file_meta(
    *,
    transfer_syntax_uid: str,
    media_storage_sop_class_uid: str,
    media_storage_sop_instance_uid: str,
    source_application_entity_title: str = "",
    sending_application_entity_title: str = "",
    receiving_application_entity_title: str = "",
) -> bytes:
    """Preamble, DICM and group 0002: everything in front of the data set. AE titles only when given.

    UIDs are written as they are, valid or not: the file says what the peer said.
    Raises Part10Error for text outside Latin-1 or longer than 65534 bytes.
    """
    before, after, fixed_length = _fixed_parts(
        transfer_syntax_uid,
        media_storage_sop_class_uid,
        source_application_entity_title,
        sending_application_entity_title,
        receiving_application_entity_title,
    )
    instance_uid = _encode_text(0x0003, b"UI", media_storage_sop_instance_uid)
    group_length = _GROUP_LENGTH.pack(0x0002, 0x0000, b"UL", 4, fixed_length + len(instance_uid))
    return b"".join((_PREAMBLE, group_length, before, instance_uid, after))


def around_instance_uid(meta: bytes, media_storage_sop_instance_uid: str) -> tuple[bytes, bytes]:
    """What `encode_file_meta` put before and after the value of this UID, which is padded to an even length.

    It is the same for every UID of that length.
    """
    element = _encode_text(0x0003, b"UI", media_storage_sop_instance_uid)
    before, _, after = meta.rpartition(element)
    return before + element[: _EXPLICIT.size], after


# All but the instance UID is the same from one object of an association to the next. 256 entries are many more than
# combinations met in an hour, and a few hundred bytes each.
@lru_cache(maxsize=256)
def _fixed_parts(
    transfer_syntax_uid: str,
    sop_class_uid: str,
    source_ae_title: str,
    sending_ae_title: str,
    receiving_ae_title: str,
) -> tuple[bytes, bytes, int]:
    """What stands before and after (0002,0003) in the group, and the length of both."""
    version = _EXPLICIT.pack(0x0002, 0x0001, b"OB", 0) + _LENGTH.pack(2) + b"\x00\x01"
    before = version + _encode_text(0x0002, b"UI", sop_class_uid)
    after = [
        _encode_text(0x0010, b"UI", transfer_syntax_uid),
        _encode_text(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
        _encode_text(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
    ]
    titles = ((0x0016, source_ae_title), (0x0017, sending_ae_title), (0x0018, receiving_ae_title))
    after += [_encode_text(number, b"AE", title) for number, title in titles if title]
    tail = b"".join(after)
    return before, tail, len(before) + len(tail)


def _encode_text(number: int, vr: bytes, text: str) -> bytes:
    try:
        value = text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise Part10Error(f"(0002,{number:04X}): character {error.start} is not in Latin-1") from error
    if len(value) & 1:
        value += b"\0" if vr == b"UI" else b" "
    if len(value) > _MAXIMUM_SHORT_VALUE_SIZE:
        raise Part10Error(f"(0002,{number:04X}): {len(value)} bytes, at most {_MAXIMUM_SHORT_VALUE_SIZE} fit")
    return _EXPLICIT.pack(0x0002, number, vr, len(value)) + value
