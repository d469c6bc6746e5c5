"""HTTP: a server's connection over a transport in memory, request heads, multipart bodies, JSON arrays."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any

from harmony.dicom.frames import frame_numbers
from harmony.http.accept import Offer, negotiate, parse_accept
from harmony.http.connection import Connection, ServerLimits
from harmony.http.content_coding import chosen_coding
from harmony.http.files import _requested_range, _resolve
from harmony.http.headers import Headers
from harmony.http.json_array import JSONArrayError, read_json_array
from harmony.http.media_type import parse_media_type
from harmony.http.message import HTTPError, Request, Response, json_response
from harmony.http.multipart import (
    MultipartError,
    MultipartParser,
    PartBegin,
    PartEnd,
    multipart_boundary,
    read_parts,
)
from tests.fuzz.target import pieces, run, target

OFFERS = (
    Offer("application/dicom+json", "json", also=("application/json",)),
    Offer('multipart/related; type="application/dicom"', "dicom", transfer_syntaxes=True),
    Offer("image/jpeg", "jpeg"),
)


@target(MultipartError)
def multipart(data: bytes) -> None:
    """The first line is the boundary. Any split of the rest gives the same parts, or none of them does."""
    boundary, _, body = data.partition(b"\n")
    if not boundary or len(boundary) > 200:
        return

    def read(parts: Iterable[bytes]) -> tuple[list[object], bool]:
        found: list[object] = []
        parser = MultipartParser(boundary)
        try:
            for piece in parts:
                for event in parser.feed(piece):
                    if isinstance(event, PartBegin):
                        found += [[*event.headers], b""]
                    elif isinstance(event, PartEnd):
                        found.append("end")
                    else:
                        assert event
                        assert isinstance(found[-1], bytes)
                        found[-1] += event
            parser.finish()
        except MultipartError:
            return found, False
        return found, True

    whole, complete = read([body])
    in_parts, complete_in_parts = read(pieces(body))
    assert complete == complete_in_parts, (whole, in_parts)
    if complete:
        assert whole == in_parts


class _Transport(asyncio.Transport):
    """Keeps what is written, and tells its protocol when it was closed."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__({"peername": ("192.0.2.1", 40000)})
        self.written = bytearray()
        self._protocol = protocol
        self._closing = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        assert not self._closing
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close


class _Owner:
    on_exchanged = None
    limits = ServerLimits(maximum_header_bytes=2048, maximum_body_bytes=4096)

    def opened(self, connection: Connection) -> None:
        """There is always room."""

    def closed(self, connection: Connection) -> None: ...

    async def handler(self, request: Request) -> Response:
        """What the first segment of the path says: read the body or leave it, whole or in parts, answer or refuse."""
        match request.segments[0]:
            case "read":
                return Response(200, [("Content-Type", "text/plain")], await request.body.read(2048))
            case "json":
                return json_response(await request.json())
            case "parts":
                content_type = parse_media_type_of(request)
                sizes = [
                    [len(piece) async for piece in part]
                    async for part in read_parts(request.body, multipart_boundary(content_type))
                ]
                return json_response([sum(each) for each in sizes])
            case "stream":

                async def body() -> AsyncIterator[bytes]:
                    async for piece in request.body:
                        for byte in piece:  # so that the chunks of the answer are not those of the request
                            yield bytes((byte,))

                return Response(200, (), body())
            case "refuse":
                raise HTTPError(404, "not here")
            case "accept":
                return Response(200, (), negotiate(request, OFFERS).media_type.encode())
        return Response(200, (), b"read nothing")


def parse_media_type_of(request: Request) -> Any:
    try:
        return parse_media_type(request.headers.get("content-type") or "")
    except ValueError as error:
        raise HTTPError(415, str(error)) from error


async def _settled(connection: Connection) -> None:
    """Until the connection waits for the client, or is over."""
    channel = connection.channel
    assert connection.task is not None
    for _ in range(2000):
        waiting = channel._data_waiter is not None and not channel._data_waiter.done()
        if connection.task.done() or waiting:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{connection!r} neither waits nor ends")


async def _served(parts: Iterable[bytes]) -> bytes:
    """Everything that is answered to a client which sends this, waits, and leaves."""
    connection = Connection(_Owner())
    transport = _Transport(connection.channel)
    connection.channel.connection_made(transport)
    assert connection.task is not None
    await _settled(connection)
    for piece in parts:
        if transport.is_closing():
            break
        connection.channel.data_received(piece)
        await _settled(connection)
    if not transport.is_closing():
        connection.channel.eof_received()
        transport.close()
    await asyncio.wait([connection.task], timeout=5)
    assert connection.task.done(), "the connection outlives its client"
    if not connection.task.cancelled():
        assert connection.task.exception() is None
    return re.sub(rb"\r\nDate: [^\r]*", b"", bytes(transport.written))


@target()
def http_connection(data: bytes) -> None:
    """Requests are answered, or refused, the same however TCP cuts them; never with 500."""
    whole = run(_served([data]))
    assert not whole or whole.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 500" not in whole
    in_parts = run(_served(pieces(data, most=16)))
    assert whole == in_parts, f"{whole!r} / {in_parts!r}"


@target(HTTPError)
def request(data: bytes) -> None:
    """A request target, and the values of header fields, a line each."""
    head, *values = data.decode("latin-1").split("\n")
    if not re.fullmatch(r"[\x21-\x7e]+", head):  # h11 lets nothing else pass
        return
    names = ("Accept", "Accept-Encoding", "Range", "Content-Type", "If-Range")
    try:
        headers = Headers(zip(names, values, strict=False))
    except ValueError:
        return
    asked = Request("GET", head, headers=headers)
    assert ".." not in asked.segments
    assert not any("\0" in segment for segment in asked.segments)
    frame_numbers(asked.segments[-1])
    for media_range in parse_accept(headers.get("Accept") or ""):
        assert 0 <= media_range.weight <= 1
    assert chosen_coding(headers.get("Accept-Encoding")) in (None, "gzip", "zstd")
    wanted = _requested_range(headers, Headers([("ETag", '"1"')]))
    part = _resolve(wanted, 1000) if wanted is not None else None
    assert part is None or 0 <= part[0] <= part[1] < 1000
    try:
        multipart_boundary(parse_media_type(headers.get("Content-Type") or ""))
    except ValueError:
        pass
    except MultipartError:
        pass
    negotiate(asked, OFFERS)


@target(JSONArrayError)
def json_array(data: bytes) -> None:
    """Any split gives the same objects, or the same refusal."""

    async def read(parts: Iterable[bytes]) -> tuple[list[bytes], str]:
        async def chunks() -> AsyncIterator[bytes]:
            for piece in parts:
                yield piece

        found: list[bytes] = []
        try:
            async for encoded in read_json_array(chunks()):
                found.append(encoded)
        except JSONArrayError as error:
            return found, str(error)
        return found, ""

    whole = run(read([data]))
    assert run(read(pieces(data))) == whole
    assert all(each.startswith(b"{") and each.endswith(b"}") for each in whole[0])
