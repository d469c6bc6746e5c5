"""Sending a file: length, single byte ranges, where its bytes come from (RFC 9110 §14).

`file_response` turns a response with a `FileBody` into one whose body is an open file: 200 with everything, 206 with
the part a Range header asks for, or 416. Ranges are an offer, so what is not understood (other units, several ranges, a
failed If-Range) is answered with the whole. The file is opened once and read through that descriptor: replacing or
deleting it meanwhile does not disturb the transfer, shortening it ends the transfer with an error.

A response's file is opened in the event loop, as those of the archive are, and is one `FileSpan`, which the channel has
the kernel send. `FileChunks` are for who needs the bytes; they are read in a worker thread.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path

from harmony.http.headers import Headers
from harmony.http.message import FileBody, FileSpan, Request, Response, error_response

__all__ = ["FileChunks", "file_response", "open_file"]

CHUNK_BYTES = 256 * 1024
"""Per read and write: large enough that system calls cost nothing, small enough to stay in the processor's cache."""

_SINGLE_RANGE = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.IGNORECASE | re.ASCII)


class FileChunks:
    """Async iterator over `length` bytes of an open file; `aclose` (or the end) closes it."""

    def __init__(self, descriptor: int, *, offset: int, length: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self.remaining = length

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self.remaining:
            raise StopAsyncIteration
        wanted = min(CHUNK_BYTES, self.remaining)
        reading = asyncio.get_running_loop().run_in_executor(
            None, os.pread, self._descriptor, wanted, self._offset
        )
        try:
            chunk = await asyncio.shield(reading)
        except asyncio.CancelledError:
            # The thread still reads from the descriptor; closing it now could hand its number to another file.
            await asyncio.wait([reading])
            raise
        if not chunk:
            raise EOFError(f"file ended at byte {self._offset}, {self.remaining} bytes before its length")
        self._offset += len(chunk)
        self.remaining -= len(chunk)
        return chunk

    async def aclose(self) -> None:
        descriptor, self._descriptor, self.remaining = self._descriptor, -1, 0
        if descriptor >= 0:
            os.close(descriptor)


class _SentFile:
    """A body that is one span of an open file; `aclose` closes it."""

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor = descriptor
        self._spans = [FileSpan(descriptor, offset, length)]

    def __aiter__(self) -> AsyncIterator[FileSpan]:
        return self

    async def __anext__(self) -> FileSpan:
        if not self._spans:
            raise StopAsyncIteration
        return self._spans.pop()

    async def aclose(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def file_response(request: Request | None, response: Response, body: FileBody) -> Response:
    """`response` with the file opened, its length known and a Range of `request` applied.

    Raises OSError as opening does, ValueError when the offset or length of `body` lies outside the file.
    """
    descriptor, size = _open(body.path)  # handing it to a thread takes twenty times as long
    try:
        offset = body.offset
        length = size - offset if body.length is None else body.length
        if not (0 <= offset <= size and 0 <= length <= size - offset):
            raise ValueError(f"file body of {length} bytes at {offset}, but the file has {size}")
        status, headers = response.status, response.headers.set("Accept-Ranges", "bytes")
        if status == 200 and request is not None and request.method == "GET":
            wanted = _requested_range(request.headers, headers)
            if wanted is not None:
                part = _resolve(wanted, length)
                if part is None:
                    os.close(descriptor)
                    return _unsatisfiable(length)
                first, last = part
                headers = headers.set("Content-Range", f"bytes {first}-{last}/{length}")
                status, offset, length = 206, offset + first, last - first + 1
    except BaseException:
        os.close(descriptor)
        raise
    return Response(status, headers, _SentFile(descriptor, offset, length), content_length=length)


async def open_file(path: Path) -> tuple[int, int]:
    """Descriptor and size of a regular file. Raises OSError, or ValueError for anything else."""
    opening = asyncio.get_running_loop().run_in_executor(None, _open, path)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unused)
        raise


def _open(path: Path | str) -> tuple[int, int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # NONBLOCK: a FIFO would hang here
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ValueError("not a regular file")
    return descriptor, status.st_size


def _close_unused(opening: asyncio.Future[tuple[int, int]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result()[0])


def _requested_range(request: Headers, response: Headers) -> tuple[str, str] | None:
    """First and last byte as sent, either may be empty; None for anything that is to be ignored."""
    match = _SINGLE_RANGE.fullmatch(request.get("Range", "") or "")
    if match is None or match.groups() == ("", ""):
        return None
    condition = request.get("If-Range")  # RFC 9110 §13.1.5: strong comparison, otherwise the whole
    if condition is not None:
        validators = (response.get("ETag"), response.get("Last-Modified"))
        if condition.startswith("W/") or condition not in validators:
            return None
    first, last = match.groups()
    if first and last and int(last) < int(first):  # RFC 9110 §14.1.1: invalid, so ignored
        return None
    return first, last


def _resolve(wanted: tuple[str, str], length: int) -> tuple[int, int] | None:
    """Inclusive first and last byte within `length`; None when nothing of it can be sent."""
    first, last = wanted
    if not first:
        suffix = min(int(last), length)
        return (length - suffix, length - 1) if suffix else None
    if int(first) >= length:
        return None
    return int(first), min(int(last), length - 1) if last else length - 1


def _unsatisfiable(length: int) -> Response:
    answer = error_response(416, "range not satisfiable")
    answer.headers = answer.headers.set("Content-Range", f"bytes */{length}")
    return answer
