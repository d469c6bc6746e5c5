"""Read what the index wants to know of a stored file: its file meta and its header, and not its pixel data.

A file belongs to the archive when it is where its own UIDs put it (`harmony.archive.files`); any other is refused
with `NotOurs`. UIDs are then exactly those that the path was made from, also when they are none by PS3.5 §9.1.

The pixel data are found by their tag, and believed to be that when they end where the file ends. Nothing is lost
when they are not found: then more of the file is read, up to a limit, and the decoder stops at their tag.

In the header of the index, bulk data up to 1 KiB are there; what is longer, and sequences of more than 64 KiB, are
references: a BulkDataURI that is the path of the element. So nearly every header is complete but for them.

Blocking; 15 us and the decoding for a small file. Called by `harmony.archive.indexing`.
"""

from __future__ import annotations

import os
import re
from struct import Struct

from harmony.archive.index import IndexedInstance
from harmony.archive.levels import Entity, joined, uid_folder
from harmony.dicom.bulk_data import name_bulk_data
from harmony.dicom.data_set_decoder import MAXIMUM_VALUE_BYTES
from harmony.dicom.json_model import DataSetError, decode_data_set
from harmony.dicom.scanner import HeaderScanner
from harmony.dicom.uid import is_valid_uid, path_component
from harmony.dimse.part10 import MAXIMUM_FILE_META_SIZE, FileMeta, Part10Error, read_file_meta

__all__ = ["NotOurs", "read_header", "read_stored_header"]

FIRST_READ_BYTES = 64 * 1024
"""Holds the header of nearly every object, and most small objects whole."""
MAXIMUM_HEADER_BYTES = 16 * 1024 * 1024
"""How far a header is read. Multi-frame objects have a megabyte of functional groups; a report may be as long."""
MAXIMUM_FRAGMENTS = 64
"""Followed to see where encapsulated pixel data end; an icon inside the header has one or two."""

_SOP_INSTANCE, _STUDY, _SERIES = 0x00080018, 0x0020000D, 0x0020000E
_IDENTIFYING = frozenset((_SOP_INSTANCE, _STUDY, _SERIES))
_BESIDE = re.compile(r"-(?:[0-9a-f]{8}|[0-9a-f]{64})\.dcm\Z")

_DEFLATED_EXPLICIT_VR = "1.2.840.10008.1.2.1.99"
_EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_PIXEL_DATA = {False: b"\xe0\x7f\x10\x00", True: b"\x7f\xe0\x00\x10"}  # by big endian or not
_LENGTH = {False: Struct("<I").unpack_from, True: Struct(">I").unpack_from}
_UNDEFINED = 0xFFFFFFFF
_ITEM = b"\xfe\xff\x00\xe0"
_SEQUENCE_DELIMITER = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"


class NotOurs(ValueError):
    """A file that the archive did not store, or no longer what it stored. The message holds no patient data."""


def read_stored_header(root: str, path: str) -> IndexedInstance:
    """Read the header of a file. path: relative to root. Raises NotOurs, and OSError when it cannot be read."""
    fd = os.open(f"{root}/{path}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        data = os.read(fd, FIRST_READ_BYTES)
        meta, data = _file_meta(fd, data)
        pixel_data_offset, header = _header(fd, data, meta, status.st_size, complete=True)
    finally:
        os.close(fd)
    study, series, instance = _identify(path, header, data, meta)
    for tag, uid in (("00080018", instance), ("0020000D", study), ("0020000E", series)):
        if uid and header.get(tag, {}).get("Value") != [uid]:
            header[tag] = {"vr": "UI", "Value": [uid]}
    return IndexedInstance(
        path=path,
        study_instance_uid=study,
        series_instance_uid=series,
        sop_instance_uid=instance,
        sop_class_uid=meta.media_storage_sop_class_uid or joined(header, 0x00080016),
        transfer_syntax_uid=meta.transfer_syntax_uid,
        size_bytes=status.st_size,
        received_ns=status.st_mtime_ns,
        data_set_offset=meta.data_set_offset,
        pixel_data_offset=pixel_data_offset,
        header=header,
    )


def read_header(path: str | os.PathLike[str]) -> Entity:
    """Read the header of any Part 10 file. Raises NotOurs when it is none, and OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        meta, data = _file_meta(fd, os.read(fd, FIRST_READ_BYTES))
        return _header(fd, data, meta, os.fstat(fd).st_size)[1]
    finally:
        os.close(fd)


def _file_meta(fd: int, data: bytes) -> tuple[FileMeta, bytes]:
    try:
        meta = read_file_meta(data)
        if meta.data_set_offset < len(data) - 2 or len(data) < FIRST_READ_BYTES:
            return meta, data
    except Part10Error as error:
        if len(data) < FIRST_READ_BYTES:
            raise NotOurs(str(error)) from error
    data += _read(fd, MAXIMUM_FILE_META_SIZE + 2)
    try:
        return read_file_meta(data), data
    except Part10Error as error:
        raise NotOurs(str(error)) from error


def _read(fd: int, size: int) -> bytes:
    """Read so much, or up to the end of the file."""
    parts = []
    while size > 0 and (part := os.read(fd, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _header(
    fd: int, data: bytes, meta: FileMeta, file_size: int, *, complete: bool = False
) -> tuple[int | None, Entity]:
    """Return where the pixel data begin, when that is certain, and the decoded header.

    complete: with bulk data, or references to them.
    """
    syntax = meta.transfer_syntax_uid
    deflated = syntax == _DEFLATED_EXPLICIT_VR
    at = None if deflated else _find_pixel_data(fd, data, meta, file_size)
    if at is None and len(data) < file_size:
        data += _read(fd, MAXIMUM_HEADER_BYTES + meta.data_set_offset - len(data))
        at = None if deflated else _find_pixel_data(fd, data, meta, file_size)
    try:
        header = decode_data_set(
            memoryview(data)[meta.data_set_offset :],
            syntax,
            complete=complete,
            maximum_sequence_bytes=MAXIMUM_VALUE_BYTES,
        )
    except DataSetError:
        return None, {}  # it has been received, so its UIDs could be read
    if complete:
        name_bulk_data(header, "")
    # An icon at the end of a file without pixel data ends where the file ends, too.
    return (at if "00280010" in header else None), header


def _find_pixel_data(fd: int, data: bytes, meta: FileMeta, file_size: int) -> int | None:
    """Find the pixel data: the tag from which a length, or fragments, lead to the very end of the file."""
    big = meta.transfer_syntax_uid == _EXPLICIT_VR_BIG_ENDIAN
    tag, length_of = _PIXEL_DATA[big], _LENGTH[big]
    at = data.find(tag, meta.data_set_offset)
    while 0 <= at <= len(data) - 12:
        if data[at + 4 : at + 6] in (b"OW", b"OB"):
            value, length = at + 12, length_of(data, at + 8)[0]
        else:
            value, length = at + 8, length_of(data, at + 4)[0]
        if value + length == file_size:
            return at
        if length == _UNDEFINED and _fragments_reach(fd, value, file_size):
            return at
        at = data.find(tag, at + 1)
    return None


def _fragments_reach(fd: int, at: int, end: int) -> bool:
    """Tell whether the fragments from `at` on end at `end`, or are more than an icon ever has."""
    for _ in range(MAXIMUM_FRAGMENTS):
        header = os.pread(fd, 8, at)
        if header == _SEQUENCE_DELIMITER:
            return at + 8 == end
        if len(header) < 8 or header[:4] != _ITEM:
            return False
        at += 8 + _LENGTH[False](header, 4)[0]
    return at < end


def _identify(path: str, header: Entity, data: bytes, meta: FileMeta) -> tuple[str, str, str]:
    """Return study, series and instance UID such that they lead to this path. Raises NotOurs."""
    try:
        study_folder, series_folder, name = path.split("/")
    except ValueError:
        raise NotOurs("it is not in the folder of a series") from None
    study, series = joined(header, 0x0020000D), joined(header, 0x0020000E)
    instance = joined(header, 0x00080018)
    if (uid_folder(study), uid_folder(series)) != (study_folder, series_folder) or not is_valid_uid(instance):
        # Read them as the archive did when it stored the file: byte by byte as Latin-1, whatever they are.
        scanner = HeaderScanner(meta.transfer_syntax_uid, _IDENTIFYING)
        if not scanner.feed(memoryview(data)[meta.data_set_offset :]):
            scanner.finish()
        study, series, instance = (scanner.text(tag) for tag in (_STUDY, _SERIES, _SOP_INSTANCE))
        if not is_valid_uid(instance):
            instance = meta.media_storage_sop_instance_uid
    stem = path_component(instance)
    if (uid_folder(study), uid_folder(series)) != (study_folder, series_folder):
        raise NotOurs("it is not in the folder that its study and series give")
    if name != f"{stem}.dcm" and not (name.startswith(stem) and _BESIDE.match(name, len(stem))):
        raise NotOurs("its name is not that of its SOP Instance UID")
    return study, series, instance
