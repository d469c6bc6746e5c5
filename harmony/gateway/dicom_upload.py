"""DICOM files in the bodies of HTTP requests, as Instances that can be sent while they arrive (PS3.10 §7.1).

Of a file only the file meta information is held; the data set is passed on in the pieces in which it comes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from harmony.dimse.part10 import (
    MAXIMUM_FILE_META_SIZE,
    FileMeta,
    FileMetaIncomplete,
    Part10Error,
    read_file_meta,
)
from harmony.dimse.scu import Instance
from harmony.http import HTTPError

__all__ = ["WatchedBody", "uploaded_instance"]

_ENOUGH_BYTES: Final = 512
"""Before that not even the smallest file meta is there: no use looking."""


async def uploaded_instance(chunks: AsyncIterator[bytes]) -> Instance:
    """Read the file meta of a file; the Instance's data is the rest of `chunks`, read when it is iterated.

    Raises HTTPError 400 when this is no DICOM file, and what `chunks` raises.
    """
    head = bytearray()
    meta: FileMeta | None = None
    looked_at = 0
    async for chunk in chunks:
        head += chunk
        # Looking again only when there is twice as much: a file meta in crumbs must not cost its square.
        if len(head) >= max(_ENOUGH_BYTES, 2 * looked_at):
            looked_at = len(head)
            meta = _file_meta(head)
            # Two bytes behind the group show that it ends there.
            if meta is not None and meta.data_set_offset <= len(head) - 2:
                break
    else:
        try:
            meta = read_file_meta(head)
        except Part10Error as error:
            raise _refusal(error) from error
    assert meta is not None
    for element, value in (
        ("(0002,0002)", meta.media_storage_sop_class_uid),
        ("(0002,0003)", meta.media_storage_sop_instance_uid),
    ):
        if not value:
            raise HTTPError(400, f"the DICOM file has no {element} in its file meta information")
    if meta.data_set_offset >= len(head):
        raise HTTPError(400, "the DICOM file ends with its file meta information: there is no data set")
    return Instance(
        meta.media_storage_sop_class_uid,
        meta.media_storage_sop_instance_uid,
        meta.transfer_syntax_uid,
        _rest(bytes(head[meta.data_set_offset :]), chunks),
    )


def _file_meta(head: bytearray) -> FileMeta | None:
    """None when it is not complete."""
    try:
        return read_file_meta(head)
    except FileMetaIncomplete as error:
        if len(head) > MAXIMUM_FILE_META_SIZE:
            raise _refusal(error) from error
        return None
    except Part10Error as error:
        raise _refusal(error) from error


def _refusal(error: Part10Error) -> HTTPError:
    return HTTPError(400, f"the body is no DICOM file that could be sent: {error}")


async def _rest(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    yield first
    async for chunk in chunks:
        yield chunk


class WatchedBody:
    """The chunks of a request body, and what went wrong with them: who sends them on says that in words of its own."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self.error: HTTPError | None = None
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except HTTPError as error:
            self.error = error
            raise
