"""Multipart bodies, read while they arrive (RFC 2046 §5.1, RFC 2387).

`MultipartParser` is the syntax: bytes in, parts in pieces out, however the input is cut. `read_parts` puts it on the
body of a request, so that a part of any size can be passed on as it comes:

    async for part in read_parts(request.body, multipart_boundary(content_type)):
        async for piece in part: ...

Lines end in CRLF, or all of them in LF, which the first boundary shows; some clients know no better. Space behind a
boundary, a preamble and an epilogue are permitted and dropped. What does not keep to the syntax, or ends within a part,
is a MultipartError: where a part ends decides what is stored. That the last boundary is a closing one is not asked for:
that the body is complete, HTTP has made sure of.

Not here: transfer encodings (HTTP has none, RFC 9110 §8.4) and nested multiparts, which are a part like any other.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from harmony.http.headers import Headers
from harmony.http.media_type import MediaType
from harmony.http.message import HTTPError

__all__ = [
    "MultipartError",
    "MultipartParser",
    "Part",
    "PartBegin",
    "PartEnd",
    "multipart_boundary",
    "read_parts",
]

MAXIMUM_PART_HEADER_BYTES = 16 * 1024
"""Of one part: real ones have a few hundred."""
MAXIMUM_PARTS = 100_000
"""In one body: more than the largest studies have, and what is kept of each stays a few megabytes."""
MAXIMUM_PADDING_BYTES = 1024
"""Of space behind a boundary, which transports were once allowed to add (RFC 2046 §5.1.1)."""

MAXIMUM_BOUNDARY_CHARACTERS = 200
"""RFC 2046 §5.1.1 permits 70. Orthanc's boundaries have 73: two UUIDs and a hyphen."""

_BOUNDARY = re.compile(rf"[\x20-\x7e]{{0,{MAXIMUM_BOUNDARY_CHARACTERS - 1}}}[\x21-\x7e]")
# RFC 2046 §5.1.1 permits fewer kinds of characters; what is not a control character does no harm.


class MultipartError(HTTPError):
    """The body is not the multipart that it says it is: 400. The message holds no content."""

    def __init__(self, message: str) -> None:
        super().__init__(400, f"multipart body: {message}")


@dataclass(frozen=True, slots=True)
class PartBegin:
    headers: Headers


@dataclass(frozen=True, slots=True)
class PartEnd:
    pass


Event = PartBegin | bytes | PartEnd
"""Content is bytes, never empty."""


class _State(Enum):
    PREAMBLE = auto()
    BOUNDARY = auto()
    """Right behind a delimiter, which may turn out to be the closing one."""
    HEADERS = auto()
    EMPTY_LINE = auto()
    """At the CRLF behind the headers: an empty line, and content follows, or the beginning of a delimiter, and the part
    has no content (RFC 2046 §5.1.1, body-part)."""
    CONTENT = auto()
    EPILOGUE = auto()


def multipart_boundary(media_type: MediaType) -> bytes:
    """The boundary that a multipart Content-Type names. Raises MultipartError when it has none that can be one."""
    boundary = media_type.parameters.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise MultipartError(f"Content-Type has no boundary of 1 to {MAXIMUM_BOUNDARY_CHARACTERS} characters")
    return boundary.encode("ascii")


class MultipartParser:
    """The syntax of one multipart body. `feed` it what comes, then `finish`."""

    def __init__(self, boundary: bytes) -> None:
        self._boundary = b"--" + boundary
        self._line_end = b""  # not known yet
        self._delimiter = b"\n" + self._boundary  # what precedes the first one is dropped anyway
        self._buffer = b"\n"  # a body may begin with its first boundary
        self._state = _State.PREAMBLE
        self._parts = 0

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield what `data` completes; to be iterated to the end. Raises MultipartError."""
        self._buffer = self._buffer + data if self._buffer else data
        while True:
            match self._state:
                case _State.PREAMBLE | _State.CONTENT:
                    inside = self._state is _State.CONTENT
                    content, found = self._content()
                    if content and inside:
                        yield content
                    if not found:
                        return
                    if inside:
                        yield PartEnd()
                    self._state = _State.BOUNDARY
                case _State.BOUNDARY:
                    if not self._boundary_line():
                        return
                case _State.HEADERS:
                    headers = self._headers()
                    if headers is None:
                        return
                    self._parts += 1
                    if self._parts > MAXIMUM_PARTS:
                        raise MultipartError(f"more than {MAXIMUM_PARTS} parts")
                    self._state = _State.EMPTY_LINE
                    yield PartBegin(headers)
                case _State.EMPTY_LINE:
                    if self._delimiter.startswith(self._buffer):
                        return
                    if not self._buffer.startswith(self._delimiter):
                        self._buffer = self._buffer[len(self._line_end) :]
                    self._state = _State.CONTENT
                case _State.EPILOGUE:
                    self._buffer = b""
                    return

    def finish(self) -> None:
        """The body has ended. Raises MultipartError unless a boundary has ended its last part."""
        if self._state is _State.EPILOGUE:
            return
        if self._parts and self._state is _State.BOUNDARY and not self._buffer.strip(b" \t\r-"):
            return
        if self._parts and self._state is _State.HEADERS and self._buffer == self._line_end:
            return
        if self._state is _State.PREAMBLE:
            raise MultipartError("does not contain the boundary that Content-Type names")
        raise MultipartError(f"ended before its closing boundary, in part {max(1, self._parts)}")

    def _content(self) -> tuple[bytes, bool]:
        """What precedes the next delimiter, and whether that is there. Both are taken from the buffer."""
        buffer, delimiter = self._buffer, self._delimiter
        at = buffer.find(delimiter)
        if at >= 0:
            self._buffer = buffer[at + len(delimiter) :]
            return buffer[:at], True
        # The last bytes may be the beginning of one.
        at = buffer.find(delimiter[:1], max(0, len(buffer) - len(delimiter) + 1))
        while at >= 0 and not delimiter.startswith(buffer[at:]):
            at = buffer.find(delimiter[:1], at + 1)
        if at < 0:
            self._buffer = b""
            return buffer, False
        self._buffer = buffer[at:]
        return buffer[:at], False

    def _boundary_line(self) -> bool:
        """Read the rest of a boundary's line; False when it is not complete."""
        buffer = self._buffer
        if buffer == b"-":
            return False
        if buffer.startswith(b"--"):
            self._state = _State.EPILOGUE
            return True
        padding = len(buffer) - len(buffer.lstrip(b" \t"))
        if padding < len(buffer) and not self._line_end:
            self._line_end = b"\n" if buffer[padding : padding + 1] == b"\n" else b"\r\n"
            self._delimiter = self._line_end + self._boundary
        line_end = buffer[padding : padding + len(self._line_end)]
        if padding > MAXIMUM_PADDING_BYTES or not self._line_end.startswith(line_end):
            raise MultipartError("a boundary is followed by something else than the end of its line")
        if not line_end or line_end != self._line_end:
            return False
        self._buffer = buffer[
            padding:
        ]  # with the CRLF: what ends headers is an empty line, also when there are none
        self._state = _State.HEADERS
        return True

    def _headers(self) -> Headers | None:
        """Take the headers of a part, and not the end of the empty line; None when they are not complete."""
        line_end = self._line_end
        end = self._buffer.find(2 * line_end)
        size = end if end >= 0 else len(self._buffer) - 2 * len(line_end) + 1
        if size > MAXIMUM_PART_HEADER_BYTES:
            raise MultipartError(
                f"headers of part {self._parts + 1} exceed {MAXIMUM_PART_HEADER_BYTES} bytes"
            )
        if end < 0:
            return None
        head, self._buffer = self._buffer[len(line_end) : end], self._buffer[end + len(line_end) :]
        return _parse_headers(head, line_end.decode(), self._parts + 1)


def _parse_headers(head: bytes, line_end: str, number: int) -> Headers:
    text = head.decode("latin-1")
    text = text.replace(line_end + " ", " ").replace(line_end + "\t", " ")  # folded lines (RFC 5322 §2.2.3)
    fields = []
    for line in text.split(line_end) if text else ():
        name, colon, value = line.partition(":")
        if not colon:
            raise MultipartError(f"a header line of part {number} has no colon")
        fields.append((name, value))
    try:
        return Headers(fields)
    except ValueError:
        raise MultipartError(f"a header of part {number} has characters that none may have") from None


class Part:
    """One part: its headers, and an async iterator over its content."""

    def __init__(self, headers: Headers, events: AsyncIterator[Event]) -> None:
        self.headers = headers
        self._events = events
        self._ended = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._ended:
            event = await anext(self._events)
            if isinstance(event, bytes):
                return event
            self._ended = True
        raise StopAsyncIteration

    async def skip(self) -> None:
        """Read to its end."""
        async for _ in self:
            pass


async def read_parts(chunks: AsyncIterable[bytes], boundary: bytes) -> AsyncGenerator[Part, None]:
    """Yield the parts of a body. What is not read of one is skipped when the next is asked for.

    Raises MultipartError, here or in a part, and what reading the body raises.
    """
    events = _events(chunks, MultipartParser(boundary))
    try:
        async for event in events:
            assert isinstance(event, PartBegin)
            part = Part(event.headers, events)
            yield part
            await part.skip()
            await asyncio.sleep(0)  # a chunk may hold thousands of them
    finally:
        await events.aclose()


async def _events(chunks: AsyncIterable[bytes], parser: MultipartParser) -> AsyncGenerator[Event, None]:
    async for chunk in chunks:
        for event in parser.feed(chunk):
            yield event
    parser.finish()
