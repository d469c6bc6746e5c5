"""A JSON array of objects, read while it arrives (RFC 8259 §5): one object at a time, whatever the number of them.

    async for encoded in read_json_array(response): model = json.loads(encoded)

Only where an object begins and ends is looked at; whether it is JSON in between shows when it is decoded. A single
object instead of an array counts as one element, and a body without anything as none. What is neither, is longer than
it may be, or breaks off, is a JSONArrayError.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from typing import Final

__all__ = ["MAXIMUM_OBJECT_BYTES", "JSONArrayError", "read_json_array"]

MAXIMUM_OBJECT_BYTES: Final = 16 * 1024 * 1024

_TOKEN: Final = re.compile(rb'"(?:[^"\\]+|\\.)*+"|["{}]', re.DOTALL)
"""A complete string, the beginning of one that is not, or a brace. Brackets inside of an object do not matter."""
_IN_STRING: Final = re.compile(rb'(?:[^"\\]+|\\.)*+', re.DOTALL)
_BETWEEN: Final = b" \t\r\n,[]"


class JSONArrayError(ValueError):
    """The body is no array of objects. The message holds no content."""


async def read_json_array(
    chunks: AsyncIterable[bytes], *, maximum_object_bytes: int = MAXIMUM_OBJECT_BYTES
) -> AsyncGenerator[bytes, None]:
    """Yield the objects, each encoded as it came. Raises JSONArrayError, and what `chunks` raises."""
    reading = _Reading(maximum_object_bytes)
    async for chunk in chunks:
        for encoded in reading.feed(chunk):
            yield encoded
    reading.finish()


class _Reading:
    """Each byte is looked at once or twice, however small the chunks are."""

    def __init__(self, maximum_object_bytes: int) -> None:
        self._maximum_object_bytes = maximum_object_bytes
        self._pieces: list[bytes] = []  # of the object that is arriving
        self._size = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False  # the next byte belongs to the backslash before it
        self._array = False
        self._closed = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(chunk):
            if not self._depth:
                at = self._between(chunk, at)
                if at == len(chunk):
                    return
            begin, at = at, self._end(chunk, at)
            self._pieces.append(chunk[begin:at])
            self._size += at - begin
            if self._size > self._maximum_object_bytes:
                raise JSONArrayError(f"an object of more than {self._maximum_object_bytes} bytes")
            if not self._depth:
                encoded = b"".join(self._pieces)
                self._pieces, self._size = [], 0
                self._closed = not self._array
                yield encoded

    def finish(self) -> None:
        if self._depth or (self._array and not self._closed):
            raise JSONArrayError("the array ended before its end")

    def _between(self, chunk: bytes, at: int) -> int:
        """Pass over what is between objects; where the next one begins, or the end of what is there."""
        while at < len(chunk) and chunk[at] != 0x7B:
            byte = chunk[at : at + 1]
            if byte not in _BETWEEN or (byte == b"[" and self._array) or (self._closed and byte in b",[]"):
                raise JSONArrayError("not an array of objects")
            self._array = self._array or byte == b"["
            self._closed = self._closed or byte == b"]"
            at += 1
        if at < len(chunk) and self._closed:
            raise JSONArrayError("something follows the array")
        return at

    def _end(self, chunk: bytes, at: int) -> int:
        """Where the object ends, or the chunk does."""
        while at < len(chunk):
            if self._in_string:
                at = self._string(chunk, at)
                continue
            token = _TOKEN.search(chunk, at)
            if token is None:
                return len(chunk)
            text, at = token[0], token.end()
            if text == b'"':
                self._in_string = True
            elif len(text) == 1:
                self._depth += 1 if text == b"{" else -1
                if not self._depth:
                    break
        return at

    def _string(self, chunk: bytes, at: int) -> int:
        """Go on in a string that was not complete."""
        at += self._escaped
        rest = _IN_STRING.match(chunk, at)
        at = rest.end() if rest is not None else at
        self._escaped = chunk[at : at + 1] == b"\\"
        self._in_string = self._escaped or at >= len(chunk)
        return min(at + 1, len(chunk))
