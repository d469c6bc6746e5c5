"""Where data sets to be sent come from: files, buffers, or whatever arrives while it is being sent.

A `DataSource` is pulled: the writer offers places in its PDU buffer and the source fills them, so that a
file's bytes go from the page cache straight to where the socket takes them. A `StreamSource` wraps an async
iterable whose length is not known, such as an HTTP body.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from pathlib import Path
from typing import Protocol

from harmony.dimse.part10 import READ_ONLY

__all__ = ["BytesSource", "Data", "DataSource", "FileSource", "StreamSource", "pieces"]

PIECE_BYTES = 256 * 1024
"""Of a source read piece by piece: few system calls, and what was read is still in the cache when it is used."""

IOV_MAX = 1024
"""Buffers one preadv takes at most (the kernel's UIO_MAXIOV)."""


class DataSource(Protocol):
    """A data set of known length."""

    size_bytes: int

    def read_into(self, places: Sequence[memoryview]) -> None:
        """Fill all the places, in order, with the next bytes. Raises EOFError when fewer are left."""

    def close(self) -> None:
        """Release what the source holds; idempotent."""


class BytesSource:
    """A data set in memory; the buffer is read, not copied, and must not change until the send is over."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data).cast("B")
        self._position = 0
        self.size_bytes = len(self._data)

    def read_into(self, places: Sequence[memoryview]) -> None:
        position = self._position
        for place in places:
            size = len(place)
            if position + size > self.size_bytes:
                raise EOFError(f"{self.size_bytes} bytes of data set, {position + size} wanted")
            place[:] = self._data[position : position + size]
            position += size
        self._position = position

    def close(self) -> None:
        self._data = memoryview(b"")


class FileSource:
    """The bytes of a file from `offset` to its end as it is now; a file that shrinks meanwhile is an
    EOFError."""

    def __init__(self, path: str | Path, *, offset: int = 0, descriptor: int | None = None) -> None:
        """descriptor: of the file, when it is open already; it is closed here, or when this fails by the caller."""
        self._path = path
        self._descriptor = os.open(path, READ_ONLY) if descriptor is None else descriptor
        self._position = offset
        self.size_bytes = max(0, os.fstat(self._descriptor).st_size - offset)
        self._end = offset + self.size_bytes

    def read_into(self, places: Sequence[memoryview]) -> None:
        for first in range(0, len(places), IOV_MAX):
            self._fill(list(places[first : first + IOV_MAX]))

    def _fill(self, places: list[memoryview]) -> None:
        while places:
            count = os.preadv(self._descriptor, places, self._position)
            if count == 0:
                raise EOFError(f"{self._path} ended at byte {self._position}, it has become shorter")
            self._position += count
            while places and count >= len(places[0]):
                count -= len(places.pop(0))
            if count:
                places[0] = places[0][count:]

    def unread(self) -> tuple[int, int, int]:
        """Descriptor, offset and size of what has not been read yet, for whoever has the kernel send it; valid until
        `close`."""
        return self._descriptor, self._position, self._end - self._position

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class StreamSource:
    """A data set that arrives while it is sent, of unknown length."""

    def __init__(self, chunks: AsyncIterable[bytes | memoryview]) -> None:
        self.chunks = chunks


Data = bytes | bytearray | memoryview | DataSource | AsyncIterable[bytes | memoryview]
"""A data set to be sent: a buffer, a source that is read, or chunks of unknown total length."""


async def pieces(data: Data) -> AsyncGenerator[bytes | memoryview, None]:
    """The data of an Instance (`harmony.dimse.scu`) piece by piece, for whoever does not send it as C-STORE.

    A memoryview is valid until the next piece is asked for. Sources and generators are closed at the end. EOFError when
    a file has become shorter.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        yield data if isinstance(data, bytes) else memoryview(data).cast("B")
    elif isinstance(data, AsyncIterable):
        try:
            async for piece in data:
                yield piece
        finally:
            if isinstance(data, AsyncGenerator):
                await data.aclose()
    else:
        try:
            left = data.size_bytes
            buffer = memoryview(bytearray(min(left, PIECE_BYTES)))
            while left:
                place = buffer[:left]
                data.read_into([place])
                left -= len(place)
                yield place
        finally:
            data.close()
