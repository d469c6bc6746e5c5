"""Multipart bodies, written while their parts arrive (RFC 2046 §5.1, RFC 2387, PS3.18 §8.6.1.2).

    return multipart_response(parts, root_type="application/dicom")

`parts` yields an `OutgoingPart` at a time, each with content that is pulled at the pace of the client. Nothing is read
ahead but the first piece of a part, which leaves together with its headers: a part that fails at once has not begun.
What fails later is raised, the server breaks the connection off, and the client misses the closing boundary.

A client that leaves closes everything: the content that is being read and the iterator of the parts, begun or not.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Final

from harmony.http.headers import Headers, HeadersLike
from harmony.http.message import FileSpan, Piece, Response

__all__ = ["MultipartBody", "OutgoingPart", "multipart_response", "new_boundary"]

JOINED_BYTES: Final = 64 * 1024
"""A first piece up to this is copied behind its headers, to spare a write; a larger one is not worth the copy."""


@dataclass(frozen=True, slots=True)
class OutgoingPart:
    """content: bytes, or pieces of it; a memoryview, or the descriptor of a FileSpan, need be valid only until the next
    one is asked for."""

    content_type: str
    content: bytes | AsyncIterable[Piece]
    content_location: str | None = None
    size_bytes: int | None = None
    """Of the content, if that is known; of bytes it is."""

    def headers(self) -> Headers:
        size = len(self.content) if isinstance(self.content, bytes) else self.size_bytes
        fields = [("Content-Type", self.content_type)]
        if self.content_location is not None:
            fields.append(("Content-Location", self.content_location))
        if size is not None:
            fields.append(("Content-Length", str(size)))
        return Headers(fields)


def new_boundary() -> str:
    """128 random bits: content that contains it cannot be made on purpose, and does not happen."""
    return secrets.token_hex(16)


def multipart_response(
    parts: AsyncIterator[OutgoingPart],
    *,
    root_type: str,
    status: int = 200,
    headers: HeadersLike = (),
    boundary: str | None = None,
) -> Response:
    """A multipart/related answer. root_type: the media type of the parts."""
    boundary = boundary or new_boundary()
    content_type = f'multipart/related; type="{root_type}"; boundary={boundary}'
    return Response(
        status, Headers(headers).set("Content-Type", content_type), MultipartBody(parts, boundary)
    )


class MultipartBody:
    """The body: an iterator and no generator, because one that nobody began would not be closed."""

    def __init__(self, parts: AsyncIterator[OutgoingPart], boundary: str) -> None:
        self._parts = parts
        self._delimiter = b"--" + boundary.encode("ascii")
        self._before = b""  # the line end that belongs to the next delimiter
        self._content: AsyncIterator[Piece] | None = None
        self._held: Iterator[Piece] = iter(())
        self._over = False

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        for held in self._held:
            return held
        if self._content is not None:
            async for piece in self._content:
                return piece
            await self._end_part()
        if self._over:
            raise StopAsyncIteration
        async for part in self._parts:
            return await self._begin(part)
        self._over = True
        return self._before + self._delimiter + b"--\r\n"

    async def _begin(self, part: OutgoingPart) -> Piece:
        lines = b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in part.headers())
        head = self._before + self._delimiter + b"\r\n" + lines + b"\r\n"
        self._before = b"\r\n"
        first: Piece = b""
        if isinstance(part.content, bytes):
            first = part.content
        else:
            self._content = aiter(part.content)
            async for piece in self._content:
                first = piece
                break
        if isinstance(first, FileSpan):
            return replace(first, head=head + first.head)
        if len(first) <= JOINED_BYTES:
            return head + first
        self._held = iter((first,))
        return head

    async def _end_part(self) -> None:
        content, self._content = self._content, None
        await _close(content)

    async def aclose(self) -> None:
        self._over = True
        self._held = iter(())
        try:
            await self._end_part()
        finally:
            await _close(self._parts)


async def _close(iterator: object) -> None:
    close = getattr(iterator, "aclose", None)  # generators have it, an AsyncIterator need not
    if close is not None:
        await close()
