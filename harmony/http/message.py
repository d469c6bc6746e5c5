"""Requests and responses, as handlers see them (RFC 9110).

A `Request` is a parsed head plus a body that is pulled chunk by chunk; a `Response` is a status, headers and a body
that is bytes, a file, or an async iterable which the server pulls at the pace of the client. Nothing here does I/O:
`RequestBody` is given the coroutine that fetches its next chunk, so a test can give it a list.

The path is decoded exactly once, per segment, so that %2F is data and never a separator; NUL, broken percent-encoding
and dot segments are answered 400 before any handler sees them. Errors meant for the client are raised as `HTTPError`
and become JSON: {"error": "..."}.

Not here: content negotiation, multipart (the services that need them), cookies.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from harmony.http.headers import Headers, HeadersLike
from harmony.ul.held import HELD

__all__ = [
    "Body",
    "FileBody",
    "FileSpan",
    "HTTPError",
    "Headers",
    "Piece",
    "Query",
    "Request",
    "RequestBody",
    "Response",
    "error_response",
    "json_response",
]

DEFAULT_READ_LIMIT_BYTES = 16 * 1024 * 1024
"""What `RequestBody.read` takes into memory when the caller names no limit: ample for JSON, too little to hurt."""

_BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE_FORM = re.compile(r"https?://[^/?#]*", re.IGNORECASE)  # RFC 9112 §3.2.2


@dataclass(frozen=True, slots=True)
class FileBody:
    """A body that is a file, or `length` bytes of it from `offset`; sent with Content-Length and Range."""

    path: Path | str
    offset: int = 0
    length: int | None = None  # None: to the end of the file


@dataclass(frozen=True, slots=True)
class FileSpan:
    """`size_bytes` of an open file from `offset`, behind `head`: a piece of a body that the kernel reads when the
    socket takes it. The descriptor stays open, and its owner's, until the next piece is asked for."""

    descriptor: int
    offset: int
    size_bytes: int
    head: bytes = b""

    def __len__(self) -> int:
        return len(self.head) + self.size_bytes

    def __bytes__(self) -> bytes:
        return b"".join(self.pieces(self.size_bytes))

    def pieces(self, maximum_bytes: int) -> Iterator[bytes]:
        """The bytes, read here. Raises EOFError when the file has become shorter."""
        if self.head:
            yield self.head
        at, end = self.offset, self.offset + self.size_bytes
        while at < end:
            piece = os.pread(self.descriptor, min(maximum_bytes, end - at), at)
            if not piece:
                raise EOFError(f"file ended at byte {at}, {end - at} bytes too early")
            at += len(piece)
            yield piece


Piece = bytes | memoryview | FileSpan
"""Of a body that is sent while it is made."""

Body = bytes | AsyncIterable[Piece] | FileBody | None


class Response:
    """The answer to one request.

    body: None or bytes are sent at once. An async iterable is pulled as fast as the client reads; its iterator's
    `aclose` is always awaited, and a memoryview it yields is copied before it is resumed. The status line leaves with
    the first chunk, so an error before that is still a proper error response; one after it aborts the connection.
    content_length: length of an async iterable when known (otherwise chunked), or of what a HEAD does not carry.
    """

    __slots__ = ("body", "content_length", "headers", "status")

    def __init__(
        self,
        status: int = 200,
        headers: HeadersLike = (),
        body: Body = None,
        *,
        content_length: int | None = None,
    ) -> None:
        if not 200 <= status <= 599:
            raise ValueError(f"response status {status}, expected 200..599")
        self.status = status
        self.headers = Headers(headers)
        self.body = body
        self.content_length = content_length

    def __repr__(self) -> str:
        return f"<Response {self.status} {type(self.body).__name__}>"


class HTTPError(Exception):
    """Raised by a handler (or a body being read) to answer with `status` and {"error": message}."""

    def __init__(self, status: int, message: str, *, headers: HeadersLike = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = Headers(headers)

    def response(self) -> Response:
        answer = error_response(self.status, self.message)
        for name, value in self.headers:
            answer.headers = answer.headers.set(name, value)
        return answer


_JSON = Headers({"Content-Type": "application/json"})


def json_response(content: Any, status: int = 200, *, headers: HeadersLike = ()) -> Response:
    """`content` as application/json; Any because JSON is what msgspec can encode, not one type."""
    body = msgspec.json.encode(content)
    with_type = Headers(headers).set("Content-Type", "application/json") if headers else _JSON
    return Response(status, with_type, body)


def error_response(status: int, message: str, **extra: Any) -> Response:
    """{"error": message, **extra}: the form of every error this server answers with."""
    return json_response({"error": message, **extra}, status)


class RequestBody:
    """The body of a request: an async iterator of chunks, pulled from the connection as they are asked for.

    maximum_bytes: what this request may carry; the server's default, which a handler may set to another number or to
    None (unlimited) before it reads. Reading past it raises HTTPError 413, before anything is read when Content-Length
    already says so. Other errors: 400 (broken framing), 408 (no progress). A client that leaves cancels the handler.
    """

    __slots__ = ("_collected_bytes", "_receive", "content_length", "maximum_bytes", "received_bytes")

    def __init__(
        self,
        receive: Callable[[], Awaitable[bytes]],
        content_length: int | None = None,
        *,
        maximum_bytes: int | None = None,
    ) -> None:
        """receive: the next chunk, or b"" at the end and ever after."""
        self._receive = receive
        self.content_length = content_length  # None: chunked
        self.maximum_bytes = maximum_bytes
        self.received_bytes = 0
        self._collected_bytes = 0

    @classmethod
    def of(cls, *chunks: bytes) -> RequestBody:
        """A body that is already there."""
        remaining = [chunk for chunk in reversed(chunks) if chunk]

        async def receive() -> bytes:
            return remaining.pop() if remaining else b""

        return cls(receive, sum(len(chunk) for chunk in chunks))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self._check(self.content_length or 0, self.maximum_bytes)
        chunk = await self._receive()
        if not chunk:
            raise StopAsyncIteration
        self.received_bytes += len(chunk)
        self._check(self.received_bytes, self.maximum_bytes)
        return chunk

    async def read(self, limit_bytes: int = DEFAULT_READ_LIMIT_BYTES) -> bytes:
        """The whole (remaining) body; HTTPError 413 when it is longer than `limit_bytes`, 503 as `collect`."""
        self._check(self.content_length or 0, limit_bytes)
        whole = bytearray()
        async for chunk in self:
            self._check(len(whole) + len(chunk), limit_bytes)
            self.collect(len(chunk))
            whole += chunk
        return bytes(whole)

    def collect(self, size_bytes: int) -> None:
        """Count so much of it as held until the request is over. Raises HTTPError 503 when there is no room."""
        if not HELD.has_room(size_bytes):
            raise HTTPError(503, "too much memory is in use", headers={"Retry-After": "1"})
        HELD.take(size_bytes)
        self._collected_bytes += size_bytes

    def let_go(self) -> None:
        """What was collected is not needed any more. Called by the connection."""
        HELD.give(self._collected_bytes)
        self._collected_bytes = 0

    def _check(self, size_bytes: int, maximum_bytes: int | None) -> None:
        if maximum_bytes is not None and size_bytes > maximum_bytes:
            raise HTTPError(
                413, f"request body of {size_bytes} bytes or more, at most {maximum_bytes} accepted"
            )


class Query:
    """The query string: pairs in order, names may repeat. "+" and %20 are a space, as forms encode it."""

    __slots__ = ("pairs",)

    def __init__(self, raw: str = "") -> None:
        """Raises HTTPError 400 for broken percent-encoding, NUL, or text that is not UTF-8."""
        pairs = (item.partition("=") for item in raw.split("&") if item) if raw else ()
        self.pairs: tuple[tuple[str, str], ...] = tuple(
            (_decode(name.replace("+", " "), "query"), _decode(value.replace("+", " "), "query"))
            for name, _, value in pairs
        )

    def first(self, name: str, default: str | None = None) -> str | None:
        return next((value for key, value in self.pairs if key == name), default)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.pairs if key == name]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.pairs)

    def __contains__(self, name: object) -> bool:
        return any(key == name for key, _ in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        """Names only: values of a DICOM query are patient data."""
        return f"Query({', '.join(name for name, _ in self.pairs)})"


class Request:
    """One request, its body not yet read.

    raw_path is as sent (percent-encoded, without the query), `segments` its decoded parts, `path` those joined by "/".
    client_certificate is what `ssl.SSLSocket.getpeercert()` says of the certificate that the client showed and that was
    verified, None without one (or without TLS). It is the TLS peer's: behind a proxy, the proxy's. path_parameters are
    filled in by the router; `state` is free for whoever stands between router and handler.
    """

    __slots__ = (
        "body",
        "client",
        "client_certificate",
        "endpoint",
        "headers",
        "method",
        "network",
        "path",
        "path_parameters",
        "query",
        "raw_path",
        "raw_query",
        "scheme",
        "segments",
        "state",
    )

    def __init__(
        self,
        method: str,
        target: str,
        *,
        headers: HeadersLike = (),
        body: RequestBody | None = None,
        client: tuple[str, int] = ("", 0),
        client_certificate: Mapping[str, Any] | None = None,
        scheme: str = "http",
        network: str = "",
    ) -> None:
        """target: the request target of the first line. Raises HTTPError 400 when it is not one of ours."""
        if method == "OPTIONS" and target == "*":  # RFC 9112 §3.2.4: the server as a whole
            target = "/"
        absolute = _ABSOLUTE_FORM.match(target)
        if absolute:  # RFC 9112 §3.2.2: a server MUST accept the absolute form
            target = target[absolute.end() :]
            target = target if target.startswith("/") else "/" + target
        if not target.startswith("/") or "#" in target:
            raise HTTPError(400, "request target is not an absolute path")
        self.method = method
        self.raw_path, _, self.raw_query = target.partition("?")
        self.segments = tuple(_decode(part, "path") for part in self.raw_path[1:].split("/"))
        if "." in self.segments or ".." in self.segments:  # clients resolve these; only attacks send them
            raise HTTPError(400, "dot segment in path")
        self.path = "/" + "/".join(self.segments)
        self.query = Query(self.raw_query)
        self.headers = Headers(headers)
        self.body = body if body is not None else RequestBody.of()
        self.client = client
        self.client_certificate = client_certificate
        self.scheme = scheme
        self.network = network  # the name of the listener this came in on
        self.path_parameters: dict[str, str] = {}
        self.endpoint = ""  # the name of the route that answers, filled in by the router
        self.state: dict[str, object] = {}

    async def json(self, limit_bytes: int = DEFAULT_READ_LIMIT_BYTES) -> Any:
        """The body decoded as JSON (Any: whatever JSON holds); HTTPError 400 when it is not JSON, 413 when too long."""
        try:
            return msgspec.json.decode(await self.body.read(limit_bytes))
        except RecursionError:
            raise HTTPError(400, "request body is not JSON: it is nested too deep") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # msgspec's text says where, never what; a body may be patient data.
            raise HTTPError(400, f"request body is not JSON: {_without_data(error)}") from error

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.raw_path}>"


def _without_data(error: Exception) -> str:
    return str(error) if isinstance(error, msgspec.DecodeError) else "text is not UTF-8"


def _decode(raw: str, where: str) -> str:
    """Percent-decode once, as UTF-8."""
    if "%" not in raw:
        return raw
    if _BROKEN_PERCENT.search(raw):
        raise HTTPError(400, f"broken percent-encoding in {where}")
    try:
        text = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise HTTPError(400, f"percent-encoded text in {where} is not UTF-8") from error
    if "\0" in text:
        raise HTTPError(400, f"NUL in {where}")
    return text
