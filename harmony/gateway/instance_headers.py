"""The complete headers of instances, for `Backend.metadata`: out of the index, out of files, or while they arrive.

What the index holds is the whole header of most objects. Where something may have been left out of it (bulk data that
may as well be empty, sequences longer than it takes) the header is read from the file, up to the pixel data.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Final

from harmony.archive.index import StoredInstance
from harmony.archive.stored_header import MAXIMUM_HEADER_BYTES
from harmony.dicom.bulk_data import HeaderStream, is_whole
from harmony.dicom.data_set_decoder import MAXIMUM_VALUE_BYTES
from harmony.dicom.json_model import DataSetError, Model, decode_data_set, values_of
from harmony.dicom.transcode import NATIVE_TRANSFER_SYNTAXES, TranscodeError
from harmony.dimse.cancellation import close_iterator
from harmony.dimse.retrieve_scp import Selection, Unavailable
from harmony.dimse.scu import Instance
from harmony.dimse.sop_class import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
from harmony.dimse.source import pieces

__all__ = ["header_in_file", "headers_of"]

logger = logging.getLogger("harmony.gateway")

_PIECE_BYTES: Final = 256 * 1024
_PIXEL_DATA: Final = "7FE00010"
_ROWS: Final = "00280010"


async def headers_of(selection: Selection) -> AsyncGenerator[Model | Unavailable, None]:
    """The headers of what a retrieve brings. What follows a header is not waited for; one that cannot be read counts as
    not to be had."""
    try:
        async for instance in selection.instances:
            yield instance if isinstance(instance, Unavailable) else await _read(instance)
    finally:
        await close_iterator(selection.instances)


async def _read(instance: Instance) -> Model | Unavailable:
    try:
        header = HeaderStream(instance.transfer_syntax_uid)
        async with aclosing(pieces(instance.data)) as fragments:
            async for fragment in fragments:
                if header.feed(fragment):
                    break
        return header.finish()
    except (DataSetError, TranscodeError) as error:
        return _unreadable(instance.sop_instance_uid, error)


def header_in_file(stored: StoredInstance, header: Model) -> Model | Unavailable:
    """The complete header of a stored instance. header: what the index has of it; is used and changed. Blocking."""
    has_pixel_data = stored.pixel_data_offset is not None
    size = (stored.pixel_data_offset or stored.size_bytes) - stored.data_set_offset
    deflated = stored.transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
    try:
        if deflated or (
            not has_pixel_data and _ROWS in header
        ):  # it has not been looked for, or not been found
            return _streamed(stored)
        if not is_whole(header, short=size <= MAXIMUM_VALUE_BYTES):
            if size > MAXIMUM_HEADER_BYTES:
                return _streamed(stored)
            data = b"".join(_content(stored, size))
            header = decode_data_set(data, stored.transfer_syntax_uid, complete=True)
    except (OSError, DataSetError, TranscodeError) as error:
        return _unreadable(stored.sop_instance_uid, error)
    if has_pixel_data:
        encapsulated = stored.transfer_syntax_uid not in NATIVE_TRANSFER_SYNTAXES
        bits = values_of(header, 0x00280100)
        vr = "OB" if encapsulated or (bits and bits[0] in range(1, 9)) else "OW"
        header[_PIXEL_DATA] = {"vr": vr, "BulkDataURI": ""}
    return header


def _streamed(stored: StoredInstance) -> Model:
    header = HeaderStream(stored.transfer_syntax_uid)
    for piece in _content(stored, stored.size_bytes - stored.data_set_offset):
        if header.feed(piece):
            break
    return header.finish()


def _content(stored: StoredInstance, size: int) -> Iterator[bytes]:
    descriptor = os.open(stored.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        at, end = stored.data_set_offset, stored.data_set_offset + size
        while at < end and (piece := os.pread(descriptor, min(_PIECE_BYTES, end - at), at)):
            at += len(piece)
            yield piece
    finally:
        os.close(descriptor)


def _unreadable(sop_instance_uid: str, error: Exception) -> Unavailable:
    reason = error.strerror if isinstance(error, OSError) else error
    logger.warning("the header of instance %s cannot be read: %s", sop_instance_uid, reason)
    return Unavailable(sop_instance_uid)
