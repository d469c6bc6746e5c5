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
    def __init__(self, maximum_object_bytes: int) -> None:
        self._maximum_object_bytes = maximum_object_bytes
        self._buffer = b""
        self._looked_at = 0
        self._depth = 0
        self._array = False
        self._closed = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        self._buffer += chunk
        begin = 0
        while True:
            if not self._depth:
                begin = self._between(begin)
                if begin == len(self._buffer):
                    break
                self._depth, self._looked_at = 1, begin + 1
            end = self._end()
            if end is None:
                break
            yield self._buffer[begin:end]
            begin = end
            self._closed = not self._array
        self._buffer = self._buffer[begin:]
        self._looked_at = max(0, self._looked_at - begin)
        if len(self._buffer) > self._maximum_object_bytes:
            raise JSONArrayError(f"an object of more than {self._maximum_object_bytes} bytes")

    def finish(self) -> None:
        if self._depth or (self._array and not self._closed):
            raise JSONArrayError("the array ended before its end")

    def _between(self, at: int) -> int:
        """Pass over what is between objects; where the next one begins, or the end of what is there."""
        buffer = self._buffer
        while at < len(buffer) and buffer[at] != 0x7B:
            byte = buffer[at : at + 1]
            if byte not in _BETWEEN or (byte == b"[" and self._array) or (self._closed and byte in b",[]"):
                raise JSONArrayError("not an array of objects")
            self._array = self._array or byte == b"["
            self._closed = self._closed or byte == b"]"
            at += 1
        if at < len(buffer) and self._closed:
            raise JSONArrayError("something follows the array")
        return at

    def _end(self) -> int | None:
        """Where the object ends, None when that is not there yet."""
        while (token := _TOKEN.search(self._buffer, self._looked_at)) is not None:
            text = token[0]
            if text == b'"':
                self._looked_at = token.start()
                return None
            self._looked_at = token.end()
            if len(text) == 1:
                self._depth += 1 if text == b"{" else -1
                if not self._depth:
                    return token.end()
        self._looked_at = len(self._buffer)
        return None
