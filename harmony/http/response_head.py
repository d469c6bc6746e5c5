"""The head of a response, and how the end of its body is told (RFC 9112 §4, §6, §7.1; RFC 9110 §6.4.1).

h11 reads requests; what is sent is written here, from headers that cannot hold a line end (`Headers`), in one string.
`Framing` counts what follows, so that a body of another length than was said is an error and not the next response.

No I/O. Called by connection.py.
"""

from __future__ import annotations

import functools
from email.utils import formatdate
from http import HTTPStatus
from time import time

from harmony import __version__
from harmony.http.headers import Headers
from harmony.http.message import FileSpan

__all__ = ["NO_BODY_STATUS", "BodyLengthError", "Framing", "response_head"]

NO_BODY_STATUS = (204, 304)
"""RFC 9110 §6.4.1"""

_OURS = frozenset(("connection", "transfer-encoding", "content-length", "keep-alive", "upgrade"))
"""About this connection, or decided here."""

_DEFAULTS = (
    ("server", f"Server: harmony/{__version__}\r\n"),
    ("x-content-type-options", "X-Content-Type-Options: nosniff\r\n"),
)


class BodyLengthError(Exception):
    """A body is longer or shorter than the head has said."""


class Framing:
    """How the end of one body is told: by its length, by chunks, or (to HTTP/1.0) by the end of the connection.

    length: None when it is not known. has_body: False for the answer to HEAD, and where the status has none.
    """

    __slots__ = ("_has_body", "_remaining", "is_chunked", "length")

    def __init__(self, length: int | None, *, http_1_0: bool, has_body: bool) -> None:
        self.length = length
        self.is_chunked = length is None and not http_1_0
        self._has_body = has_body
        self._remaining = length or 0

    def data(self, piece: bytes | FileSpan) -> tuple[bytes | FileSpan, ...]:
        """A piece of the body as it is sent. Raises BodyLengthError."""
        if self.is_chunked:
            return b"%x\r\n" % len(piece), piece, b"\r\n"
        if self.length is not None:
            self._remaining -= len(piece)
            if self._remaining < 0:
                raise BodyLengthError(f"a body of {self.length} bytes is {-self._remaining} bytes too long")
        return (piece,)

    def end(self) -> bytes:
        """What comes behind the last piece. Raises BodyLengthError."""
        if not self._has_body:
            return b""
        if self._remaining > 0:
            raise BodyLengthError(f"a body of {self.length} bytes is {self._remaining} bytes too short")
        return b"0\r\n\r\n" if self.is_chunked else b""


def response_head(status: int, headers: Headers, framing: Framing, *, close: bool) -> bytes:
    """The status line and the fields: those given but for what is decided here, and what every answer has.

    close: the connection ends with this response.
    """
    names, lines = headers.lines(without=_OURS)
    head = _status_line(status) + lines
    if status not in NO_BODY_STATUS:
        if framing.length is not None:
            head += f"Content-Length: {framing.length}\r\n"
        elif framing.is_chunked:
            head += "Transfer-Encoding: chunked\r\n"
    for name, line in _DEFAULTS:
        if name not in names:
            head += line
    if "date" not in names:
        head += _date_line(int(time()))
    return (head + ("Connection: close\r\n\r\n" if close else "\r\n")).encode("latin-1")


@functools.lru_cache(maxsize=2)
def _date_line(second: int) -> str:
    return f"Date: {formatdate(second, usegmt=True)}\r\n"


@functools.lru_cache(maxsize=64)
def _status_line(status: int) -> str:
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = ""
    return f"HTTP/1.1 {status} {reason}\r\n"
