"""The instances of a retrieve as Part 10 files in the body of an HTTP response (PS3.18 §10.4.1.1.1, PS3.10 §7.1).

Each goes out while it arrives, file meta first, in a transfer syntax that the client takes: as it is stored when that
will do, though Implicit VR and Big Endian never leave for the web (PS3.18 §8.7.3.5.2); else in another native one.

A body that looks complete is complete. `DeliveredInstances.begin` waits for the first instance, so what is wrong before
has a status of its own: 404 nothing is there, 406 not in a syntax that was asked for, 502 not to be had; 206 when it
is known by then that some will be missing. Those that go missing after a 200 raise `IncompleteRetrieve` at the end,
which breaks the connection off.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Final

from harmony.dicom.transcode import NATIVE_TRANSFER_SYNTAXES, TranscodeError, transcode
from harmony.dicom.uid import path_component
from harmony.dimse.cancellation import close_iterator
from harmony.dimse.part10 import encode_file_meta
from harmony.dimse.retrieve_scp import Selection, Unavailable
from harmony.dimse.scu import Instance
from harmony.dimse.sop_class import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from harmony.dimse.source import FileSource, pieces
from harmony.http import FileSpan, HTTPError, Piece
from harmony.http.accept import TransferSyntaxes
from harmony.http.multipart_writer import OutgoingPart
from harmony.jmix.zipstream import Buffer, ZipStream

__all__ = [
    "DICOM",
    "DeliveredInstances",
    "FileParts",
    "IncompleteRetrieve",
    "ZippedFiles",
    "dicom_type",
    "file_content",
    "file_size",
    "syntax_for",
]

logger = logging.getLogger("harmony.gateway")

DICOM: Final = "application/dicom"
_READ_BYTES: Final = 64 * 1024
"""A file up to this size costs less when it is read and leaves together with what surrounds it."""
_NOT_ON_THE_WEB: Final = (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)


class IncompleteRetrieve(HTTPError):
    """Some instances are not in a body that has been begun as if it were to be complete."""

    def __init__(self, message: str) -> None:
        super().__init__(502, message)


def syntax_for(stored: str, wanted: TransferSyntaxes) -> str | None:
    """The transfer syntax to send what is stored in this one in; None when no wanted one can be had.

    When none is named that is Explicit VR Little Endian, or the stored one of what is compressed.
    """
    weights: dict[str, float] = {}
    if stored not in _NOT_ON_THE_WEB:
        default = stored not in NATIVE_TRANSFER_SYNTAXES or stored == EXPLICIT_VR_LITTLE_ENDIAN
        weights[stored] = wanted.weight(stored, is_default=default)
    if stored in NATIVE_TRANSFER_SYNTAXES:
        weights.setdefault(
            EXPLICIT_VR_LITTLE_ENDIAN, wanted.weight(EXPLICIT_VR_LITTLE_ENDIAN, is_default=True)
        )
        weights.setdefault(
            DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, wanted.get(DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, 0.0)
        )
    best = max(weights, key=lambda uid: weights[uid])
    return best if weights[best] else None


class DeliveredInstances:
    """The instances of a selection, in transfer syntaxes that are wanted.

    An iterator and no generator, because one that nobody began would not be closed.
    """

    def __init__(self, selection: Selection, wanted: TransferSyntaxes) -> None:
        self.status = 0
        """Known after `begin`."""
        self._selection = selection
        self._wanted = wanted
        self._first: Instance | None = None
        self._current: Instance | None = None
        self._delivered = 0
        self._missing = 0
        self._other_syntax = 0

    async def begin(self) -> None:
        """Wait for the first instance. Raises HTTPError when there is none, and what the backend raises."""
        stored = {syntax for _, syntax in self._selection.contexts}
        try:
            self._first = await self._next()
        except BaseException:
            await self.aclose()
            raise
        if self._first is None:
            await self.aclose()
            if self._missing:
                raise HTTPError(
                    502, f"none of {self._missing + self._other_syntax} instances could be retrieved"
                )
            if self._other_syntax:
                raise HTTPError(406, "the instances cannot be had in a transfer syntax that is acceptable")
            raise HTTPError(404, "Not found")
        some = (
            self._missing or self._other_syntax or any(not syntax_for(each, self._wanted) for each in stored)
        )
        self.status = 206 if some else 200

    def __aiter__(self) -> AsyncIterator[Instance]:
        return self

    async def __anext__(self) -> Instance:
        instance, self._first = self._first, None
        if instance is None:
            instance = await self._next()
        if instance is not None:
            self._delivered += 1
            return instance
        left_out = self._missing + self._other_syntax
        if left_out and self.status == 200:
            raise IncompleteRetrieve(
                f"{left_out} of {left_out + self._delivered} instances could not be sent"
            )
        raise StopAsyncIteration

    async def _next(self) -> Instance | None:
        await self._close_current()
        async for each in self._selection.instances:
            if isinstance(each, Unavailable):
                self._missing += 1
                continue
            self._current = each
            syntax = syntax_for(each.transfer_syntax_uid, self._wanted)
            if syntax == each.transfer_syntax_uid:
                return each
            if syntax is None:
                self._other_syntax += 1
            else:
                try:
                    self._current = await transcode(each, [syntax])
                    assert self._current is not None
                    return self._current
                except TranscodeError as error:
                    self._current = None  # closed
                    self._missing += 1
                    logger.warning("instance %s cannot be sent: %s", each.sop_instance_uid, error)
            await self._close_current()
        return None

    async def _close_current(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            await _close_data(current)

    async def aclose(self) -> None:
        try:
            await self._close_current()
        finally:
            await close_iterator(self._selection.instances)


async def _close_data(instance: Instance) -> None:
    """Release what its data hold; more than once does no harm."""
    if isinstance(instance.data, AsyncGenerator):
        await instance.data.aclose()
    elif not isinstance(instance.data, bytes | bytearray | memoryview | AsyncIterator):
        close = getattr(instance.data, "close", None)  # a DataSource has one, an AsyncIterable has not
        if close is not None:
            close()


def dicom_type(transfer_syntax_uid: str) -> str:
    """The Content-Type of a file."""
    return f"{DICOM}; transfer-syntax={transfer_syntax_uid}"


def _file_meta(instance: Instance) -> bytes:
    return encode_file_meta(
        transfer_syntax_uid=instance.transfer_syntax_uid,
        media_storage_sop_class_uid=instance.sop_class_uid,
        media_storage_sop_instance_uid=instance.sop_instance_uid,
    )


def file_size(instance: Instance) -> int | None:
    """Of the Part 10 file that it becomes, when that is known."""
    if isinstance(instance.data, bytes | bytearray | memoryview):
        return len(_file_meta(instance)) + len(instance.data)
    size: int | None = getattr(instance.data, "size_bytes", None)  # of a DataSource
    return None if size is None else len(_file_meta(instance)) + size


async def file_content(instance: Instance) -> AsyncGenerator[bytes | memoryview, None]:
    """An instance as a Part 10 file."""
    meta = _file_meta(instance)
    async with aclosing(pieces(instance.data)) as fragments:
        async for fragment in fragments:
            if meta:
                yield meta  # not before the data are known to come
                meta = b""
            yield fragment
    if meta:
        yield meta


async def _sent_content(instance: Instance) -> AsyncGenerator[Piece, None]:
    """The same for a body: what is stored goes from its file to the socket."""
    source = instance.data
    if isinstance(source, FileSource) and source.size_bytes > _READ_BYTES:
        try:
            yield FileSpan(*source.unread(), head=_file_meta(instance))
        finally:
            source.close()
        return
    async with aclosing(file_content(instance)) as content:
        async for piece in content:
            yield piece


class FileParts:
    """Instances as the parts of a multipart body. location: the URL of their series, when it is known."""

    def __init__(self, instances: DeliveredInstances, *, location: str | None = None) -> None:
        self._instances = instances
        self._location = location

    def __aiter__(self) -> AsyncIterator[OutgoingPart]:
        return self

    async def __anext__(self) -> OutgoingPart:
        instance = await anext(self._instances)
        location = (
            None if self._location is None else f"{self._location}/instances/{instance.sop_instance_uid}"
        )
        return OutgoingPart(
            dicom_type(instance.transfer_syntax_uid),
            _sent_content(instance),
            content_location=location,
            size_bytes=file_size(instance),
        )

    async def aclose(self) -> None:
        await self._instances.aclose()


class ZippedFiles:
    """Instances as the members of a ZIP archive, `<SOP Instance UID>.dcm`."""

    def __init__(self, instances: DeliveredInstances) -> None:
        self._instances = instances
        self._chunks = self._archive()

    def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        return self

    async def __anext__(self) -> bytes | memoryview:
        return await anext(self._chunks)

    async def _archive(self) -> AsyncGenerator[bytes | memoryview, None]:
        archive = ZipStream(hashing=False)
        names: set[str] = set()
        async for instance in self._instances:
            name = f"{path_component(instance.sop_instance_uid)}.dcm"
            number = 1
            while name in names:
                number += 1
                name = f"{path_component(instance.sop_instance_uid)}-{number}.dcm"
            names.add(name)
            passing = _Passing()
            member = archive.stream(name, passing, size_bytes=file_size(instance))
            yield bytes(next(member))
            async with aclosing(file_content(instance)) as content:
                async for piece in content:
                    if piece:
                        passing.piece = piece
                        yield _readable(next(member))
            for rest in member:
                yield _readable(rest)
        for rest in archive.finish():
            yield rest

    async def aclose(self) -> None:
        await self._chunks.aclose()
        await self._instances.aclose()


def _readable(buffer: Buffer) -> bytes | memoryview:
    return bytes(buffer) if isinstance(buffer, bytearray) else buffer


class _Passing:
    """The pieces of a member, each put here before the archive asks for it."""

    def __init__(self) -> None:
        self.piece: bytes | memoryview | None = None

    def __iter__(self) -> Iterator[bytes | memoryview]:
        while self.piece is not None:
            piece, self.piece = self.piece, None
            yield piece
