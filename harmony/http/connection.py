"""One server connection: requests read by h11, everything about time and memory here (RFC 9112).

One task per connection takes bytes from its channel, request after request, runs the handler and writes the answer; the
channel (channel.py) bounds what is buffered on either side, response_head.py writes what stands around a body. A client
that leaves cancels the task, wherever the handler is, and the body of the answer is closed; only that closing is not
cancelled. A client that only shuts down its sending side while its request is being answered counts as gone too: TCP
does not tell the two apart. (While a handler leaves a large body unread, the socket is not read, and the leaving is
noticed at the next read or write.)

Each request gets a fresh h11 connection, and of a head no more bytes than the limit are fed, so that a request has one
outcome however TCP happened to cut it. Created by `HTTPServer` (server.py), which also stops it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import h11

from harmony.http.channel import Channel, ChannelClosed
from harmony.http.files import file_response
from harmony.http.headers import Headers
from harmony.http.message import (
    FileBody,
    FileSpan,
    HTTPError,
    Piece,
    Request,
    RequestBody,
    Response,
    error_response,
)
from harmony.http.pace import Pace
from harmony.http.response_head import NO_BODY_STATUS, Framing, response_head

__all__ = ["Connection", "Exchanged", "ServerLimits"]

logger = logging.getLogger("harmony.http")

DRAIN_BYTES = 256 * 1024
"""How much of a request body that nobody read is skipped to keep the connection; more costs more than a new one."""

LINGER_TIMEOUT_S = 5.0
"""How long a client may go on sending after its answer: closing at once would reset the connection, and the answer be
lost on its way (RFC 9112 §9.6)."""

BODY_CLOSE_TIMEOUT_S = 30.0
"""For a body to clean up: a retrieve that is left waits a second for its PACS, a folder may have to be emptied."""

_FOREIGN = {0x16: "TLS", 0x01: "DICOM (A-ASSOCIATE-RQ)"}  # first byte of a record, of a PDU (PS3.8 §9.3.2)


@dataclass(frozen=True, slots=True)
class Exchanged:
    """A request that is over, for statistics. What never became a request (a broken head) is not reported."""

    request: Request | None
    """None: its target was none of ours."""
    method: str
    status: int
    """0: the client left before it was answered."""
    elapsed_s: float
    """From the complete head to the last byte of the answer, at the pace of the client."""
    sent_bytes: int
    """Of the answer's body."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What the connections of one listener may cost. Times in seconds."""

    maximum_header_bytes: int = 64 * 1024
    """Request line and header fields together; also one chunk header, or the trailers."""
    maximum_body_bytes: int | None = None
    """Default of `RequestBody.maximum_bytes`; None: unlimited, for bodies are streamed."""
    header_timeout_s: float = 10.0
    """From connecting, or the first byte of a later request, to the end of the head; dribbling does not extend it."""
    idle_keep_alive_timeout_s: float = 75.0
    """From one answer to the first byte of the next request."""
    body_read_timeout_s: float = 60.0
    """For each next piece of a request body, see `minimum_rate`."""
    write_timeout_s: float = 60.0
    """For the client to take any of what is waiting to be sent, see `minimum_rate`."""
    minimum_rate: float = 500.0
    """Bytes/s at which the two above are given back while a body or an answer goes on (`pace`). 0: any byte does."""
    maximum_connections: int = 1000
    """Further ones are answered 503."""
    maximum_connections_per_address: int = 0
    """Of those; further ones are answered 429. 0: no limit of its own."""
    connections_per_second_per_address: float = 0.0
    """On average, see `harmony.ul.shares`; more are answered 429, or closed before a TLS handshake. 0: no limit."""
    maximum_requests_per_connection: int | None = None


class ConnectionOwner(Protocol):
    """What a connection needs of its server."""

    limits: ServerLimits

    @property
    def on_exchanged(self) -> Callable[[Exchanged], None] | None: ...

    def handler(self, request: Request) -> Awaitable[Response]: ...

    def opened(self, connection: Connection) -> HTTPError | None:
        """None, or the answer to a connection when there are too many already."""

    def closed(self, connection: Connection) -> None: ...


class Connection:
    """One accepted connection, served by one task until it closes. `channel` is the protocol to give to asyncio."""

    def __init__(
        self,
        owner: ConnectionOwner,
        *,
        network: str = "",
        scheme: str = "http",
        client: tuple[str, int] | None = None,
        on_connected: Callable[[], None] | None = None,
    ) -> None:
        """client: who it is, None for the one who connected."""
        self._on_connected = on_connected
        self._owner = owner
        self._limits = owner.limits
        self._network = network
        self._scheme = scheme
        self._loop = asyncio.get_running_loop()
        self.channel = Channel(opened=self._start, peer_left=self._abandon)
        self.task: asyncio.Task[None] | None = None
        self._client = client or ("", 0)
        self._client_certificate: Mapping[str, Any] | None = None
        self._http = h11.Connection(h11.SERVER)
        self.idle = False  # waiting for the first byte of a request
        self._busy = False  # a handler is running or its answer being sent
        self._abandoned = False
        self._closing_body = False
        self._cancel_later = False  # when the body is closed
        self._closing = False  # no further request
        self._requests = 0
        self._response_started = False
        self._last = True  # no response comes behind the one that was begun
        self._may_follow = False  # it is complete, and another one can come
        self._sent_bytes = 0
        self._method = ""  # of a head that could be read
        self._reading, self._writing = self._paces()
        self._is_old = False  # the client speaks HTTP/1.0
        self._asked_to_close = False

    def __repr__(self) -> str:
        state = "busy" if self._busy else "idle" if self.idle else "open"
        return f"<HTTP connection {self._client[0]}:{self._client[1]} {state}, request {self._requests}>"

    @property
    def client(self) -> tuple[str, int]:
        """Host and port; ("", 0) before the connection is made."""
        return self._client

    def _paces(self) -> tuple[Pace, Pace]:
        """For the body of a request, and for its answer."""
        limits = self._limits
        return (
            Pace(limits.body_read_timeout_s, bytes_per_s=limits.minimum_rate),
            Pace(limits.write_timeout_s, bytes_per_s=limits.minimum_rate),
        )

    def finish_soon(self) -> None:
        """Take no further request; close now if none is in progress."""
        self._closing = True
        if self.idle:
            self.channel.wake()

    def abort(self) -> None:
        """Close now, whatever is in progress but the closing of a body; the task ends soon after."""
        self._cancel()

    def _start(self) -> None:
        if self._on_connected is not None:
            self._on_connected()
        peer = self.channel.transport.get_extra_info("peername")
        if not self._client[0] and isinstance(peer, tuple) and len(peer) >= 2:
            self._client = (str(peer[0]), int(peer[1]))
        self._client_certificate = self.channel.transport.get_extra_info("peercert") or None
        refusal = self._owner.opened(self)
        self.task = self._loop.create_task(
            self._run(refusal), name=f"http {self._client[0]}:{self._client[1]}"
        )

    def _abandon(self) -> None:
        """The client left: cancel the handler, once, so that its clean-up is not cancelled as well."""
        if self._busy and not self._abandoned:
            self._abandoned = True
            self._cancel()

    def _cancel(self) -> None:
        if self._closing_body:
            self._cancel_later = True
        elif self.task is not None:
            self.task.cancel()

    # The task

    async def _run(self, refusal: HTTPError | None) -> None:
        try:
            if refusal is None:
                while await self._serve_one():
                    pass
            else:
                await self._refuse(refusal)
            await self._close()
        except ChannelClosed as reason:
            logger.debug("%r: %s", self, reason)
        except Exception:
            logger.exception("%r failed", self)
        finally:
            self.channel.abort()
            self._owner.closed(self)

    async def _serve_one(self) -> bool:
        """Read and answer one request; False when the connection should close."""
        limits = self._limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.maximum_header_bytes)
        self.idle = True
        self._response_started = self._may_follow = False
        self._sent_bytes = 0
        self._method = ""
        self._reading, self._writing = self._paces()
        self._is_old = self._asked_to_close = False
        try:
            head = await self._read_head()
        except HTTPError as error:
            logger.debug("%r: refused with %d: %s", self, error.status, error.message)
            await self._refuse(error)
            return False
        finally:
            self.idle = False
        if head is None:
            return False
        self._requests += 1
        self._busy = True
        try:
            await self._exchange(head)
            await self._skip_request_body()
        finally:
            self._busy = False
        if not self._may_follow or self._http.their_state is not h11.DONE or self._closing:
            return False
        trailing, _ = self._http.trailing_data
        if trailing:  # pipelined: goes back to the front of the queue
            self.channel.put_back(trailing)
        return True

    async def _exchange(self, head: h11.Request) -> None:
        """Run the handler and send what it answers, or the error that came instead."""
        started = perf_counter()  # uvloop's own clock counts milliseconds
        method = head.method.decode("ascii")
        request: Request | None = None
        status = 0
        try:
            try:
                request = self._request(head, method)
                response = await self._owner.handler(request)
                if not isinstance(response, Response):
                    raise TypeError(f"handler returned {type(response).__name__}, expected Response")
                status = response.status
                await self._respond(request, method, response)
            except (Exception, asyncio.CancelledError) as error:
                answer = self._answer_to(error)
                status = answer.status
                await self._respond(request, method, answer)
        finally:
            if request is not None:
                request.body.let_go()
            raw_path = request.raw_path if request is not None else "(bad target)"
            elapsed_s = perf_counter() - started
            logger.debug(
                "%s %s %d %d bytes %.1f ms", method, raw_path, status, self._sent_bytes, elapsed_s * 1000
            )
            if self._owner.on_exchanged is not None:
                self._owner.on_exchanged(Exchanged(request, method, status, elapsed_s, self._sent_bytes))

    def _answer_to(self, error: BaseException) -> Response:
        """The error response for what a handler or its body raised; raises when there is nothing left to answer."""
        task = self.task
        if isinstance(error, ChannelClosed) or (
            isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling()
        ):
            raise error
        if not self._response_started:
            if isinstance(error, HTTPError):
                return error.response()
            logger.error("%r: handler failed", self, exc_info=error)
            return error_response(500, "internal error")
        if (
            isinstance(error, HTTPError) and error.status < 500
        ):  # the rest of the request is not what was begun
            logger.info("%r: response broke off: %s", self, error.message)
        else:
            logger.error("%r: response broke off", self, exc_info=error)
        self.channel.reset()  # without it an HTTP/1.0 client would take what it got for everything
        raise ChannelClosed("response broke off; connection reset") from error

    # Receiving

    async def _read_head(self) -> h11.Request | None:
        """The next request head; None when there will be none. Raises HTTPError with the answer to a bad one."""
        limits = self._limits
        first = self._requests == 0
        deadline = self._loop.time() + (
            limits.header_timeout_s if first else limits.idle_keep_alive_timeout_s
        )
        started = False  # anything but line ends has come
        room = limits.maximum_header_bytes
        while True:
            try:
                await self.channel.wait_for_data(deadline)
            except TimeoutError:
                if not started:
                    return None
                raise HTTPError(408, "request head took too long") from None
            if not self.channel.buffered_bytes:  # end of file, or the server stops
                return None
            if self.idle and not first:
                deadline = self._loop.time() + limits.header_timeout_s
            self.idle = False
            chunk = self.channel.take(room)
            room -= len(chunk)
            if not started:
                chunk = chunk.lstrip(b"\r\n")  # RFC 9112 §2.2: empty lines before a request are ignored
                if chunk and first and chunk[0] in _FOREIGN:
                    logger.info("%s:%d speaks %s, not HTTP; closed", *self._client, _FOREIGN[chunk[0]])
                    raise ChannelClosed("not HTTP")
                started = bool(chunk)
            if chunk:
                self._http.receive_data(chunk)
                try:
                    event = self._http.next_event()
                except h11.RemoteProtocolError as error:
                    raise _malformed(error) from error
                if isinstance(event, h11.Request):
                    self._method = event.method.decode("ascii")
                    self._is_old = event.http_version < b"1.1"
                    _check_head(event)
                    return event
            if room <= 0:
                raise HTTPError(431, f"request head exceeds {limits.maximum_header_bytes} bytes")

    def _request(self, head: h11.Request, method: str) -> Request:
        headers = Headers.from_wire(head.headers)
        length = headers.get("content-length")
        chunked = "transfer-encoding" in headers
        if connection := headers.get("connection"):
            self._asked_to_close = "close" in [each.strip() for each in connection.lower().split(",")]
        if not chunked and not int(length or 0):
            self._http.next_event()  # EndOfMessage: no body comes
        body = RequestBody(
            functools.partial(self._receive_body, self._http),
            None if chunked else int(length or 0),
            maximum_bytes=self._limits.maximum_body_bytes,
        )
        return Request(
            method,
            head.target.decode("ascii"),
            headers=headers,
            body=body,
            client=self._client,
            client_certificate=self._client_certificate,
            scheme=self._scheme,
            network=self._network,
        )

    async def _receive_body(self, http: h11.Connection) -> bytes:
        """The next piece of the request body, b"" at its end. `http` tells the requests of a connection apart."""
        if http is not self._http:
            raise RuntimeError("request body read after its request was answered")
        if http.they_are_waiting_for_100_continue and not self.channel.buffered_bytes:
            await self._write(
                http.send(h11.InformationalResponse(status_code=100, headers=[], reason="Continue"))
            )
        while http.their_state is h11.SEND_BODY:
            try:
                event = http.next_event()
            except h11.RemoteProtocolError as error:
                raise _malformed(error) from error
            if isinstance(event, h11.Data) and event.data:
                return bytes(event.data)
            if event is h11.NEED_DATA:
                began = self._loop.time()
                left_s = self._reading.left_s
                try:
                    await self.channel.wait_for_data(None if left_s is None else began + left_s)
                except TimeoutError:
                    self._closing = True
                    raise HTTPError(408, "the request body comes too slowly") from None
                if not self.channel.buffered_bytes:
                    raise ChannelClosed("connection closed within a request body")
                data = self.channel.take()
                self._reading.waited(self._loop.time() - began, len(data))
                http.receive_data(data)
        return b""

    async def _skip_request_body(self) -> None:
        """Read what the handler left of a short request body, so that the next request can follow."""
        http, skipped = self._http, 0
        if http.their_state is h11.DONE:
            return
        if not self._may_follow:  # we close anyway: only see whether the request was complete
            with contextlib.suppress(h11.RemoteProtocolError):
                while http.their_state is h11.SEND_BODY and http.next_event() is not h11.NEED_DATA:
                    pass
            return
        try:
            async with asyncio.timeout(LINGER_TIMEOUT_S):
                while skipped <= DRAIN_BYTES:
                    piece = await self._receive_body(http)
                    if not piece:
                        return
                    skipped += len(piece)
        except (HTTPError, TimeoutError):
            return

    # Sending

    async def _refuse(self, error: HTTPError) -> None:
        """Answer what never became a request; the connection closes afterwards."""
        self._closing = True
        await self._respond(None, self._method, error.response())

    async def _respond(self, request: Request | None, method: str, response: Response) -> None:
        """Send one response. Whatever its body raises comes through; `_response_started` tells if it was too late."""
        if isinstance(response.body, FileBody):
            try:
                response = file_response(request, response, response.body)
            except FileNotFoundError:
                response = error_response(404, "Not found")
        if response.body is None or isinstance(response.body, bytes):
            await self._send_whole(request, method, response, response.body or b"")
            return
        assert not isinstance(response.body, FileBody)
        chunks = aiter(response.body)
        try:
            await self._send_stream(request, method, response, chunks)
        finally:
            close = getattr(chunks, "aclose", None)  # generators have it, an AsyncIterator need not
            if close is not None:
                await self._close_body(close)

    async def _close_body(self, close: Callable[[], Awaitable[None]]) -> None:
        """Whoever leaves meanwhile, be it the client or the server, is attended to afterwards."""
        self._closing_body = True
        try:
            async with asyncio.timeout(BODY_CLOSE_TIMEOUT_S) as timeout:
                await close()
        except TimeoutError:
            if not timeout.expired():
                raise
            raise TimeoutError(f"a body was not closed within {BODY_CLOSE_TIMEOUT_S:g} s") from None
        finally:
            self._closing_body = False
            if self._cancel_later:
                self._cancel_later = False
                self._cancel()

    async def _send_whole(
        self, request: Request | None, method: str, response: Response, body: bytes
    ) -> None:
        has_body = method != "HEAD" and response.status not in NO_BODY_STATUS
        length = response.content_length if method == "HEAD" and not body else None
        head, framing = self._begin(request, response, len(body) if length is None else length, has_body)
        self._response_started = True
        pieces = self._data(framing, body) if body and has_body else ()
        await self._write(head, *pieces, framing.end())
        self._may_follow = not self._last

    async def _send_stream(
        self,
        request: Request | None,
        method: str,
        response: Response,
        chunks: AsyncIterator[Piece],
    ) -> None:
        length = response.content_length
        if method == "HEAD" or response.status in NO_BODY_STATUS:
            head, framing = self._begin(request, response, length, has_body=False)
        else:
            # Before the head: a backend that fails at once is a proper error.
            chunk = await _next_chunk(chunks)
            if chunk is None and length is None:
                length = 0
            head, framing = self._begin(request, response, length, has_body=True)
            self._response_started = True
            while chunk is not None:
                await self._write(head, *self._data(framing, chunk))
                head = b""
                chunk = await _next_chunk(chunks)
        self._response_started = True
        await self._write(head, framing.end())
        self._may_follow = not self._last

    def _data(self, framing: Framing, chunk: bytes | FileSpan) -> tuple[bytes | FileSpan, ...]:
        self._sent_bytes += len(chunk)
        return framing.data(chunk)

    def _begin(
        self, request: Request | None, response: Response, length: int | None, has_body: bool
    ) -> tuple[bytes, Framing]:
        framing = Framing(length, http_1_0=self._is_old, has_body=has_body)
        self._last = (
            self._is_old  # HTTP/1.0 connections are never kept open
            or self._asked_to_close
            or self._must_close(request)
            or (response.headers.get("connection") or "").lower() == "close"
        )
        return response_head(response.status, response.headers, framing, close=self._last), framing

    def _must_close(self, request: Request | None) -> bool:
        """True when this answer is the last one on this connection."""
        maximum = self._limits.maximum_requests_per_connection
        if self._closing or request is None:
            return True
        if maximum is not None and self._requests >= maximum:
            return True
        if self._http.they_are_waiting_for_100_continue or self._http.their_state is h11.ERROR:
            return True
        body = request.body
        return self._http.their_state is h11.SEND_BODY and (
            body.content_length is not None and body.content_length - body.received_bytes > DRAIN_BYTES
        )

    async def _write(self, *pieces: bytes | FileSpan) -> None:
        await self.channel.write(*pieces, pace=self._writing)

    async def _close(self) -> None:
        """Let the client have its answer, then close."""
        channel = self.channel
        unread = channel.buffered_bytes or self._http.their_state not in (h11.DONE, h11.MUST_CLOSE)
        if self._response_started and unread and not channel.eof:
            await channel.linger(LINGER_TIMEOUT_S)
        await channel.close(pace=self._writing)


async def _next_chunk(chunks: AsyncIterator[Piece]) -> bytes | FileSpan | None:
    """The next chunk that is not empty, copied if it was a view; None at the end."""
    async for chunk in chunks:
        if len(chunk):
            return bytes(chunk) if isinstance(chunk, memoryview) else chunk
    return None


def _check_head(head: h11.Request) -> None:
    """What h11 lets pass and a gateway should not."""
    if head.http_version not in (b"1.0", b"1.1"):
        raise HTTPError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if head.method == b"CONNECT":
        raise HTTPError(501, "CONNECT is not implemented")
    names = {name for name, _ in head.headers}
    if b"transfer-encoding" in names and (b"content-length" in names or head.http_version == b"1.0"):
        # RFC 9112 §6.1: how requests are smuggled past whoever reads the other field.
        raise HTTPError(400, "Transfer-Encoding with Content-Length or in HTTP/1.0")


def _malformed(error: h11.RemoteProtocolError) -> HTTPError:
    """h11's own text quotes what came, which may be patient data: only the status is taken over."""
    status = error.error_status_hint if 400 <= error.error_status_hint <= 599 else 400
    messages = {400: "malformed request", 431: "request header fields too large", 501: "not implemented"}
    return HTTPError(status, messages.get(status, "malformed request"))
