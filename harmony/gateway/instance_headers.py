"""The complete headers of instances, for `Backend.metadata`: out of the index, out of files, or while they arrive.

What the index holds is the whole header of most objects, as JSON, and goes out without having been decoded: bulk data
are in it, or the path of each, before which the URL is put. Where a sequence is longer than the index takes, and for a
few others, the header is read from the file, up to the pixel data.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Final
from urllib.parse import quote

import msgspec

from harmony.archive.index import StoredInstance
from harmony.archive.stored_header import MAXIMUM_HEADER_BYTES
from harmony.dicom.bulk_data import HeaderStream, name_bulk_data
from harmony.dicom.json_model import PIXEL_DATA, DataSetError, Model, decode_data_set, text_of
from harmony.dicom.transcode import NATIVE_TRANSFER_SYNTAXES, TranscodeError, in_turns
from harmony.dimse.cancellation import close_iterator
from harmony.dimse.retrieve_scp import Selection, Unavailable
from harmony.dimse.scu import Instance
from harmony.dimse.sop_class import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
from harmony.dimse.source import pieces

__all__ = ["headers_of", "instance_url", "stored_header"]

logger = logging.getLogger("harmony.gateway")

_PIECE_BYTES: Final = 256 * 1024
_LONG_HEADER_BYTES: Final = 64 * 1024
"""Decoding a longer one takes milliseconds, which others should not wait for."""
_BEGINNING_BYTES: Final = 1024 * 1024
_PIXEL_DATA: Final = "7FE00010"

# In a header as JSON. Quotation marks inside of values are escaped, so these are not.
_ROWS: Final = b'"00280010":'
_REFERENCE: Final = b'"BulkDataURI":"'
_SEQUENCE_LEFT_OUT: Final = b'"vr":"SQ","BulkDataURI":"'
_BITS_ALLOCATED: Final = re.compile(rb'"00280100":{"vr":"US","Value":\[([0-9]{1,5})').search
_CHARACTER_SET: Final = re.compile(rb'"00080005":{[^{}]*},').sub
"""What is stored is not true of JSON, which is UTF-8 (PS3.18 §F.2.1)."""


def instance_url(root: str, uids: Sequence[str]) -> str:
    """uids: of study, series and instance."""
    study, series, instance = (quote(uid, safe="") for uid in uids)
    return f"{root}/studies/{study}/series/{series}/instances/{instance}"


async def headers_of(selection: Selection, root: str) -> AsyncGenerator[bytes | Unavailable, None]:
    """The headers of what a retrieve brings. What follows a header is not waited for; one that cannot be read counts as
    not to be had."""
    try:
        async for instance in selection.instances:
            yield instance if isinstance(instance, Unavailable) else await _read(instance, root)
    finally:
        await close_iterator(selection.instances)


async def _read(instance: Instance, root: str) -> bytes | Unavailable:
    try:
        header = HeaderStream(instance.transfer_syntax_uid)
        async with (
            aclosing(pieces(instance.data)) as fragments,
            aclosing(in_turns(fragments, instance.transfer_syntax_uid)) as portions,
        ):
            async for portion in portions:
                if header.feed(portion):
                    break
        long = header.size_bytes > _LONG_HEADER_BYTES
        model = await asyncio.to_thread(header.finish) if long else header.finish()
        uids = [text_of(model, tag) for tag in (0x0020000D, 0x0020000E)]
        return _encoded(model, instance_url(root, (*uids, instance.sop_instance_uid)))
    except (DataSetError, TranscodeError) as error:
        return _unreadable(instance.sop_instance_uid, error)


def stored_header(stored: StoredInstance, encoded: bytes, root: str) -> bytes | Unavailable:
    """The complete header of a stored instance. encoded: what the index has of it, as JSON. Blocking."""
    url = instance_url(root, (stored.study_instance_uid, stored.series_instance_uid, stored.sop_instance_uid))
    size = (stored.pixel_data_offset or stored.size_bytes) - stored.data_set_offset
    try:
        if stored.pixel_data_offset is None and _ROWS in encoded:  # not looked for, or not found
            return _encoded(_beginning(stored) or _streamed(stored), url)
        referring = _REFERENCE in encoded
        if size > MAXIMUM_HEADER_BYTES or (
            referring and stored.transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
        ):
            return _encoded(_streamed(stored), url)
        if _SEQUENCE_LEFT_OUT in encoded:
            data = b"".join(_content(stored, size))
            model = decode_data_set(data, stored.transfer_syntax_uid, complete=True)
            name_bulk_data(model, f"{url}/bulkdata/")
            encoded = msgspec.json.encode(model)
        elif referring:
            encoded = encoded.replace(_REFERENCE, _REFERENCE + f"{url}/bulkdata/".encode())
    except (OSError, DataSetError, TranscodeError) as error:
        return _unreadable(stored.sop_instance_uid, error)
    if stored.pixel_data_offset is not None:
        bits = _BITS_ALLOCATED(encoded)
        few = bits is not None and int(bits[1]) <= 8
        vr = "OB" if few or stored.transfer_syntax_uid not in NATIVE_TRANSFER_SYNTAXES else "OW"
        encoded = (
            encoded[:-1]
            + f',"{_PIXEL_DATA}":{{"vr":"{vr}","BulkDataURI":"{url}/bulkdata/{_PIXEL_DATA}"}}}}'.encode()
        )
    return _CHARACTER_SET(b"", encoded)


def _beginning(stored: StoredInstance) -> Model | None:
    """A header that ends with pixel data within the first megabyte, behind which something follows."""
    if stored.transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        return None
    size = min(stored.size_bytes - stored.data_set_offset, _BEGINNING_BYTES)
    data = b"".join(_content(stored, size))
    model = decode_data_set(data, stored.transfer_syntax_uid, stop_before=PIXEL_DATA + 1, complete=True)
    if _PIXEL_DATA not in model:
        return None
    model[_PIXEL_DATA] = {"vr": model[_PIXEL_DATA]["vr"], "BulkDataURI": ""}
    return model


def _encoded(model: Model, url: str) -> bytes:
    name_bulk_data(model, f"{url}/bulkdata/")
    return _CHARACTER_SET(b"", msgspec.json.encode(model))


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
