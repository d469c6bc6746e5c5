"""Calling an HTTP/1.1 upstream: streamed uploads, answers that come early, deadlines on every phase (h11, no more).

The client sends and listens at once. An upstream that answers 401 or 409 before it has read an upload of gigabytes is
heard, and the sending stops; most clients would only report a broken pipe. (A 2xx that starts early is read while the
sending goes on.) A file goes out with Content-Length, never chunked, from the page cache to the socket (sendfile); over
TLS it is read off the event loop. Redirects are returned, not followed: what was meant for one host is not sent to
another.

Deadlines: `timeout_s` is given to each phase (a free connection, connecting with TLS, each write the upstream must take
something of, each read of the response once the request is sent). `upload` and `request` as a whole
end after three times that plus the time their bytes would take at MINIMUM_RATE, so dribbling does not prolong them.

A kept connection is reused while it is fresh; if it turns out to be closed, only an idempotent request without a
streamed body is sent again (RFC 9110 §9.2.2). Errors name the host and port, never path, query or credentials.
"""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, cast
from urllib.parse import urlsplit

import h11

from harmony import __version__
from harmony.http.channel import Channel, ChannelClosed, ChannelStalled
from harmony.http.files import FileChunks, open_file
from harmony.http.headers import Headers, HeadersLike
from harmony.http.message import FileSpan
from harmony.http.pace import Pace
from harmony.ul import tls
from harmony.ul.tls import TLSContext

__all__ = [
    "Authentication",
    "AuthenticationKind",
    "HTTPClient",
    "UpstreamError",
    "UpstreamResponse",
    "UpstreamStream",
]

MINIMUM_RATE_BYTES_PER_S = 64 * 1024
"""An upstream slower than this over a whole upload counts as hanging; half a megabit is the worst of site links."""

MAXIMUM_RESPONSE_BYTES = 16 * 1024 * 1024
"""What `upload` and `request` keep of a response body; `stream` is for larger ones."""

MAXIMUM_HEADER_BYTES = 64 * 1024

REUSE_WITHIN_S = 4.0
"""Many servers close an idle connection after 5 s; a request must not race with that."""

_IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")  # RFC 9110 §9.2.2

_OURS = ("Host", "Connection", "Keep-Alive", "Content-Length", "Transfer-Encoding", "Upgrade", "TE", "Expect")


class AuthenticationKind(Enum):
    NONE = "none"
    BASIC = "basic"
    BEARER = "bearer"
    API_KEY = "api_key"


@dataclass(frozen=True, slots=True)
class Authentication:
    """What is sent to prove who we are. repr shows the kind only."""

    kind: AuthenticationKind = AuthenticationKind.NONE
    header: str = ""
    value: str = field(default="", repr=False)

    @classmethod
    def none(cls) -> Self:
        return cls()

    @classmethod
    def basic(cls, username: str, password: str) -> Self:
        """RFC 7617; neither may hold a control character, the name no colon."""
        if ":" in username or any(ord(c) < 32 or ord(c) == 127 for c in username + password):
            raise ValueError("basic authentication: colon in the user name or control character")
        token = base64.b64encode(f"{username}:{password}".encode()).decode("ascii")
        return cls(AuthenticationKind.BASIC, "Authorization", f"Basic {token}")

    @classmethod
    def bearer(cls, token: str) -> Self:
        """RFC 6750."""
        return cls(AuthenticationKind.BEARER, "Authorization", f"Bearer {token}")

    @classmethod
    def api_key(cls, key: str, *, header: str = "X-API-Key") -> Self:
        return cls(AuthenticationKind.API_KEY, header, key)

    def __post_init__(self) -> None:
        if self.header:
            Headers(
                {self.header: self.value}
            )  # ValueError for what no header can carry; its text has no value


class UpstreamError(Exception):
    """No usable answer. kind: "connect" (nothing was sent), "timeout", "protocol" (closed early, or not HTTP)."""

    def __init__(self, kind: Literal["connect", "timeout", "protocol"], message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@dataclass(frozen=True, slots=True)
class UpstreamResponse:
    """A whole response. truncated: the body went on past the limit and was not read further."""

    status: int
    headers: Headers
    body: bytes = field(repr=False)
    truncated: bool = False


class UpstreamStream:
    """A response whose body is still coming: iterate over it, once, within `HTTPClient.stream`."""

    __slots__ = ("_chunks", "headers", "status")

    def __init__(self, status: int, headers: Headers, chunks: AsyncIterator[bytes]) -> None:
        self.status = status
        self.headers = headers
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks


class HTTPClient:
    """Requests to one upstream, over at most `maximum_connections` connections."""

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float = 30.0,
        authentication: Authentication | Callable[[], Authentication] | None = None,
        verify: bool = True,
        ca_cert_path: Path | None = None,
        ssl_context: TLSContext | None = None,
        server_hostname: str | None = None,
        maximum_connections: int = 10,
        maximum_response_bytes: int = MAXIMUM_RESPONSE_BYTES,
    ) -> None:
        """base_url: http(s)://host[:port][/path]; paths of requests, or a query without one, are appended to it.

        verify: check the certificate and host name of an https upstream, against `ca_cert_path` or the system's store.
        authentication: a function is asked for one at every request.
        ssl_context: used in their place, a context or a function that is asked for one at every handshake.
        server_hostname: the name in the certificate, when it is not that of the host.
        Raises ValueError for a URL that is not one, or has credentials in it; OSError when the store cannot be read.
        """
        try:
            url = urlsplit(base_url)
            port = url.port
        except ValueError:
            raise ValueError("base_url: port or host is malformed") from None
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            raise ValueError("base_url: expected http(s)://host[:port][/path]")
        if "@" in url.netloc:
            raise ValueError("base_url: credentials belong into authentication, not into the URL")
        self._tls: TLSContext | None = None
        if url.scheme == "https":
            self._tls = ssl_context or _tls_context(verify=verify, ca_cert_path=ca_cert_path)
        self._host = url.hostname
        self._server_hostname = server_hostname or url.hostname
        self._port = port if port is not None else 443 if self._tls else 80
        self._base_path = url.path.rstrip("/")
        self._authority = url.netloc
        self._timeout_s = timeout_s
        self._authentication = authentication
        self._maximum_response_bytes = maximum_response_bytes
        self._slots = asyncio.Semaphore(maximum_connections)
        self._idle: list[_Link] = []

    async def upload(
        self, method: str, path: str, *, file_path: Path, content_type: str, headers: HeadersLike = ()
    ) -> UpstreamResponse:
        """Send a file. Raises UpstreamError, or OSError/EOFError when the file cannot be read to its length."""
        descriptor, size = await open_file(file_path)
        fields = Headers(headers).set("Content-Type", content_type)
        if self._tls is None:
            try:
                return await self._whole(method, path, fields, _span_of(descriptor, size), size)
            finally:
                os.close(descriptor)
        chunks = FileChunks(descriptor, offset=0, length=size)  # what is to be encrypted has to be read here
        try:
            return await self._whole(method, path, fields, chunks, size)
        finally:
            await chunks.aclose()

    async def request(
        self, method: str, path: str, *, body: bytes = b"", headers: HeadersLike = ()
    ) -> UpstreamResponse:
        """Send bytes, or nothing. Raises UpstreamError."""
        return await self._whole(method, path, Headers(headers), body, len(body))

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        body: bytes | AsyncIterable[bytes | FileSpan] = b"",
        content_length: int | None = None,
        headers: HeadersLike = (),
    ) -> AsyncIterator[UpstreamStream]:
        """Send bytes or chunks as they come (chunked without `content_length`), yield the response as it comes.

        Only the timeouts of the phases apply. Raises UpstreamError, and whatever `body` raises. Leaving before the end
        of the response closes the connection.
        """
        length = len(body) if isinstance(body, bytes) else content_length
        request = self._request(method, path, Headers(headers), length)
        await self._slot()
        link: _Link | None = None
        try:
            link = self._reusable(request, body) or await self._connect()
            try:
                response = await link.ask(request, body)
            except UpstreamError:
                if not link.stale:
                    raise
                await self._put_away(link)
                link = await self._connect()
                response = await link.ask(request, body)
            fields = Headers.from_wire(response.headers)
            chunks = link.chunks()
            try:
                yield UpstreamStream(response.status_code, fields, chunks)
            finally:
                await chunks.aclose()
        finally:
            try:
                if link is not None:
                    await self._put_away(link)
            finally:
                self._slots.release()

    async def aclose(self) -> None:
        """Close the connections kept for reuse."""
        while self._idle:
            self._idle.pop().channel.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<HTTPClient {self._host}:{self._port}>"

    async def _whole(
        self,
        method: str,
        path: str,
        headers: Headers,
        body: bytes | AsyncIterable[bytes | FileSpan],
        size: int,
    ) -> UpstreamResponse:
        deadline_s = 3 * self._timeout_s + size / MINIMUM_RATE_BYTES_PER_S
        whole, truncated = bytearray(), False
        try:
            async with asyncio.timeout(deadline_s):
                async with self.stream(
                    method, path, body=body, content_length=size, headers=headers
                ) as response:
                    async for chunk in response:
                        room = self._maximum_response_bytes - len(whole)
                        whole += chunk[:room]
                        if len(chunk) > room:
                            truncated = True
                            break
        except TimeoutError:
            raise self._error("timeout", f"request not finished within {deadline_s:g} s") from None
        return UpstreamResponse(response.status, response.headers, bytes(whole), truncated)

    def _request(self, method: str, path: str, headers: Headers, length: int | None) -> h11.Request:
        """Raises ValueError for a method, path or header that cannot be sent."""
        fields = headers.without(*_OURS)
        for name, value in (("User-Agent", f"harmony/{__version__}"), ("Accept-Encoding", "identity")):
            fields = fields if name in fields else fields.add(name, value)
        shown = self._authentication() if callable(self._authentication) else self._authentication
        if shown is not None and shown.header:
            fields = fields.set(shown.header, shown.value)
        wire = [(b"Host", self._authority.encode("idna" if not self._authority.isascii() else "ascii"))]
        wire += [(name.encode("ascii"), value.encode("latin-1")) for name, value in fields]
        if length is None:
            wire.append((b"Transfer-Encoding", b"chunked"))
        elif length or method not in ("GET", "HEAD", "OPTIONS", "DELETE"):
            wire.append((b"Content-Length", b"%d" % length))
        target = self._base_path
        if path and not path.startswith("?"):
            target += "/" + path.lstrip("/")
        else:
            target = (target or "/") + path
        try:
            return h11.Request(method=method, target=target, headers=wire)
        except (h11.LocalProtocolError, UnicodeEncodeError):
            raise ValueError(
                "method or path cannot be sent: expected ASCII without spaces or controls"
            ) from None

    async def _slot(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._slots.acquire()
        except TimeoutError:
            raise self._error("timeout", f"no free connection within {self._timeout_s:g} s") from None

    def _reusable(self, request: h11.Request, body: bytes | AsyncIterable[bytes | FileSpan]) -> _Link | None:
        """A kept connection that is still good, its cycle begun anew."""
        repeatable = isinstance(body, bytes) and request.method.decode("ascii") in _IDEMPOTENT
        while self._idle:
            link = self._idle.pop()
            if link.revive(repeatable=repeatable):
                return link
            link.channel.abort()
        return None

    async def _put_away(self, link: _Link) -> None:
        """Keep the connection for the next request, or close it."""
        try:
            await link.stop_sending()
        finally:
            if link.rest():
                self._idle.append(link)
            else:
                link.channel.abort()

    async def _connect(self) -> _Link:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._tls is None:
                    _, channel = await loop.create_connection(Channel, self._host, self._port)
                else:
                    _, channel = await tls.connect(
                        Channel,
                        self._host,
                        self._port,
                        context=self._tls,
                        server_hostname=self._server_hostname,
                    )
        except TimeoutError:
            raise self._error("timeout", f"not connected within {self._timeout_s:g} s") from None
        except (
            OSError,
            UnicodeError,
        ) as error:  # ssl.SSLError is an OSError; UnicodeError: impossible host names
            raise self._error("connect", _reason(error, secured=self._tls is not None)) from error
        return _Link(channel, self._timeout_s, self._error)

    def _error(self, kind: Literal["connect", "timeout", "protocol"], what: str) -> UpstreamError:
        return UpstreamError(kind, f"upstream {self._host}:{self._port}: {what}")


class _Link:
    """One connection to the upstream, one request at a time."""

    def __init__(self, channel: Channel, timeout_s: float, error: _ErrorMaker) -> None:
        self.channel = channel
        self._timeout_s = timeout_s
        self._error = error
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAXIMUM_HEADER_BYTES)
        self._idle_since = 0.0
        self._repeatable = False
        self._heard = False  # any byte came since the request
        self._alerted = False  # what came is a TLS alert
        self._sending: asyncio.Task[None] | None = None

    @property
    def stale(self) -> bool:
        """A kept connection that was closed before our request reached anybody, and the request may be repeated."""
        return self._repeatable and not self._heard and self.channel.eof

    def rest(self) -> bool:
        """After an exchange: True when another request may follow on this connection."""
        done = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        if not done or self.channel.eof or self.channel.buffered_bytes or self._http.trailing_data[0]:
            return False
        self._idle_since = self._loop.time()
        return True

    def revive(self, *, repeatable: bool) -> bool:
        """Begin another exchange; False when the connection is no longer good for one."""
        if self.channel.eof or self.channel.buffered_bytes or self.channel.transport.is_closing():
            return False
        if self._loop.time() - self._idle_since > REUSE_WITHIN_S:
            return False
        self._http.start_next_cycle()
        self._repeatable = repeatable
        self._heard = False
        return True

    async def ask(self, request: h11.Request, body: bytes | AsyncIterable[bytes | FileSpan]) -> h11.Response:
        """Send the request while waiting for the head of its response.

        A success may come before the request has ended; the sending then goes on while its body is read. Anything else
        that comes early means that nobody wants the rest (RFC 9112 §9.5).
        """
        self._sending = self._loop.create_task(self._send(request, body))
        self._sending.add_done_callback(lambda _: self.channel.wake())
        while not isinstance(event := await self._next_event(), h11.Response):
            pass
        if event.status_code >= 300:
            await self.stop_sending()
        return event

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The response body."""
        while not isinstance(event := await self._next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)

    async def stop_sending(self) -> None:
        """The exchange is over, or nobody wants more of the request."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait((self._sending,))
            if not self._sending.cancelled():
                self._sending.exception()  # fetched, so that it is not reported as forgotten

    async def _send(self, request: h11.Request, body: bytes | AsyncIterable[bytes | FileSpan]) -> None:
        http, write, pace = self._http, self.channel.write, Pace(self._timeout_s)
        head = http.send(request)
        if isinstance(body, bytes):
            whole = http.send_with_data_passthrough(h11.Data(data=body)) or [] if body else []
            await write(head, *whole, http.send(h11.EndOfMessage()), pace=pace)
            return
        await write(head, pace=pace)
        chunks = aiter(body)
        try:
            async for chunk in chunks:
                if chunk:
                    # Of data that it passes through h11 wants no more than the length.
                    data = h11.Data(data=cast(bytes, chunk))
                    pieces = http.send_with_data_passthrough(data) or []
                    await write(*pieces, pace=pace)
            await write(http.send(h11.EndOfMessage()), pace=pace)
        finally:
            close = getattr(chunks, "aclose", None)  # generators have it, an AsyncIterator need not
            if close is not None:
                await close()

    async def _next_event(self) -> h11.Event:
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                self._check_sending()
                # h11 quotes what came; an upstream's bytes may be patient data.
                what = "closed the connection before the end of its response"
                if self._alerted:
                    what = "speaks TLS on this port, and was asked without; the protocol must be https"
                elif not self.channel.eof:
                    what = "not HTTP"
                raise self._error("protocol", self._loss() or what) from error
            if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                # To h11 this is no error before it has been given the request, and it says so for ever.
                self._check_sending()
                raise self._error("protocol", self._loss() or "closed the connection before its response")
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]  # mypy does not narrow h11's sentinels
            sent = (
                self._check_sending()
            )  # while it lasts, the upstream may be waiting for us; its end wakes the wait
            try:
                await self.channel.wait_for_data(self._loop.time() + self._timeout_s if sent else None)
            except TimeoutError:
                raise self._error("timeout", f"nothing came for {self._timeout_s:g} s") from None
            if self.channel.buffered_bytes or self.channel.eof:
                data = self.channel.take()
                self._alerted = not self._heard and data[:1] == _ALERT
                self._heard = self._heard or bool(data)
                self._http.receive_data(data)  # b"": the end

    def _loss(self) -> str | None:
        """An alert may come after the handshake: TLS 1.3 checks our certificate then."""
        error = self.channel.error
        return tls.describe_failure(error) if isinstance(error, ssl.SSLError) else None

    def _check_sending(self) -> bool:
        """True when the request is sent; raises why it could not be.

        That the upstream closed is not the reason: it may have answered before, which the reading finds out.
        """
        if self._sending is None or not self._sending.done():
            return False
        error = None if self._sending.cancelled() else self._sending.exception()
        if isinstance(error, ChannelStalled):
            raise self._error("timeout", f"took nothing of the request for {self._timeout_s:g} s")
        if error is not None and not isinstance(error, ChannelClosed):
            raise error
        return True


async def _span_of(descriptor: int, size: int) -> AsyncIterator[FileSpan]:
    """A whole file; the kernel sends it, page cache to socket."""
    yield FileSpan(descriptor, 0, size)


_ErrorMaker = Callable[[Literal["connect", "timeout", "protocol"], str], UpstreamError]


_ALERT = bytes((tls.ALERT,))


def _reason(error: OSError | UnicodeError, *, secured: bool) -> str:
    """Why there is no connection."""
    if isinstance(error, ssl.SSLError):
        return tls.describe_failure(error)
    if secured and isinstance(error, ConnectionResetError | ConnectionAbortedError):
        return f"{tls.describe_failure(error)}; does it speak TLS on this port?"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _tls_context(*, verify: bool, ca_cert_path: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca_cert_path) if ca_cert_path is not None else None)
    # As in gateway/tls.py: Python 3.13 refuses certificates that do not name their authority's key, others never did.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
